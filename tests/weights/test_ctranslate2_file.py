"""CTranslate2's model.bin: every tensor, and files that are cut off or damaged.

tests/goldens/make_whisper.py had CTranslate2 write the files whisper_*.bin; others are
written here. That a Whisper comes out of them is for test_whisper.py.
"""

import itertools
import struct
import tracemalloc
from pathlib import Path

import hypothesis
import ml_dtypes
import numpy as np
import pytest
from hypothesis import strategies as st

from nim4_jax.weights.ctranslate2_file import CTranslate2File

FOLDER = Path(__file__).parents[1] / "goldens"
CODES = ("float32", "int8", "int16", "int32", "float16", "bfloat16")
GOLDENS = dict(np.load(FOLDER / "whisper.npz"))
FIRST = "encoder/layer_0/ffn/linear_1/weight"
ALIAS = "encoder/layer_1/ffn/linear_1/weight"
TENSORS = {
    "a/bias": np.arange(5, dtype=np.float16),
    "a/weight": np.arange(-10, 10, dtype=np.int8).reshape(5, 4),
    "a/weight_scale": np.array([1, 2, 4, 8, 16], np.float32),
    "b/count": np.array(7, np.int16),
    "b/empty": np.zeros((0, 3), np.float32),
    "c/all": np.arange(12, dtype=np.int16).reshape(2, 2, 3),
    "c/all_scale": np.array(4, np.float32),
    "d/scale": np.ones(3, ml_dtypes.bfloat16),
    "e/ids": np.arange(6, dtype=np.int32),
}
ALIASES = {"z/weight": "a/weight", "z/ids": "e/ids"}


def text(name):
    """A name as the file holds it."""
    raw = name.encode()
    return struct.pack("<H", len(raw) + 1) + raw + b"\0"


def encode(tensors, aliases=None, spec="WhisperSpec", revision=3):
    """Bytes of a file, and the places in it that are no tensor's content."""
    raw = struct.pack("<I", 6) + text(spec)
    raw += struct.pack("<II", revision, len(tensors))
    header = list(range(len(raw)))
    for name, array in tensors.items():
        entry = text(name) + struct.pack(
            f"<B{array.ndim}IBI",
            array.ndim,
            *array.shape,
            CODES.index(array.dtype.name),
            array.nbytes,
        )
        header += range(len(raw), len(raw) + len(entry))
        raw += entry + array.tobytes()
    end = struct.pack("<I", len(aliases or {}))
    for alias, name in (aliases or {}).items():
        end += text(alias) + text(name)
    header += range(len(raw), len(raw) + len(end))
    return raw + end, header


RAW, HEADER = encode(TENSORS, ALIASES)


def write(folder, raw):
    """A file of these bytes."""
    path = folder / "model.bin"
    path.write_bytes(raw)
    return str(path)


def read_all(paths):
    """Every tensor of a file."""
    file = CTranslate2File(paths)
    return {name: file.get(name) for name in file.specs}


def test_every_kind_of_tensor_is_read(tmp_path):
    """Plain ones to the bit, quantised ones over their scales, aliases as both."""
    file = CTranslate2File([write(tmp_path, RAW)])
    assert (file.spec, file.revision) == ("WhisperSpec", 3)
    for name in ("a/bias", "b/count", "b/empty", "d/scale", "e/ids"):
        got = file.get(name)
        assert got.dtype == TENSORS[name].dtype
        np.testing.assert_array_equal(got, TENSORS[name])
    rows = TENSORS["a/weight"] / TENSORS["a/weight_scale"][:, None]
    np.testing.assert_array_equal(file.get("a/weight"), rows)
    np.testing.assert_array_equal(file.get("z/weight", 1, 4), rows[1:4])
    np.testing.assert_array_equal(file.get("c/all", 1), TENSORS["c/all"][1:] / 4)
    np.testing.assert_array_equal(file.get("z/ids", 2), [2, 3, 4, 5])
    assert file.is_quantised("z/weight") and not file.is_quantised("a/bias")
    assert file.specs.keys() == (TENSORS.keys() | ALIASES.keys()) - {
        "a/weight_scale",
        "c/all_scale",
    }
    assert file.specs["z/weight"] == ((5, 4), np.float32)


@pytest.mark.parametrize(
    ("quantisation", "bound"),
    [("float16", 5e-4), ("int8", 5e-3), ("int8_float16", 5e-3), ("int16", 1e-3)],
)
def test_what_ctranslate2_wrote_is_read(quantisation, bound):
    """Its own files: a matrix, a convolution and an alias of a quantised matrix."""
    file = CTranslate2File([str(FOLDER / f"whisper_{quantisation}.bin")])
    theirs = "weights/model.encoder."
    for name, expected in (
        ("encoder/conv2/weight", "conv2.weight"),
        (FIRST, "layers.0.fc2.weight"),
        (ALIAS, "layers.1.fc2.weight"),
        ("encoder/layer_norm/gamma", "layer_norm.weight"),
    ):
        difference = file.get(name).astype(np.float32) - GOLDENS[theirs + expected]
        assert np.abs(difference).max() <= bound
    assert file.get("encoder/num_heads") == 2
    assert not [name for name in file.specs if name.endswith("_scale")]


