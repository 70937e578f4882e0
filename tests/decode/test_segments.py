"""Cutting recordings and gathering batches loses nothing but silence."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nim4_jax.decode import segments
from nim4_jax.decode.endpoint import EndpointConfig

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
    with pytest.raises(ValueError, match=r"0\.4 s"):
        list(cut_speech([], 0.1))


class Loudness:
    """A detector that takes what is loud for speech, and needs a state to do so."""

    frame = 512

    def start(self):
        return 0

    def score(self, state, windows):
        assert windows.shape[1:] == (512,)
        loud = np.abs(windows).mean(axis=1) > 0.01
        return state + len(windows), loud.astype(np.float32)


def make_speech(seed, seconds):
    """Silence and "speech" in turns, silence first."""
    random = np.random.default_rng(seed)
    parts = [
        random.normal(0, 0.1 if number % 2 else 1e-4, round(length * RATE))
        for number, length in enumerate(seconds)
    ]
    return np.concatenate([*parts, np.zeros(0)]).astype(np.float32)


def cut_speech(blocks, limit):
    config = EndpointConfig(end_silence=0.3, pre_roll=0.1)
    return segments.cut_speech(blocks, Loudness(), config, limit)


@given(
    seed=st.integers(0, 2**31),
    seconds=st.lists(st.floats(0.01, 2.5), max_size=8),
    sizes=st.lists(st.integers(100, 30_000), min_size=1, max_size=4),
    limit=st.floats(0.4, 4.0),
)
def test_segments_hold_all_speech_whatever_the_blocks(seed, seconds, sizes, limit):
    samples = make_speech(seed, seconds)
    found = list(cut_speech(cut_into_blocks(samples, sizes), limit))
    whole = list(cut_speech([samples], limit))
    assert [s.start for s in found] == [s.start for s in whole]
    covered, end = np.zeros(len(samples), bool), 0
    for one, other in zip(found, whole):
        start = round(one.start * RATE)
        np.testing.assert_array_equal(one.samples, other.samples)
        assert start >= end and 0 < len(one.samples) <= round(limit * RATE)
        end = start + len(one.samples)
        np.testing.assert_array_equal(one.samples, samples[start:end])
        covered[start:end] = True
    place = 0
    for number, length in enumerate(seconds):
        size = round(length * RATE)
        if number % 2 and length > 0.2:
            assert covered[place : place + size].all()
        # Silence longer than the gap, the end's silence and the pre-roll is left out.
        if not number % 2 and length > 1.6:
            assert not covered[place : place + size].all()
        place += size


def test_utterances_join_across_short_gaps_while_they_fit():
    samples = make_speech(0, [1.0, 0.8, 0.9, 0.8, 2.5, 0.8, 0.9, 0.8, 1.0])
    first, second = cut_speech([samples], 5.0)
    # 0.1 s before the first and 0.3 s behind the last, to whole windows.
    assert (first.start, second.start) == pytest.approx((0.9, 5.9), abs=0.04)
    assert len(first.samples) / RATE == pytest.approx(2.9, abs=0.08)
    assert len(second.samples) / RATE == pytest.approx(2.9, abs=0.08)
    apart = list(cut_speech([samples], 2.5))
    starts = [segment.start for segment in apart]
    assert starts == pytest.approx([0.9, 2.6, 5.9, 7.6], abs=0.04)


def test_an_utterance_too_long_is_cut_in_its_pause():
    samples = make_speech(0, [1.0, 2.3, 0.2, 2.0, 3.0])
    first, second = cut_speech([samples], 3.0)
    assert 3.3 < second.start < 3.5
    assert first.start + len(first.samples) / RATE == pytest.approx(second.start)


def test_no_speech_is_no_segment():
    assert not list(cut_speech([], 2.0))
    assert not list(cut_speech([np.zeros(100, np.float32)], 2.0))
    assert not list(cut_speech(cut_into_blocks(make_speech(0, [9.0]), [999]), 2.0))


@pytest.mark.parametrize("pattern", [[0.5, 0.7, 2.0], [0.0, 4.0]])
def test_speech_of_an_endless_recording_comes_as_it_is_said(pattern):
    """And what was silent is not kept."""
    taken = 0

    def play():
        nonlocal taken
        while True:
            taken += 1
            yield make_speech(taken, pattern)

    stream = cut_speech(play(), 2.0)
    seconds = sum(pattern)
    for _ in range(60):
        segment = next(stream)
        assert len(segment.samples) <= 2 * RATE
        assert taken * seconds - segment.start <= 2 * 2.0 + 1.0 + seconds


def test_memory_is_constant_in_speech_and_in_silence():
    gathering = segments._Gathering(2 * RATE)
    for number in range(200):
        gathering.append(np.zeros(RATE, np.float32))
        list(gathering.release(number * RATE))
        assert len(gathering._audio) <= 5 * RATE
    assert gathering.received == 200 * RATE


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


def test_longer_pieces_come_alone_where_they_may():
    batcher = segments.Batcher((0.1,), (2,), long_alone=True)
    pieces = [(0, np.ones(7)), (1, np.arange(2000.0)), (2, np.ones(1600))]
    alone, rest = batcher.gather(pieces)
    assert alone.keys == (1,) and rest.keys == (0, 2)
    np.testing.assert_array_equal(alone.audio.values, pieces[1][1][None])
    assert bool(alone.audio.mask.all())


@given(
    seed=st.integers(0, 2**31),
    seconds=st.lists(st.floats(0.01, 2.5), max_size=4),
    sizes=st.lists(st.integers(1000, 30_000), min_size=1, max_size=4),
    limit=st.floats(0.4, 4.0),
)
def test_what_fits_is_whole_and_of_the_rest_the_speech_is_kept(
    seed, seconds, sizes, limit
):
    made = []

    def make_detector():
        made.append(Loudness())
        return made[-1]

    samples = make_speech(seed, seconds)
    cutter = segments.Cutter(limit, make_detector)
    fits = len(samples) <= round(limit * RATE)
    for _ in range(2):
        found = list(cutter.cut(cut_into_blocks(samples, sizes)))
        if fits:
            expected = [segments.Segment(0.0, samples)] if len(samples) else []
        else:
            detector = Loudness()
            expected = list(
                segments.cut_speech([samples], detector, EndpointConfig(), limit)
            )
        assert [one.start for one in found] == [one.start for one in expected]
        for one, other in zip(found, expected):
            np.testing.assert_array_equal(one.samples, other.samples)
    assert len(made) == (0 if fits else 1)
    plain = segments.Cutter(limit, None).cut([samples])
    kept = [segment.samples for segment in plain]
    np.testing.assert_array_equal(np.concatenate([*kept, samples[:0]]), samples)
