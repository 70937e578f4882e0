"""Checksums: one flipped bit shows, and where an array lies does not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from nim4_jax.train.checkpoints import checksums

DTYPES = ("float32", "bfloat16", "int32", "int8", "bool")


def draw(shape, dtype, seed):
    """Random bits of a dtype."""
    bits = np.random.default_rng(seed).integers(0, 256, (*shape, 4), np.uint8)
    dtype = jnp.dtype(dtype)
    if dtype.kind == "b":
        return bits[..., 0] > 127
    return np.ascontiguousarray(bits[..., : dtype.itemsize]).view(dtype)[..., 0]


@given(
    st.lists(st.integers(1, 5), max_size=4),
    st.sampled_from(DTYPES),
    st.integers(0, 10**6),
)
def test_any_flipped_bit_changes_the_sum(shape, dtype, seed):
    array = draw(shape, dtype, seed)
    before = checksums.sum_leaves({"a": array})
    rng = np.random.default_rng(seed)
    changed = array.copy().reshape(-1)
    place = rng.integers(changed.size)
    if dtype == "bool":
        changed[place] = not changed[place]
    else:
        seen = changed.view(np.uint8)
        at = place * changed.dtype.itemsize + rng.integers(changed.dtype.itemsize)
        seen[at] ^= np.uint8(1 << rng.integers(8))
    assert checksums.sum_leaves({"a": changed.reshape(shape)}) != before


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("spec", [(), ("x",), ("y", "x"), (("x", "y"), None)])
def test_host_device_and_sharding_agree(spec, dtype):
    """NumPy's sum, one device's and that of a (4, 2) mesh."""
    array = draw((8, 4, 3), dtype, 1)
    expected = checksums.sum_leaves({"a": array})
    mesh = jax.make_mesh((4, 2), ("x", "y"))
    placed = jax.device_put(array, NamedSharding(mesh, PartitionSpec(*spec)))
    assert checksums.sum_leaves({"a": placed}) == expected
    assert checksums.sum_leaves({"a": jnp.asarray(array)}) == expected


def test_places_count():
    """Two elements that change places are another array."""
    array = np.arange(6.0, dtype=np.float32).reshape(2, 3)
    sums = [
        checksums.sum_leaves({"a": other})["a"]
        for other in (array, array[::-1], array[:, ::-1], array[:, [1, 0, 2]])
    ]
    assert len(set(sums)) == len(sums)


def test_leaves_are_named_by_path():
    """Keys, tuples and fields alike."""
    tree = {"a": ({"b/c": np.zeros(2, np.float32)}, np.zeros((), np.int32))}
    assert list(checksums.sum_leaves(tree)) == ["a/0/b/c", "a/1"]