@pytest.mark.parametrize("cuts", [(0,), (1,), (60,), (100, 101), (200, 300, 400)])
def test_pieces_are_one_file(tmp_path, cuts):
    """Cut anywhere, within a name or a tensor."""
    paths = []
    bounds = [0, *cuts, len(RAW)]
    for number, (low, high) in enumerate(itertools.pairwise(bounds)):
        path = tmp_path / f"model.bin.part{number + 1}"
        path.write_bytes(RAW[low:high])
        paths.append(str(path))
    whole = read_all([write(tmp_path, RAW)])
    for name, array in read_all(paths).items():
        np.testing.assert_array_equal(array, whole[name])


def test_any_cut_is_refused(tmp_path):
    """Every length below the whole, and anything after it."""
    path = tmp_path / "model.bin"
    for size in range(len(RAW)):
        path.write_bytes(RAW[:size])
        with pytest.raises(ValueError, match=r"model\.bin"):
            CTranslate2File([str(path)])
    path.write_bytes(RAW + b"\0")
    with pytest.raises(ValueError, match="1 bytes are left over"):
        CTranslate2File([str(path)])


@hypothesis.settings(max_examples=400)
@hypothesis.given(place=st.sampled_from(HEADER), flips=st.integers(1, 255))
def test_a_damaged_table_is_an_error_or_harmless(tmp_path_factory, place, flips):
    """Whatever byte is hit: an error that names the file, or some table; no crash."""
    raw = bytearray(RAW)
    raw[place] ^= flips
    path = write(tmp_path_factory.mktemp("damaged"), bytes(raw))
    try:
        read_all([path])
    except ValueError as error:
        assert path in str(error)


@hypothesis.settings(max_examples=200)
@hypothesis.given(
    start=st.sampled_from([b"", RAW[:4], RAW[:18], RAW[:22], RAW[:26]]),
    rest=st.binary(max_size=300),
)
def test_noise_takes_little_memory(tmp_path_factory, start, rest):
    """An error that names the file, or no tensors: numbers are no sizes of buffers."""
    path = write(tmp_path_factory.mktemp("noise"), start + rest)
    tracemalloc.start()
    try:
        assert not CTranslate2File([path]).specs
    except ValueError as error:
        assert path in str(error)
    finally:
        assert tracemalloc.get_traced_memory()[1] < 2**21
        tracemalloc.stop()


def with_tensor(**changes):
    return TENSORS | {name.replace("__", "/"): array for name, array in changes.items()}


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (struct.pack("<I", 7) + RAW[4:], "begins with version 7, expected 6"),
        (RAW.replace(b"b/count", b"a/bias\0"), "does not end with its one NUL"),
        (RAW.replace(b"b/count", b"b/c\xff\xff\xff\xff"), "no UTF-8"),
        (RAW.replace(b"b/empty", b"b/count"), "b/count comes a second time"),
        (RAW.replace(b"z/ids", b"e/ids"), "e/ids comes a second time"),
        (encode(TENSORS, {"y": "x"})[0], "y stands for x, which is not there"),
        (
            encode(with_tensor(a__weight_scale=np.ones(4, np.float32)))[0],
            r"a/weight_scale is float32 \(4,\) beside int8 \(5, 4\)",
        ),
        (
            encode(with_tensor(a__weight_scale=np.ones(5, np.float16)))[0],
            "a/weight_scale is float16",
        ),
        (
            encode(with_tensor(a__bias_scale=np.ones(5, np.float32)))[0],
            "beside float16",
        ),
        (
            encode(with_tensor(a__weight_scale=np.zeros(5, np.float32)))[0],
            "numbers that are not above 0",
        ),
    ],
)
def test_damage_is_named(tmp_path, raw, message):
    """What is wrong, and where."""
    with pytest.raises(ValueError, match=message):
        read_all([write(tmp_path, raw)])


def test_what_is_not_there_is_named(tmp_path):
    """No file, a folder, and a file that shrinks while it is open."""
    for path in (tmp_path / "none.bin", tmp_path):
        with pytest.raises(ValueError, match=f"{path} is no file"):
            CTranslate2File([str(path)])
    path = write(tmp_path, RAW)
    file = CTranslate2File([path])
    write(tmp_path, RAW[:50])
    with pytest.raises(ValueError, match="became shorter"):
        file.get("a/bias")
    Path(path).unlink()
    with pytest.raises(ValueError, match="cannot be read"):
        file.get("a/bias")
