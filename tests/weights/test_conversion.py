"""Weights in and out: a round trip is bit-identical, and bad input leaves nothing."""

import json
import os
import shutil
import typing

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from nim4_jax.model_files import loading
from nim4_jax.models.asr import AsrConfig
from nim4_jax.models.llm_config import LLMConfig
from nim4_jax.weights import conversion, families, hf, rules, tensor_file

TOKENIZER = loading.find_tokenizer("nano")
SIZES = {
    "vocab_size": 2048,
    "width": 16,
    "num_layers": 3,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 4,
    "ffn": 24,
}
CONFIGS = {
    "qwen3": LLMConfig(**SIZES),
    "qwen2": LLMConfig(**SIZES, qk_norm=False, qkv_bias=True),
    "llama": LLMConfig(**SIZES, qk_norm=False, tie_embeddings=False),
}


def make_tensors(config):
    """Random bf16 tensors under their names, in their shapes."""
    rng = np.random.default_rng(0)
    shapes = conversion.llm_shapes(config)
    moves = rules.plan([rule for rule in hf.RULES if rule.ours in shapes], shapes)
    tensors = {}
    for move in moves:
        theirs = move.layout.theirs(np.zeros(move.shape, np.float32)).shape
        array = rng.normal(size=theirs).astype(ml_dtypes.bfloat16)
        tensors[move.theirs] = array
    return tensors


def write_folder(folder, family="qwen3", shards=1):
    """A model folder as Hugging Face's; returns its tensors."""
    config, tensors = CONFIGS[family], make_tensors(CONFIGS[family])
    os.makedirs(folder)
    (folder / "config.json").write_text(
        json.dumps(hf.from_llm_config(config, "bfloat16"))
    )
    shutil.copyfile(TOKENIZER, folder / "tokenizer.json")
    if shards == 1:
        safetensors.numpy.save_file(tensors, folder / "model.safetensors")
        return tensors
    places = {}
    for shard in range(shards):
        name = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = {key: tensors[key] for key in sorted(tensors)[shard::shards]}
        safetensors.numpy.save_file(part, folder / name)
        places |= dict.fromkeys(part, name)
    (folder / tensor_file.INDEX).write_text(json.dumps({"weight_map": places}))
    return tensors


def bring_in(folder, out):
    """What `nim4 convert --source=hf` does."""
    return families.convert("hf", str(folder), str(out))


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("family", CONFIGS)
def test_a_round_trip_is_bit_identical(tmp_path, family, shards):
    """hf → ours → hf gives every tensor back, in its dtype, and the same config."""
    tensors = write_folder(tmp_path / "hf", family, shards)
    count = bring_in(tmp_path / "hf", tmp_path / "ours")
    assert count == sum(tensor.size for tensor in tensors.values())
    conversion.export_llm(
        str(tmp_path / "ours" / conversion.MODEL),
        str(tmp_path / "ours" / conversion.TOKENIZER),
        str(tmp_path / "back"),
    )
    back = tensor_file.Reader(str(tmp_path / "back"))
    assert set(back.specs) == set(tensors)
    for name, tensor in tensors.items():
        got = back.get(name)
        assert got.dtype == tensor.dtype
        np.testing.assert_array_equal(got.view(np.uint16), tensor.view(np.uint16))
    _, config, _ = conversion.open_hf(str(tmp_path / "back"))
    assert config == CONFIGS[family]


def test_an_imported_model_can_be_started_from(tmp_path):
    """`init_from` takes the file; bf16 becomes float32 without a change."""
    tensors = write_folder(tmp_path / "hf")
    bring_in(tmp_path / "hf", tmp_path / "ours")
    params, _ = loading.load_model(str(tmp_path / "ours" / conversion.MODEL))
    table = params["llm"]["embedding"]["table"]
    assert table.dtype == np.float32
    expected = tensors["model.embed_tokens.weight"].astype(np.float32)
    np.testing.assert_array_equal(table, expected)


