"""Whisper's encoder: the reference's numbers from every kind of file, and bad files.

The numbers, and CTranslate2's files, are the goldens of tests/goldens/make_whisper.py.
"""

import dataclasses
import functools
import json
import os
import shutil
from pathlib import Path

import hypothesis
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import strategies as st

from nim4_jax.configs import base
from nim4_jax.features import WhisperFeatures
from nim4_jax.layers import Policy
from nim4_jax.model_files import loading
from nim4_jax.models import whisper_encoder
from nim4_jax.models.whisper_encoder import WhisperEncoderConfig
from nim4_jax.ops.chunking import Chunking
from nim4_jax.train import optim
from nim4_jax.types import Frames
from nim4_jax.weights import conversion, families, rules, tensor_file, whisper
from nim4_jax.weights.ctranslate2_file import CTranslate2File

FOLDER = Path(__file__).parents[1] / "goldens"
GOLDENS = dict(np.load(FOLDER / "whisper.npz"))
PREFIX = "weights/"
WEIGHTS = {
    name.removeprefix(PREFIX): array
    for name, array in GOLDENS.items()
    if name.startswith(PREFIX)
}
CONFIG = WhisperEncoderConfig(
    num_layers=2, width=16, num_heads=2, num_mels=8, max_frames=24
)
FACTS = {
    "model_type": "whisper",
    "activation_function": "gelu",
    "num_mel_bins": 8,
    "d_model": 16,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "max_source_positions": 24,
}
BINARY = (FOLDER / "whisper_float16.bin").read_bytes()
POLICY = Policy()
TOLERANCE = 1e-4
SIZES = {
    "tiny": (4, 384, 6, 80, 7_632_384),
    "base": (6, 512, 8, 80, 19_822_592),
    "small": (12, 768, 12, 80, 87_002_112),
    "medium": (24, 1024, 16, 80, 305_680_384),
    "large-v2": (32, 1280, 20, 80, 634_864_640),
    "large-v3": (32, 1280, 20, 128, 635_048_960),
}


def write_folder(folder, weights=None, prefix="model.", shards=1, **facts):
    """A Hugging Face folder with the goldens' weights."""
    os.makedirs(folder)
    (folder / "config.json").write_text(json.dumps(FACTS | facts))
    tensors = {
        prefix + name.removeprefix("model."): np.ascontiguousarray(array)
        for name, array in (WEIGHTS if weights is None else weights).items()
    }
    if shards == 1:
        safetensors.numpy.save_file(tensors, folder / tensor_file.SINGLE)
        return
    places = {}
    for shard in range(shards):
        name = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = {key: tensors[key] for key in sorted(tensors)[shard::shards]}
        safetensors.numpy.save_file(part, folder / name)
        places |= dict.fromkeys(part, name)
    (folder / tensor_file.INDEX).write_text(json.dumps({"weight_map": places}))


def write_binary(folder, raw=BINARY, **beside):
    """A CTranslate2 folder; `beside` are contents of JSON files by their names."""
    os.makedirs(folder)
    (folder / whisper.BINARY).write_bytes(raw)
    for name, facts in beside.items():
        (folder / f"{name}.json").write_text(json.dumps(facts))


@functools.cache
def shapes_of(config):
    """`encoder_shapes`, once for each config."""
    return conversion.encoder_shapes(config)


def load(source):
    """Every parameter of ours, float32, by its path."""
    shapes = shapes_of(source.config)
    moves = rules.plan(whisper.RULES, shapes)
    given = {name: shape for name, (shape, _) in source.specs.items()}
    rules.check_names(moves, given, source.origin, source.is_ignored)
    rules.check_shapes(moves, given, source.origin)
    whisper.check_positions(source)
    flat = {path: np.zeros(shape, np.float32) for path, shape in shapes.items()}
    for move in moves:
        array = move.to_ours(source.get(move.theirs))
        flat[move.ours][... if move.layer is None else move.layer] = array
    return flat


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The goldens' parameters in our layout."""
    folder = tmp_path_factory.mktemp("whisper") / "hf"
    write_folder(folder)
    source = whisper.open_weights(str(folder))
    assert source.config == CONFIG
    return load(source)


def assert_close(got, golden):
    """Largest difference."""
    assert np.abs(np.asarray(got) - GOLDENS[golden]).max() <= TOLERANCE


