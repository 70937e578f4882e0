"""Cutting recordings and gathering batches loses nothing."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nim4_jax.decode import segments

RATE = 16_000


def cut_into_blocks(samples, sizes):
    """Blocks of the given sizes, in turns."""
    place, number = 0, 0
    while place < len(samples):
        size = sizes[number % len(sizes)]
        yield samples[place : place + size]
        place, number = place + size, number + 1


@given(
    seed=st.integers(0, 2**31),
    length=st.integers(0, 4 * RATE),
    sizes=st.lists(st.integers(1000, 30_000), min_size=1, max_size=4),
    limit=st.floats(0.4, 2.0),
)
def test_segments_are_the_recording_whatever_the_blocks(seed, length, sizes, limit):
    samples = np.random.default_rng(seed).normal(0, 0.1, length).astype(np.float32)
    found = list(segments.cut(cut_into_blocks(samples, sizes), limit))
    whole = list(segments.cut([samples] if length else [], limit))
    joined = [segment.samples for segment in found]
    np.testing.assert_array_equal(np.concatenate([*joined, samples[:0]]), samples)
    assert [s.start for s in found] == [s.start for s in whole]
    assert all(0 < len(s.samples) <= round(limit * RATE) for s in found)
    starts = np.cumsum([0, *(len(s.samples) for s in found)]) / RATE
    assert [s.start for s in found] == pytest.approx(starts[:-1].tolist())


def test_the_cut_is_in_the_pause():
    random = np.random.default_rng(0)
    speech = random.normal(0, 0.1, 5 * RATE).astype(np.float32)
    speech[int(2.3 * RATE) : int(2.5 * RATE)] *= 0.01
    first, second = segments.cut([speech], 3.0)
    assert 2.3 < second.start < 2.5
    assert len(first.samples) + len(second.samples) == len(speech)


def test_an_endless_recording_is_cut_as_it_comes():
    taken = 0

    def play():
        nonlocal taken
        while True:
            taken += 1
            yield np.zeros(RATE, np.float32)

    stream = segments.cut(play(), 2.0)
    for number in range(1, 101):
        assert len(next(stream).samples) <= 2 * RATE
        assert taken <= 2 * number + 2


def test_a_limit_too_short_to_cut_in_is_refused():
    with pytest.raises(ValueError, match=r"0\.4 s"):
        list(segments.cut([np.zeros(RATE, np.float32)], 0.1))


@given(st.lists(st.integers(1, 3200), max_size=20))
def test_every_piece_comes_out_once_in_a_shape_that_holds_it(lengths):
    batcher = segments.Batcher((0.05, 0.2), (3, 2))
    pieces = [np.full(length, number + 1.0) for number, length in enumerate(lengths)]
    batches = [b for key, piece in enumerate(pieces) for b in batcher.add(key, piece)]
    batches += list(batcher.flush())
    assert sorted(key for batch in batches for key in batch.keys) == list(
        range(len(pieces))
    )
    for batch in batches:
        values, mask = np.asarray(batch.audio.values), np.asarray(batch.audio.mask)
        assert values.shape in [(3, 800), (2, 3200)]
        for row, key in enumerate(batch.keys):
            np.testing.assert_array_equal(values[row][mask[row]], pieces[key])
        assert not mask[len(batch.keys) :].any()


def test_a_piece_longer_than_every_shape_is_refused():
    batcher = segments.Batcher((0.1,), (2,))
    with pytest.raises(ValueError, match=r"0\.1 s; cut it first"):
        list(batcher.add("a.wav", np.zeros(1601)))
