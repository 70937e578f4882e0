"""Snapshots: one file that keeps parameters and what they are."""

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from nim4_jax.weights import snapshot

RNG = np.random.default_rng(0)
PARAMS = {
    "encoder": {"layer": {"kernel": RNG.normal(size=(3, 4)).astype(np.float32)}},
    "cmvn": {"mean": RNG.normal(size=(2, 2)).astype(np.float32)},
    "head": {"bias": RNG.normal(size=4).astype(np.float32)},
}
META = {"stage": "stage1", "steps": 3, "text": "好"}


def test_full_precision_comes_back_bit_for_bit(tmp_path):
    """Nested parameters and facts, as they were."""
    path = str(tmp_path / "deep" / "model.safetensors")
    snapshot.write(path, PARAMS, META)
    params, meta = snapshot.read(path)
    assert meta == META
    assert set(params) == set(PARAMS)
    kernel = params["encoder"]["layer"]["kernel"]
    np.testing.assert_array_equal(kernel, PARAMS["encoder"]["layer"]["kernel"])
    np.testing.assert_array_equal(params["head"]["bias"], PARAMS["head"]["bias"])
    assert not list(tmp_path.rglob("*.tmp"))


def test_others_may_read_what_others_may_read(tmp_path):
    """A release or a snapshot has the permissions that any new file has."""
    path, plain = tmp_path / "model.safetensors", tmp_path / "plain"
    plain.touch()
    snapshot.write(str(path), PARAMS, META)
    assert path.stat().st_mode == plain.stat().st_mode


def test_bfloat16_halves_matrices_only(tmp_path):
    """Kernels are rounded; vectors and feature statistics keep every bit."""
    path = str(tmp_path / "model.safetensors")
    snapshot.write(path, PARAMS, META, dtype="bfloat16")
    params, _ = snapshot.read(path)
    kernel = PARAMS["encoder"]["layer"]["kernel"]
    rounded = kernel.astype(ml_dtypes.bfloat16).astype(np.float32)
    got = params["encoder"]["layer"]["kernel"]
    np.testing.assert_array_equal(got, rounded)
    assert got.dtype == np.float32 and not np.array_equal(got, kernel)
    np.testing.assert_array_equal(params["cmvn"]["mean"], PARAMS["cmvn"]["mean"])
    np.testing.assert_array_equal(params["head"]["bias"], PARAMS["head"]["bias"])


def test_halves_come_back_as_float32(tmp_path):
    """Imported weights are stored as they came, and computed with in float32."""
    path = str(tmp_path / "model.safetensors")
    for dtype in (np.float16, ml_dtypes.bfloat16):
        bias = PARAMS["head"]["bias"].astype(dtype)
        snapshot.write(path, {"head": {"bias": bias}}, META)
        params, _ = snapshot.read(path)
        assert params["head"]["bias"].dtype == np.float32
        np.testing.assert_array_equal(params["head"]["bias"], bias.astype(np.float32))


def test_missing_cut_off_and_foreign_files_are_named(tmp_path):
    """Each error begins with the path."""
    missing = str(tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match=r"none\.safetensors.*missing or cut off"):
        snapshot.read(missing)
    path = tmp_path / "model.safetensors"
    snapshot.write(str(path), PARAMS, META)
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(ValueError, match=r"model\.safetensors.*missing or cut off"):
        snapshot.read(str(path))
    foreign = str(tmp_path / "other.safetensors")
    safetensors.numpy.save_file({"a": np.zeros(2)}, foreign)
    with pytest.raises(ValueError, match=r"other\.safetensors is no snapshot"):
        snapshot.read(foreign)


@pytest.mark.parametrize("meta", ["{", "[" * 100_000, "[]", '"x"'])
def test_a_damaged_header_is_named(tmp_path, meta):
    path = str(tmp_path / "model.safetensors")
    snapshot.write(path, PARAMS, META)
    (key,) = snapshot.header(META)
    safetensors.numpy.save_file({"a": np.zeros(2)}, path, {key: meta})
    with pytest.raises(ValueError, match=r"model\.safetensors: its header is damaged"):
        snapshot.read(path)


@pytest.mark.parametrize("names", [("a", "a/b"), ("a/b", "a/b/c")])
def test_a_tensor_within_another_is_named(tmp_path, names):
    path = str(tmp_path / "model.safetensors")
    arrays = {name: np.zeros(2, np.float32) for name in names}
    safetensors.numpy.save_file(arrays, path, snapshot.header(META))
    with pytest.raises(ValueError, match=r"model\.safetensors: .*another tensor"):
        snapshot.read(path)


def test_an_object_store_holds_snapshots_too(object_store):
    """gs://: the same parameters and facts; a missing one is named."""
    path = "gs://bucket/runs/model.safetensors"
    snapshot.write(path, PARAMS, META)
    params, meta = snapshot.read(path)
    assert meta == META and object_store.exists(path)
    np.testing.assert_array_equal(params["head"]["bias"], PARAMS["head"]["bias"])
    with pytest.raises(ValueError, match=r"other\.safetensors cannot be read"):
        snapshot.read("gs://bucket/runs/other.safetensors")