def test_the_encoder_gives_the_references_numbers(expected):
    """Stem, each sub-layer, each block, and the whole."""
    params = jax.tree.map(jnp.asarray, optim.unflatten(expected)["encoder"])
    values = jnp.asarray(GOLDENS["features"])
    features = Frames(values, jnp.ones(values.shape[:2], bool))
    model = whisper_encoder.WhisperEncoder(CONFIG, POLICY)
    stem = model.apply({"params": params}, features, method=lambda m, x: m.stem(x))
    assert_close(stem.values, "stem")
    batch, length, _ = stem.values.shape
    table = whisper_encoder.sinusoids(length, CONFIG.width)
    assert_close(stem.values + table[None], "embedded")
    context = whisper_encoder.BlockContext(
        stem.mask, jnp.ones((batch, length, length), bool)
    )
    cache = jax.tree.map(lambda leaf: leaf[0], model.init_state(batch, 0).blocks)
    x = jnp.asarray(GOLDENS["embedded"])
    for index in range(CONFIG.num_layers):
        own = jax.tree.map(lambda leaf, i=index: leaf[i], params["stack"]["blocks"])
        attended, _ = whisper_encoder.Attention(CONFIG, POLICY).apply(
            {"params": own["attention"]}, x, cache, context, True
        )
        assert_close(attended, f"attention{index}")
        middle = jnp.asarray(GOLDENS[f"attention{index}"])
        fed = whisper_encoder.FeedForward(CONFIG, POLICY).apply(
            {"params": own["ffn"]}, middle, True
        )
        assert_close(fed, f"block{index}")
        block, _ = whisper_encoder.Block(CONFIG, POLICY).apply(
            {"params": own}, x, cache, context
        )
        assert_close(block, f"block{index}")
        x = jnp.asarray(GOLDENS[f"block{index}"])
    whole = model.apply({"params": params}, features, Chunking.full())
    assert_close(whole.values, "output")


@pytest.mark.parametrize(
    ("prefix", "shards", "dtype"),
    [
        ("model.", 1, np.float32),
        ("", 1, np.float32),
        ("model.", 3, np.float16),
        ("", 2, ml_dtypes.bfloat16),
    ],
)
def test_a_hugging_face_folder_is_imported(tmp_path, expected, prefix, shards, dtype):
    """A snapshot of the encoder, to the bit, that can be loaded in float32."""
    weights = {name: array.astype(dtype) for name, array in WEIGHTS.items()}
    write_folder(tmp_path / "theirs", weights, prefix, shards)
    count = families.convert(
        "whisper", str(tmp_path / "theirs"), str(tmp_path / "ours")
    )
    assert count == sum(array.size for array in expected.values())
    path = tmp_path / "ours" / conversion.MODEL
    params, meta = loading.load_model(str(path))
    assert meta["model"] == {
        "features": dataclasses.asdict(WhisperFeatures(num_mels=8)),
        "encoder": dataclasses.asdict(CONFIG),
    }
    rest = base.get_config("nano").model.to_dict()
    built = loading.build_model_config(rest | meta["model"])
    assert built.encoder == CONFIG and isinstance(built.features, WhisperFeatures)
    flat = optim.flatten(params)
    np.testing.assert_array_equal(flat.pop("cmvn/mean"), np.zeros(8, np.float32))
    np.testing.assert_array_equal(flat.pop("cmvn/scale"), np.ones(8, np.float32))
    assert flat.keys() == expected.keys()
    for name, array in expected.items():
        assert flat[name].dtype == np.float32
        rounded = array.astype(dtype).astype(np.float32)
        np.testing.assert_array_equal(flat[name], rounded)


@pytest.mark.parametrize(
    ("quantisation", "bound"),
    [("float16", 5e-4), ("int8", 5e-3), ("int8_float16", 5e-3), ("int16", 1e-3)],
)
def test_what_ctranslate2_wrote_is_imported(tmp_path, expected, quantisation, bound):
    """Its files give the same parameters, but for what rounding took."""
    raw = (FOLDER / f"whisper_{quantisation}.bin").read_bytes()
    write_binary(
        tmp_path / "theirs",
        raw,
        config={"suppress_ids": [1]},
        preprocessor_config={"feature_size": 8},
    )
    families.convert("whisper", str(tmp_path / "theirs"), str(tmp_path / "ours"))
    params, meta = loading.load_model(str(tmp_path / "ours" / conversion.MODEL))
    assert WhisperEncoderConfig(**meta["model"]["encoder"]) == CONFIG
    flat = optim.flatten({"encoder": params["encoder"]})
    assert flat.keys() == expected.keys()
    for name, array in expected.items():
        assert np.abs(flat[name] - array).max() <= bound


def test_a_path_is_a_folder_a_file_or_pieces(tmp_path, expected):
    """All ways to name the weights lead to the same."""
    write_binary(tmp_path / "whole")
    write_folder(tmp_path / "hf")
    os.makedirs(tmp_path / "cut")
    for number, part in enumerate((BINARY[:9000], BINARY[9000:]), start=1):
        (tmp_path / "cut" / f"{whisper.PIECE}{number}").write_bytes(part)
    ways = ("whole", "whole/model.bin", "cut", "cut/model.bin.part1")
    first = load(whisper.open_weights(str(tmp_path / ways[0])))
    for way in ways[1:]:
        for name, array in load(whisper.open_weights(str(tmp_path / way))).items():
            np.testing.assert_array_equal(array, first[name])
    one = load(whisper.open_weights(str(tmp_path / "hf" / tensor_file.SINGLE)))
    np.testing.assert_equal(one, expected)


