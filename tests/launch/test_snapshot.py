"""nim4 snapshot: parts of a model in one file, adapters merged on request."""

import numpy as np
import pytest

from nim4_jax.launch import snapshot as launcher
from nim4_jax.layers import LoraConfig
from nim4_jax.models import lora
from nim4_jax.weights import conversion, snapshot


@pytest.fixture
def adapted(model_files, tmp_path):
    """The tiny model with an adapter on its query projection."""
    params, meta = snapshot.read(model_files[0])
    query = params["llm"]["layers"]["attention"]["query"]
    layers, width, heads, size = query["kernel"].shape
    rng = np.random.default_rng(0)
    query[lora.A] = rng.normal(size=(layers, width, 2)).astype(np.float32)
    query[lora.B] = rng.normal(size=(layers, 2, heads, size)).astype(np.float32)
    meta["model"]["llm"]["lora"] = {"rank": 2, "alpha": 4.0, "targets": "query"}
    path = str(tmp_path / "adapted.safetensors")
    snapshot.write(path, params, meta)
    return path, params


def test_parts_are_kept_by_name(model_files, tmp_path):
    """Only what was asked for."""
    out = str(tmp_path / "part.safetensors")
    launcher.run(model_files[0], out, "bfloat16", ["llm"])
    params, _ = snapshot.read(out)
    assert set(params) == {"llm"}


def test_merging_leaves_a_model_without_adapters(adapted, tmp_path):
    """Kernels hold the product, the config says that there is no rank."""
    path, params = adapted
    out = str(tmp_path / "merged.safetensors")
    launcher.run(path, out, "float32", [], merge_lora=True)
    merged, meta = snapshot.read(out)
    assert meta["model"]["llm"]["lora"]["rank"] == 0
    config = LoraConfig(rank=2, alpha=4.0, targets="query")
    expected = lora.merge(params["llm"], config)["layers"]["attention"]["query"]
    got = merged["llm"]["layers"]["attention"]["query"]
    assert set(got) == set(expected)
    np.testing.assert_array_equal(got["kernel"], expected["kernel"])


def test_nothing_to_merge_is_an_error(model_files, tmp_path):
    """And what is not merged is not exported."""
    out = str(tmp_path / "merged.safetensors")
    with pytest.raises(ValueError, match="no LoRA"):
        launcher.run(model_files[0], out, "float32", [], merge_lora=True)


def test_adapters_are_not_exported_unmerged(adapted, tmp_path):
    """The message names the command that merges."""
    with pytest.raises(ValueError, match="merge_lora"):
        conversion.export_llm(adapted[0], "tokenizer.json", str(tmp_path / "out"))
