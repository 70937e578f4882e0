"""Law 1 for the convolutional subsampling."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given
from hypothesis import strategies as st

from nim4_jax.layers import Policy
from nim4_jax.models.subsampling import OVERLAP, STRIDE, Subsampling
from nim4_jax.types import Frames

MELS, WIDTH, LENGTH = 16, 8, 48
MODULE = Subsampling(WIDTH, MELS, 4, Policy())


@functools.cache
def make_params():
    """Random parameters; the bias shows whether padding leaks."""
    rng = np.random.default_rng(1)
    frames = make_frames(0, [LENGTH])
    shapes = nn.unbox(jax.eval_shape(MODULE.init, jax.random.key(0), frames))
    return jax.tree.map(lambda x: np.float32(0.3 * rng.normal(size=x.shape)), shapes)


apply = jax.jit(lambda params, frames: MODULE.apply(params, frames).masked())


@jax.jit
def apply_cut(params, frames):
    """One piece with the feature frames that its last window needs."""
    return MODULE.apply(params, frames, method="cut").masked()


def whole(frames: Frames) -> Frames:
    """The full pass."""
    return apply(make_params(), frames)


def make_frames(seed: int, lengths: list[int], length: int = LENGTH) -> Frames:
    """Normal features, NaN behind each length."""
    values = np.random.default_rng(seed).normal(size=(len(lengths), length, MELS))
    mask = np.arange(length)[None] < np.asarray(lengths)[:, None]
    return Frames(np.where(mask[..., None], values, np.nan).astype(np.float32), mask)


def stream(frames: Frames, cuts: list[int]) -> Frames:
    """Pieces of `cuts` groups of 4 feature frames, and the overlap behind each."""
    pads = ((0, 0), (0, OVERLAP))
    values = np.pad(frames.values, (*pads, (0, 0)), constant_values=np.nan)
    frames = Frames(values, np.pad(frames.mask, pads))
    outputs, place = [], 0
    for groups in cuts:
        take = slice(place * STRIDE, (place + groups) * STRIDE + OVERLAP)
        piece = Frames(frames.values[:, take], frames.mask[:, take])
        outputs.append(apply_cut(make_params(), piece))
        place += groups
    return jax.tree.map(lambda *leaves: np.concatenate(leaves, axis=1), *outputs)


@st.composite
def compositions(draw, total: int) -> list[int]:
    """Piece sizes, in groups of 4 feature frames, that add up to the total."""
    cuts = []
    while (left := total - sum(cuts)) > 0:
        cuts.append(draw(st.integers(1, min(3, left))))
    return cuts


@given(
    seed=st.integers(0, 99),
    lengths=st.lists(st.integers(0, LENGTH), min_size=2, max_size=2),
    cuts=compositions(LENGTH // STRIDE),
)
def test_pieces_equal_the_whole(seed, lengths, cuts):
    """Law 1: pieces that overlap by what a window sees, any number of groups."""
    frames = make_frames(seed, lengths)
    expected, got = whole(frames), stream(frames, cuts)
    np.testing.assert_array_equal(got.mask, expected.mask)
    np.testing.assert_allclose(got.values, expected.values, atol=1e-5)


@pytest.mark.parametrize("length, frames", [(1, 1), (4, 1), (5, 2), (47, 12), (48, 12)])
def test_every_feature_frame_is_covered(length, frames):
    """⌈T/4⌉ valid frames: no speech is dropped at the end."""
    assert int(whole(make_frames(0, [length])).lengths()[0]) == frames


def test_nan_behind_the_mask_is_harmless():
    """Outputs and parameter gradients are those of zeros behind the mask."""
    dirty = make_frames(3, [0, 30])

    def grade(params, frames):
        return jnp.sum(jnp.square(apply(params, frames).values))

    clean = dataclasses.replace(dirty, values=np.nan_to_num(dirty.values))
    gradient = jax.jit(jax.grad(grade))
    jax.tree.map(
        np.testing.assert_array_equal,
        gradient(make_params(), dirty),
        gradient(make_params(), clean),
    )
    jax.tree.map(np.testing.assert_array_equal, whole(dirty), whole(clean))


def test_a_piece_must_end_with_a_window():
    """The error names the length and what to feed."""
    with pytest.raises(ValueError, match=r"6 feature frames.*4·n \+ 3"):
        apply_cut(make_params(), make_frames(0, [6], 6))