@pytest.mark.parametrize("size", SIZES)
def test_the_rules_fit_every_published_size(size):
    """Each tensor of the reference's layers in its shape, and the published count."""
    layers, width, heads, num_mels, count = SIZES[size]
    config = WhisperEncoderConfig(layers, width, heads, num_mels)
    shapes = conversion.encoder_shapes(config)
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == count
    moves = rules.plan(whisper.RULES, shapes)
    assert {rule.ours for rule in whisper.RULES} == set(shapes)
    factor = {8: num_mels, 16: width, 64: 4 * width}  # sizes of the goldens' model
    theirs = {}
    for move in moves:
        array = np.broadcast_to(np.int8(0), move.shape)
        theirs[move.theirs] = move.layout.theirs(array).shape
    for name, array in WEIGHTS.items():
        name = name.removeprefix("model.")
        if "decoder" in name or name == whisper.POSITIONS:
            continue
        expected = tuple(factor.get(size, size) for size in array.shape)
        assert theirs[name] == expected
    assert len(theirs) == 6 + 15 * layers


def without(*names):
    return {name: array for name, array in WEIGHTS.items() if name not in names}


def replaced(name, change):
    return WEIGHTS | {f"model.{name}": change(WEIGHTS[f"model.{name}"])}


CONV = "encoder.conv1.weight"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            {"weights": without("model.encoder.layers.1.fc1.bias")},
            "lacks encoder.layers.1.fc1.bias",
        ),
        (
            {"weights": WEIGHTS | {"model.encoder.more": np.zeros(3, np.float32)}},
            r"holds encoder.more \(3,\), which no rule takes",
        ),
        (
            {"weights": {"model.decoder.x": np.zeros(3, np.float32)}},
            "lacks encoder.conv1.weight: no encoder",
        ),
        ({"num_mel_bins": 128}, "num_mel_bins=128, but the tensors have 8"),
        ({"encoder_layers": 10**9}, "encoder_layers=1000000000, but .* have 2"),
        ({"encoder_ffn_dim": 128}, "encoder_ffn_dim=128, but the tensors have 64"),
        ({"encoder_attention_heads": 3}, "3 heads and .* do not fit"),
        ({"encoder_attention_heads": -2}, "-2 heads and .* do not fit"),
        ({"encoder_attention_heads": "2"}, "'2', expected a number"),
        ({"max_source_positions": 1500}, "max_source_positions=1500"),
        ({"model_type": "qwen2_audio"}, "model_type is 'qwen2_audio'"),
        ({"activation_function": "relu"}, "'relu', not 'gelu'"),
        (
            {"weights": replaced(whisper.POSITIONS, lambda x: x + 0.01)},
            "differs from Whisper's sinusoids by 0.01",
        ),
        (
            {"weights": replaced(whisper.POSITIONS, lambda x: x * np.nan)},
            "differs from Whisper's sinusoids by nan",
        ),
        (
            {"weights": replaced(whisper.POSITIONS, lambda x: x[:-1])},
            "max_source_positions=24, but the tensors have 23",
        ),
        (
            {"weights": replaced(CONV, lambda x: x.swapaxes(1, 2))},
            "num_mel_bins=8, but the tensors have 3",
        ),
        (
            {"weights": replaced(CONV, lambda x: x[..., :2])},
            r"conv1.weight has shape \(16, 8, 2\), expected \(16, 8, 3\)",
        ),
        ({"weights": replaced(CONV, lambda x: x[:, :0])}, "expected 3 sizes above 0"),
        ({"weights": replaced(CONV, lambda x: x.astype(np.int8))}, "is int8, expected"),
    ],
)
def test_a_bad_folder_is_refused(tmp_path, make, message):
    """The reason names the tensor or the key; nothing is left behind."""
    write_folder(tmp_path / "theirs", **make)
    with pytest.raises(ValueError, match=message) as caught:
        families.convert("whisper", str(tmp_path / "theirs"), str(tmp_path / "ours"))
    assert str(tmp_path / "theirs") in str(caught.value)
    assert os.listdir(tmp_path) == ["theirs"]


def cut_weights(folder):
    path = folder / tensor_file.SINGLE
    path.write_bytes(path.read_bytes()[:-100])


def drop_weights(folder):
    os.unlink(folder / tensor_file.SINGLE)
    (folder / "pytorch_model.bin").write_bytes(b"x")


