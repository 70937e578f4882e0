"""nim4 snapshot: parts of a model in one file, adapters merged on request."""

import os

import jax.numpy as jnp
import numpy as np
import pytest

from nim4_jax.configs import stage2
from nim4_jax.layers import LoraConfig
from nim4_jax.model_files import loading, packing
from nim4_jax.models import lora
from nim4_jax.runs import training
from nim4_jax.serving import recognisers
from nim4_jax.train import optim
from nim4_jax.types import Frames
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
    packing.run(model_files[0], out, "bfloat16", ["llm"])
    params, _ = snapshot.read(out)
    assert set(params) == {"llm"}


def test_merging_leaves_a_model_without_adapters(adapted, tmp_path):
    """Kernels hold the product, the config says that there is no rank."""
    path, params = adapted
    out = str(tmp_path / "merged.safetensors")
    packing.run(path, out, "float32", [], merge_lora=True)
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
        packing.run(model_files[0], out, "float32", [], merge_lora=True)


def test_adapters_are_not_exported_unmerged(adapted, tmp_path):
    """The message names the command that merges."""
    with pytest.raises(ValueError, match="merge_lora"):
        conversion.export_llm(adapted[0], "tokenizer.json", str(tmp_path / "out"))


def test_an_int8_snapshot_transcribes_and_is_small(model_files, tmp_path):
    """`evaluate` and `transcribe` load it like any other model."""
    out = str(tmp_path / "int8.safetensors")
    packing.run(model_files[0], out, "int8", [])
    params, meta = snapshot.read(out)
    assert meta["model"]["policy"]["weights"] == "int8"
    assert params["llm"]["embedding"]["table_int8"].dtype == np.int8
    noise = 0.1 * np.random.default_rng(0).normal(size=(3, 12_800)).astype(np.float32)
    audio = Frames(jnp.asarray(noise), jnp.ones(noise.shape, bool))
    heard = recognisers.load(out).recogniser.transcribe(audio, timings=False)
    assert len(heard) == 3 and all(row.tokens for row in heard)
    whole = str(tmp_path / "whole.safetensors")
    packing.run(model_files[0], whole, "float32", [])
    assert os.path.getsize(out) < 0.5 * os.path.getsize(whole)


def test_training_starts_from_what_int8_weights_stand_for(model_files, tmp_path):
    """As float32, each within half a step of what they were made from."""
    out = str(tmp_path / "int8.safetensors")
    packing.run(model_files[0], out, "int8", [])
    rounded = optim.flatten(loading.load_trainable(out))
    exact = optim.flatten(loading.load_trainable(model_files[0]))
    assert rounded.keys() == exact.keys()
    for path, leaf in rounded.items():
        assert leaf.dtype == np.float32 and leaf.shape == exact[path].shape
        peak = np.abs(exact[path]).max()
        assert np.abs(leaf - exact[path]).max() <= 0.501 * peak / 127, path


def test_int8_weights_are_not_trained_themselves(tmp_path):
    config = stage2.get_config("nano")
    config.model.policy.weights = "int8"
    with pytest.raises(ValueError, match="cannot be trained"):
        training.run(config, str(tmp_path / "run"))


def test_a_model_with_adapters_transcribes_as_the_merged_one(adapted, tmp_path):
    """A recogniser merges them itself."""
    out = str(tmp_path / "merged.safetensors")
    packing.run(adapted[0], out, "float32", [], merge_lora=True)
    noise = 0.1 * np.random.default_rng(1).normal(size=(3, 12_800)).astype(np.float32)
    audio = Frames(jnp.asarray(noise), jnp.ones(noise.shape, bool))
    heard = [
        [row.tokens for row in recognisers.load(path).recogniser.transcribe(audio)]
        for path in (adapted[0], out)
    ]
    assert heard[0] == heard[1]