def drop_tensor(folder):
    path = folder / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    safetensors.numpy.save_file(tensors, path)


def add_tensor(folder):
    path = folder / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    tensors["model.extra.weight"] = np.zeros((2, 3), np.float32)
    safetensors.numpy.save_file(tensors, path)


def turn_tensor(folder):
    path = folder / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name] = np.ascontiguousarray(tensors[name].T)
    safetensors.numpy.save_file(tensors, path)


def cut_file(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def lose_shard(folder):
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    places = {"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}
    (folder / tensor_file.INDEX).write_text(json.dumps(places))


def spoil_index(places):
    """Something else than names of files in the index of shards."""

    def spoil(folder):
        (folder / tensor_file.INDEX).write_text(json.dumps({"weight_map": places}))

    return spoil


def set_config(**values):
    def change(folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | values))

    return change


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (drop_tensor, "lacks model.layers.1.mlp.up_proj.weight"),
        (add_tensor, r"model.extra.weight \(2, 3\), which no rule takes"),
        (turn_tensor, r"up_proj.weight has shape \(16, 24\), expected \(24, 16\)"),
        (cut_file, "model.safetensors cannot be read"),
        (lose_shard, "b.safetensors"),
        (spoil_index({"x": 5}), "no index of shards"),
        (spoil_index({"x": "a" * 300}), "no index of shards"),
        (spoil_index({"x": ["a"]}), "no index of shards"),
        (spoil_index(["a"]), "no index of shards"),
        (set_config(model_type="mamba"), "'mamba' is unknown"),
        (set_config(rope_scaling={"type": "yarn"}), "rope_scaling"),
        (set_config(hidden_act="gelu"), "hidden_act"),
        (set_config(intermediate_size=25), "mlp/down"),
        (set_config(num_hidden_layers=4), "lacks model.layers.3"),
        (set_config(vocab_size=2000), "2048 ids"),
        (lambda folder: (folder / "config.json").unlink(), "config.json"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json"),
    ],
)
def test_bad_input_is_named_and_leaves_nothing(tmp_path, harm, message):
    """The error says which file and tensor; no folder appears."""
    write_folder(tmp_path / "hf")
    harm(tmp_path / "hf")
    with pytest.raises(ValueError, match=message):
        bring_in(tmp_path / "hf", tmp_path / "ours")
    assert sorted(os.listdir(tmp_path)) == ["hf"]


def test_what_exists_is_not_overwritten(tmp_path):
    """A second run names the folder that is in its way."""
    write_folder(tmp_path / "hf")
    bring_in(tmp_path / "hf", tmp_path / "ours")
    with pytest.raises(ValueError, match="ours exists"):
        bring_in(tmp_path / "hf", tmp_path / "ours")


def test_a_writer_left_early_leaves_no_file(tmp_path):
    """An error inside, or a tensor that never came."""
    specs = {"a": ((2, 3), np.dtype(np.float32))}
    path = tmp_path / "x.safetensors"
    array = np.zeros(3, np.float32)
    with (
        pytest.raises(ValueError, match="without all of"),
        tensor_file.Writer(str(path), specs, {}) as writer,
    ):
        writer.put("a", array, layer=0)
    with (
        pytest.raises(ValueError, match="announced"),
        tensor_file.Writer(str(path), specs, {}) as writer,
    ):
        writer.put("a", array)
    assert not os.listdir(tmp_path)


def test_families_are_of_models_that_there_are():
    """A row's config class is one that a model's settings can become."""
    known = typing.get_args(typing.get_type_hints(AsrConfig)["encoder"])
    for name, family in families.FAMILIES.items():
        if isinstance(family, families.EncoderFamily):
            assert family.config in known, name
        assert f"{name} ({family.help})" in families.describe()
    with pytest.raises(ValueError, match="'mamba' are unknown; choose from hf, gguf"):
        families.convert("mamba", "in", "out")
