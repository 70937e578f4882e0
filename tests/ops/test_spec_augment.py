"""SpecAugment: how much may be hidden, and what stays as it was."""

import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nim4_jax.ops import spec_augment
from nim4_jax.ops.spec_augment import SpecAugmentConfig
from nim4_jax.types import Frames

LENGTH, MELS = 120, 20
TIME_ONLY = SpecAugmentConfig(freq_masks=0, time_masks=5, time_width=15)
BANDS_ONLY = SpecAugmentConfig(freq_masks=2, freq_width=6, time_masks=0)

hide = jax.jit(spec_augment.mask_features, static_argnums=2)
warp = jax.jit(spec_augment.warp_time, static_argnums=2)


def make_frames(lengths: list[int], seed: int = 0) -> Frames:
    """Values ≥ 1, so that a hidden 0 is seen; zeros behind the mask."""
    size = (len(lengths), LENGTH, MELS)
    values = np.random.default_rng(seed).uniform(1.0, 2.0, size).astype(np.float32)
    mask = np.arange(LENGTH)[None] < np.asarray(lengths)[:, None]
    return Frames(np.where(mask[..., None], values, np.float32(0.0)), mask)


lengths = st.lists(st.integers(0, LENGTH), min_size=3, max_size=3)


@given(seed=st.integers(0, 9_999), lengths=lengths)
def test_time_masks_never_hide_more_than_their_share(seed, lengths):
    """At most time_fraction of the valid frames, in spans of at most time_width."""
    frames = make_frames(lengths)
    got = hide(jax.random.key(seed), frames, TIME_ONLY)
    hidden = np.all(np.asarray(got.values) == 0, axis=-1) & frames.mask
    for row, length in enumerate(lengths):
        assert hidden[row].sum() <= length * TIME_ONLY.time_fraction
        edges = np.diff(np.pad(hidden[row].astype(int), 1))
        assert np.sum(edges == 1) <= TIME_ONLY.time_masks
    seen = frames.mask & ~hidden
    np.testing.assert_array_equal(np.asarray(got.values)[seen], frames.values[seen])
    np.testing.assert_array_equal(got.mask, frames.mask)


@given(seed=st.integers(0, 9_999))
def test_bands_are_the_same_in_every_frame(seed):
    """At most two bands of at most freq_width channels each, over the whole row."""
    frames = make_frames([LENGTH, 40])
    got = hide(jax.random.key(seed), frames, BANDS_ONLY)
    hidden = np.asarray(got.values) == 0
    for row, length in enumerate((LENGTH, 40)):
        assert (hidden[row, :length] == hidden[row, :1]).all()
        assert hidden[row, 0].sum() <= 2 * BANDS_ONLY.freq_width


def test_enough_is_hidden():
    """Masks fall where speech is: on average a fair part of the allowed share."""
    frames = make_frames([60] * 64)
    got = hide(jax.random.key(0), frames, TIME_ONLY)
    hidden = np.all(np.asarray(got.values)[:, :60] == 0, axis=-1).mean()
    assert 0.08 < hidden < TIME_ONLY.time_fraction


@given(seed=st.integers(0, 9_999), lengths=lengths)
def test_warp_keeps_lengths_and_ends(seed, lengths):
    """Rows of more than two windows are stretched inside, others stay bit for bit."""
    window = 20
    frames = make_frames(lengths)
    got = warp(jax.random.key(seed), frames, window)
    np.testing.assert_array_equal(got.mask, frames.mask)
    values = np.asarray(got.values)
    for row, length in enumerate(lengths):
        if length <= 2 * window:
            kept = slice(0, length)
            np.testing.assert_array_equal(values[row, kept], frames.values[row, kept])
        else:
            np.testing.assert_allclose(values[row, 0], frames.values[row, 0], rtol=1e-6)
            assert values[row, :length].min() >= 1.0 - 1e-6  # no padding mixed in
            assert values[row, :length].max() <= 2.0 + 1e-6


def test_warp_is_monotonic():
    """A ramp in time stays a ramp: frames are stretched, never reordered."""
    ramp = np.broadcast_to(
        np.arange(LENGTH, dtype=np.float32)[None, :, None], (8, LENGTH, 2)
    )
    frames = Frames(ramp, np.ones((8, LENGTH), bool))
    got = np.asarray(warp(jax.random.key(1), frames, 30).values)
    assert (np.diff(got, axis=1) >= -1e-4).all()
    assert np.abs(got - ramp).max(axis=(1, 2)).max() > 1.0
    assert np.abs(got - ramp).max() <= 30.0


def test_nothing_asked_nothing_done():
    """A warp of 0 and no masks leave the features alone."""
    frames = make_frames([LENGTH, 50])
    none = SpecAugmentConfig(warp=0, freq_masks=0, time_masks=0)
    key = jax.random.key(0)
    got = hide(key, warp(key, frames, none.warp), none)
    np.testing.assert_array_equal(got.values, frames.values)


@pytest.mark.parametrize(
    "function, setting", [(hide, SpecAugmentConfig()), (warp, 30)], ids=["hide", "warp"]
)
def test_draws_differ_between_rows_and_keys(function, setting):
    """Every row is augmented on its own."""
    frames = make_frames([LENGTH] * 2)
    same = dataclasses.replace(frames, values=np.repeat(frames.values[:1], 2, axis=0))
    first = np.asarray(function(jax.random.key(0), same, setting).values)
    second = np.asarray(function(jax.random.key(1), same, setting).values)
    assert (first[0] != first[1]).any() and (first != second).any()


@pytest.mark.parametrize(
    "function, setting", [(hide, SpecAugmentConfig()), (warp, 30)], ids=["hide", "warp"]
)
def test_a_row_with_its_key_draws_the_same_in_any_batch(function, setting):
    """Rows 3 and 1 alone, with their keys, are those of the batch, bit for bit."""
    frames = make_frames([LENGTH, 90, 100, 110])
    keys = jax.random.split(jax.random.key(0), 4)
    whole = np.asarray(function(keys, frames, setting).values)
    rows = np.array([3, 1])
    some = jax.tree.map(lambda leaf: leaf[rows], frames)
    got = np.asarray(function(keys[rows], some, setting).values)
    np.testing.assert_array_equal(got, whole[rows])
    with pytest.raises(ValueError, match=r"one key or 4 keys"):
        function(keys[:3], frames, setting)
