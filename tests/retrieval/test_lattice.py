"""Windows are found along every likely path, whichever error is between."""

import itertools
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nim4_jax.retrieval import automaton, lattice, windows
from nim4_jax.retrieval.hypothesis import Hypothesis
from nim4_jax.retrieval.lattice import FLOOR
from nim4_jax.retrieval.verification import Acoustics
from nim4_jax.retrieval.windows import WIDTH

EVERY = [bytes(window) for window in itertools.product((1, 2, 3), repeat=WIDTH)]
seeds = st.integers(0, 2**32 - 1)
subsets = st.sets(st.sampled_from(EVERY), min_size=1)


def mark(keys):
    return windows.mark(automaton.build(keys)[0])


def draw_posteriors(seed):
    """Log posteriors of the blank and three phonemes: all paths are then followed."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(scale=rng.uniform(0.5, 5.0), size=(rng.integers(1, 30), 4))
    return scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))


def listen(log_probs, ends=()):
    """Pieces of a stream that is cut at some frames: acoustics and fresh phonemes."""
    heard = Hypothesis.read(log_probs)
    acoustics = Acoustics.empty(log_probs.shape[1])
    cuts = sorted({end for end in ends if end < len(log_probs)})
    for begin, end in zip([0, *cuts], [*cuts, len(log_probs)]):
        new = (heard.frames >= begin) & (heard.frames < end)
        acoustics = acoustics.extend(
            log_probs[begin:end], heard.frames[new], heard.phonemes[new]
        )
        yield acoustics, int(new.sum())


def find(marked, log_probs, ends=()):
    """Every (window, place) of a stream."""
    found = set()
    for acoustics, fresh in listen(log_probs, ends):
        rows, starts = lattice.find_windows(marked, acoustics, fresh)
        spelled = (marked.phonemes[row].tobytes() for row in rows)
        found.update(zip(spelled, starts.tolist()))
    return found


def find_peaks(log_probs):
    """Greatest ratio of each class, from each phoneme to the next."""
    ((acoustics, _),) = listen(log_probs)
    ends = [*acoustics.places, len(log_probs)]
    return [acoustics.ratios[a:b].max(axis=0) for a, b in itertools.pairwise(ends)]


def rate(peaks, window, start):
    """Product of the ratios of a window's phonemes from a place on."""
    return np.prod([peaks[start + i][label] for i, label in enumerate(window)])


@given(keys=subsets, seed=seeds)
def test_windows_are_found_alike_with_a_table_and_by_halving(keys, seed):
    """Few windows have no table of pairs, many have one."""
    log_probs, halved = draw_posteriors(seed), mark(keys)
    with mock.patch.object(windows, "_FEW", 0):
        tabled = mark(keys)
        assert len(tabled.pairs)
        found = find(tabled, log_probs)
    assert not len(halved.pairs) and find(halved, log_probs) == found


@given(keys=subsets, seed=seeds)
def test_every_likely_straight_path_is_followed(keys, seed):
    log_probs = draw_posteriors(seed)
    peaks = find_peaks(log_probs)
    likely = {
        (key, start)
        for start in range(len(peaks) - WIDTH + 1)
        for key in keys
        if rate(peaks, key, start) >= 1.001 * FLOOR
    }
    assert likely <= find(mark(keys), log_probs)


@given(keys=subsets, seed=seeds)
def test_nothing_is_found_that_was_not_thought_possible_there(keys, seed):
    log_probs = draw_posteriors(seed)
    peaks = find_peaks(log_probs)
    for key, start in find(mark(keys), log_probs):
        near = np.max(peaks[start : start + 2 * WIDTH - 1], axis=0)
        assert key in keys
        assert np.prod(near[list(key)]) >= 0.999 * FLOOR


@given(keys=subsets, seed=seeds, ends=st.sets(st.integers(0, 30)))
def test_a_stream_in_pieces_finds_what_the_whole_does(keys, seed, ends):
    log_probs = draw_posteriors(seed)
    marked = mark(keys)
    assert find(marked, log_probs) <= find(marked, log_probs, ends)


def test_places_are_counted_from_the_beginning_of_the_stream():
    spoken = [1, 2, 3, 4] + [5, 6] * 150 + [1, 2, 3, 4]
    heard = [say(label) for label in spoken]
    found = find(mark([bytes([1, 2, 3, 4])]), np.stack(heard), range(10, 308, 10))
    assert {start for _, start in found} == {0, 304}


def say(best, **others):
    """Log posteriors of a frame over ten classes; others as c1=0.1."""
    ratios = np.full(10, 1e-6)
    for name, ratio in others.items():
        ratios[int(name[1:])] = ratio
    ratios[best] = 1.0
    return np.log(ratios / ratios.sum())


def interrupt(*labels):
    """Phonemes with a made-up one behind each."""
    return [frame for label in labels for frame in (say(label), say(9, c0=0.2))]


ERRORS = {
    "none": ([say(1), say(2), say(3), say(4)], 0),
    "substituted": ([say(1), say(5, c2=0.1), say(3), say(4)], 0),
    "first substituted": ([say(9), say(5, c1=0.1), say(2), say(3), say(4)], 1),
    "lost": ([say(1), say(0, c2=0.1), say(3), say(4)], 0),
    "first lost": ([say(9), say(0, c1=0.1), say(2), say(3), say(4)], 0),
    "last lost": ([say(1), say(2), say(3), say(0, c4=0.1)], 0),
    "made up": ([say(1), say(2), say(6, c0=0.1), say(3), say(4)], 0),
    "three made up": ([*interrupt(1, 2, 3), say(4)], 0),
    "lost behind a made-up one": (
        [say(1), say(6, c0=0.1), say(0, c2=0.1), say(3), say(4)],
        0,
    ),
    "substituted and lost": ([say(1), say(5, c2=0.1), say(0, c3=0.1), say(4)], 0),
}


@pytest.mark.parametrize("error", ERRORS)
def test_an_error_is_bridged(error):
    heard, start = ERRORS[error]
    marked = mark([bytes([1, 2, 3, 4]), bytes([1, 2, 4, 4]), bytes([8, 8, 8, 8])])
    for ends in ((), range(len(heard))):
        assert (bytes([1, 2, 3, 4]), start) in find(marked, np.stack(heard), ends)


@pytest.mark.parametrize("error", [name for name in ERRORS if name != "none"])
def test_an_error_without_a_trace_is_not_bridged(error):
    heard, _ = ERRORS[error]
    sure = [np.where(frame < frame.max(), np.log(1e-6), 0.0) for frame in heard]
    assert not find(mark([bytes([1, 2, 3, 4])]), np.stack(sure))


@given(count=st.integers(0, WIDTH - 1))
def test_fewer_phonemes_than_a_window_find_nothing(count):
    heard = np.stack([say(0), *(say(label + 1) for label in range(count))])
    assert not find(mark([bytes([1, 2, 3, 4])]), heard)