def nest_config(folder):
    (folder / "config.json").write_text("[" * 100_000)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (cut_weights, "corrupt or cut off"),
        (drop_weights, "holds none of model.safetensors"),
        (nest_config, "config.json cannot be read"),
        (lambda f: os.unlink(f / "config.json"), "config.json cannot be read"),
        (lambda f: (f / "config.json").write_text("[]"), "no JSON object"),
        (
            lambda f: (f / "preprocessor_config.json").write_text(
                '{"feature_size": 80}'
            ),
            "preprocessor_config.json says feature_size=80",
        ),
        (shutil.rmtree, "is not there"),
    ],
)
def test_a_damaged_folder_is_refused(tmp_path, harm, message):
    """As above, for what is wrong with the files."""
    write_folder(tmp_path / "theirs")
    harm(tmp_path / "theirs")
    with pytest.raises(ValueError, match=message):
        families.convert("whisper", str(tmp_path / "theirs"), str(tmp_path / "ours"))
    assert not (tmp_path / "ours").exists()


@functools.cache
def find_contents():
    """Places of the tensors' contents in the binary, by their names."""
    file = CTranslate2File([str(FOLDER / "whisper_float16.bin")])
    return {
        name: (place.start, place.start + file.get(name).nbytes)
        for name, place in file._places.items()
    }


def find_table():
    """Places of all other bytes."""
    inside = {n for ends in find_contents().values() for n in range(*ends)}
    return sorted(set(range(len(BINARY))) - inside)


def overwrite(name, content):
    start, end = find_contents()[name]
    return BINARY[:start] + content(BINARY[start:end]) + BINARY[end:]


def rename(old, new):
    assert BINARY.count(old) >= 1 and len(old) == len(new)
    return BINARY.replace(old, new, 1)


def set_dtype(name, code):
    raw = bytearray(BINARY)
    raw[find_contents()[name][0] - 5] = code
    return bytes(raw)


@pytest.mark.parametrize(
    ("raw", "beside", "message"),
    [
        (BINARY[:-1], {}, "ends at"),
        (BINARY[:9000], {}, "ends at 9000"),
        (b"", {}, "ends at 0"),
        (b"PK\3\4" + bytes(4000), {}, "begins with version"),
        (rename(b"WhisperSpec", b"WhimperSpec"), {}, "holds a WhimperSpec"),
        (rename(b"Spec\0\3", b"Spec\0\1"), {}, "revision 1, expected a WhisperSpec"),
        (
            rename(b"encoder/conv1/bias", b"encoder/conv1/bios"),
            {},
            r"lacks encoder.conv1.bias .* holds encoder/conv1/bios \(16,\)",
        ),
        (
            rename(b"encoder/num_heads", b"decoder/num_head_"),
            {},
            "an unknown number of heads",
        ),
        (overwrite("encoder/num_heads", lambda _: b"\3\0"), {}, "3 heads"),
        (set_dtype("encoder/conv2/weight", 5), {}, "conv2/weight is bfloat16"),
        (set_dtype("encoder/conv2/weight", 2), {}, "conv2.weight is int16"),
        (
            overwrite("encoder/position_encodings/encodings", lambda x: bytes(len(x))),
            {},
            "differs from Whisper's sinusoids by 1,",
        ),
        (BINARY, {"preprocessor_config": {"feature_size": 80}}, "feature_size=80"),
        (BINARY, {"config": {"encoder_layers": 3}}, "encoder_layers=3"),
    ],
)
def test_a_bad_binary_is_refused(tmp_path, raw, beside, message):
    """The reason names the file and the tensor; nothing is left behind."""
    write_binary(tmp_path / "theirs", raw, **beside)
    with pytest.raises(ValueError, match=message) as caught:
        families.convert("whisper", str(tmp_path / "theirs"), str(tmp_path / "ours"))
    assert str(tmp_path / "theirs") in str(caught.value)
    assert os.listdir(tmp_path) == ["theirs"]


@hypothesis.settings(max_examples=300)
@hypothesis.given(place=st.sampled_from(find_table()), flips=st.integers(1, 255))
def test_damage_to_the_table_is_named_or_harmless(tmp_path_factory, place, flips):
    """A flipped byte: an error that names the file, or the very same encoder."""
    raw = bytearray(BINARY)
    raw[place] ^= flips
    path = tmp_path_factory.mktemp("damaged") / whisper.BINARY
    path.write_bytes(bytes(raw))
    try:
        found = load(whisper.open_weights(str(path)))
    except ValueError as error:
        assert str(path) in str(error)
        return
    path.write_bytes(BINARY)
    np.testing.assert_equal(found, load(whisper.open_weights(str(path))))
