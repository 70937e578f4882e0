"""Law 1 for the adaptor: pieces of whole groups are the whole."""

import dataclasses
import functools

import jax
import numpy as np
from flax import linen as nn
from hypothesis import given
from hypothesis import strategies as st

from nim4_jax.layers import Policy
from nim4_jax.models.adaptor import Adaptor
from nim4_jax.types import Frames

WIDTH, LENGTH, STRIDE = 6, 24, 4
MODULE = Adaptor(WIDTH, 10, 5, STRIDE, Policy())
apply = jax.jit(MODULE.apply)


def make_frames(seed: int, lengths: list[int], size: int = LENGTH) -> Frames:
    """Normal frames, NaN behind each length."""
    values = np.random.default_rng(seed).normal(size=(len(lengths), size, WIDTH))
    mask = np.arange(size)[None] < np.asarray(lengths)[:, None]
    return Frames(np.where(mask[..., None], values, np.nan).astype(np.float32), mask)


@functools.cache
def make_params():
    """Random parameters, biases too."""
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(MODULE.init, jax.random.key(0), make_frames(0, [4], 4))
    return jax.tree.map(
        lambda leaf: np.float32(rng.normal(size=leaf.shape)), nn.unbox(shapes)
    )


@given(
    seed=st.integers(0, 99),
    lengths=st.lists(st.integers(0, LENGTH), min_size=2, max_size=2),
    cuts=st.permutations([4, 8, 12]),
)
def test_pieces_equal_the_whole(seed, lengths, cuts):
    """Groups of 4 do not overlap, so a stream needs no state; NaN never leaks."""
    frames = make_frames(seed, lengths)
    expected = apply(make_params(), frames)
    pieces, place = [], 0
    for count in cuts:
        part = jax.tree.map(lambda x, s=slice(place, place + count): x[:, s], frames)
        pieces.append(apply(make_params(), part))
        place += count
    got = jax.tree.map(lambda *leaves: np.concatenate(leaves, axis=1), *pieces)
    np.testing.assert_array_equal(got.mask, expected.mask)
    np.testing.assert_allclose(got.values, expected.values, atol=1e-5)
    assert np.isfinite(expected.values).all()


def test_a_group_that_is_not_full_counts():
    """⌈U/4⌉ speech tokens; the missing frames are zeros, wherever the padding ends."""
    short, long = make_frames(3, [6], 6), make_frames(3, [6], 6)
    pad = ((0, 0), (0, 5))
    long = Frames(
        np.pad(long.values, (*pad, (0, 0)), constant_values=np.nan),
        np.pad(long.mask, pad),
    )
    first, second = apply(make_params(), short), apply(make_params(), long)
    assert first.mask.tolist() == [[True, True]]
    assert second.mask.tolist() == [[True, True, False]]
    np.testing.assert_allclose(first.values, second.values[:, :2], atol=1e-6)
    assert STRIDE == 4


def test_nan_behind_the_mask_has_no_gradient():
    """Parameter gradients are those of zeros behind the mask."""
    dirty = make_frames(4, [9, 0])
    clean = dataclasses.replace(dirty, values=np.nan_to_num(dirty.values))
    slope = jax.jit(jax.grad(lambda p, f: (apply(p, f).values ** 2).sum()))
    jax.tree.map(
        np.testing.assert_array_equal,
        slope(make_params(), dirty),
        slope(make_params(), clean),
    )
