"""Scores are sums over alignments; what was said scores best, where it was said."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nim4_jax.eval.measures import hypotheses
from nim4_jax.retrieval import automaton, lattice, verification, windows
from nim4_jax.retrieval import hypothesis as hypothesis_module
from nim4_jax.retrieval.chance import PhonemeBigrams
from nim4_jax.retrieval.verification import FRAMES, Acoustics, Candidates, Demand
from nim4_jax.text.phonemes import INVENTORY

CLASSES = len(INVENTORY)
seeds = st.integers(0, 2**32 - 1)
labels = st.lists(st.integers(1, 3), min_size=1, max_size=3)


def collapse(path):
    return [label for label, _ in itertools.groupby(path) if label]


def align(spelled, frames):
    """All paths of CTC over some frames, from the first label to the last."""
    paths = map(list, itertools.product(range(4), repeat=frames))
    return [p for p in paths if p[0] and p[-1] and collapse(p) == spelled]


def draw_ratios(seed, frames):
    ratios = np.random.default_rng(seed).uniform(size=(frames, 4)) ** 3
    return (ratios / ratios.max(axis=1, keepdims=True)).astype(np.float32)


def demand_little(keys, nats=8.0):
    return Demand(np.zeros(keys, np.float32), -1e3, nats, PhonemeBigrams.flat())


def hear(hypothesis, ends=()):
    """Acoustics and fresh phonemes of a stream that is cut at some frames."""
    acoustics, scores = Acoustics.empty(CLASSES), hypothesis.log_probs
    cuts = sorted({end for end in ends if end < len(scores)})
    for begin, end in zip([0, *cuts], [*cuts, len(scores)]):
        new = (hypothesis.frames >= begin) & (hypothesis.frames < end)
        fresh = hypothesis.frames[new], hypothesis.phonemes[new]
        acoustics = acoustics.extend(scores[begin:end], *fresh)
        yield acoustics, int(new.sum())


def find(keys, hypothesis, ends=(), demand=None):
    """All that is verified in a stream, piece by piece."""
    machine, _ = automaton.build(keys)
    marked, waiting = windows.mark(machine), Candidates.none()
    demand = demand or demand_little(len(keys))
    for acoustics, fresh in hear(hypothesis, ends):
        rows, starts = lattice.find_windows(marked, acoustics, fresh)
        verified, waiting = verification.verify(
            marked, rows[:, None], starts, waiting, acoustics, demand
        )
        yield verified


def pronounce_sharply(key, others=()):
    """A frame for each phoneme, others as {frame: (phoneme, ratio)}."""
    ratios = np.full((len(key), CLASSES), 1e-6)
    ratios[range(len(key)), list(key)] = 1.0
    for frame, (label, ratio) in dict(others).items():
        ratios[frame, label] = ratio
    return hypothesis_module.Hypothesis.read(np.log(ratios))


def distinct(found):
    """A key that two windows lead to may be there twice."""
    return np.unique(found, axis=0).tolist()


def speak(seed, size):
    """A hearing without error, a key that is spoken in it, and where the key begins."""
    rng = np.random.default_rng(seed)
    spoken = rng.permutation(np.arange(1, CLASSES))[: size + 10]
    begin = int(rng.integers(1, 10))
    key = bytes(spoken[begin : begin + size].tolist())
    return hypotheses.simulate(spoken.tolist(), 0.0, rng), key, begin


@given(spelled=labels, frames=st.integers(1, 5), seed=seeds)
def test_a_score_is_the_sum_over_all_alignments_up_to_the_best_frame(
    spelled, frames, seed
):
    ratios = draw_ratios(seed, frames)
    sums = np.zeros(frames)
    for begin, end in itertools.combinations(range(frames + 1), 2):
        for path in align(spelled, end - begin):
            sums[end - 1] += np.prod(ratios[range(begin, end), path], dtype=float)
    ids = np.array(spelled, np.uint8)
    score, begin, end = verification._forward(ids, ratios, 0, frames)
    assert score == pytest.approx(max(sums), rel=1e-6)
    if score:
        assert 0 <= begin < end == 1 + np.argmax(sums)


@given(frames=st.integers(1, 40), seed=seeds, data=st.data())
def test_what_the_greedy_path_spells_scores_at_least_one(frames, seed, data):
    ratios = draw_ratios(seed, frames)
    greedy = collapse(np.argmax(ratios, axis=1).tolist())
    first = data.draw(st.integers(0, len(greedy)))
    spelled = greedy[first : first + data.draw(st.integers(1, 12))]
    ids = np.array(spelled or [1], np.uint8)
    assert verification._forward(ids, ratios, 0, frames)[0] >= 1.0 or not spelled


@given(seed=seeds, ends=st.sets(st.integers(0, 2 * FRAMES), max_size=30))
def test_acoustics_in_pieces_are_those_of_the_whole(seed, ends):
    rng = np.random.default_rng(seed)
    spoken = rng.integers(1, CLASSES, size=rng.integers(0, 120)).tolist()
    heard = hypotheses.simulate(spoken, 0.1, rng)
    ((whole, _),) = hear(heard)
    *_, (cut, _) = hear(heard, ends)
    np.testing.assert_allclose(cut.ratios, whole.ratios, rtol=1e-6)
    assert (cut.begin, cut.position) == (whole.begin, whole.position)
    np.testing.assert_array_equal(cut.places, whole.places)
    np.testing.assert_array_equal(cut.labels, whole.labels)
    assert cut.end == len(heard.phonemes)
    assert whole.begin + len(whole.ratios) == len(heard.log_probs)
    np.testing.assert_array_equal(heard.frames[whole.position :], whole.places)
    assert len(whole.ratios) == min(len(heard.log_probs), FRAMES)


@given(heard=st.lists(st.integers(1, CLASSES - 1), min_size=1, max_size=12), seed=seeds)
def test_what_was_heard_is_as_common_as_the_bigrams_say(heard, seed):
    rng = np.random.default_rng(seed)
    first = -rng.uniform(0.0, 6.0, CLASSES).astype(np.float32)
    pairs = -rng.uniform(0.0, 6.0, (CLASSES, CLASSES)).astype(np.float32)
    bigrams = PhonemeBigrams(first, pairs)
    demand = Demand(np.zeros(0, np.float32), 0.0, 1.0, bigrams)
    opened, summed = demand.measure(np.array(heard, np.uint8))
    for begin, end in itertools.combinations(range(len(heard) + 1), 2):
        (expected,) = bigrams.expect([bytes(heard[begin:end])])
        measured = opened[begin] + summed[end - 1]
        assert measured == pytest.approx(np.log(expected), abs=1e-3)


@given(seed=seeds, size=st.integers(4, 20), ends=st.sets(st.integers(0, 120)))
def test_a_spoken_key_is_found_where_it_was_spoken(seed, size, ends):
    heard, key, begin = speak(seed, size)
    best = np.argmax(heard.log_probs, axis=1)
    (frames,) = np.nonzero(np.isin(best, list(key)))
    for pieces in ((), ends):
        # Before its last phoneme a key may be found as if that were lost.
        *_, verified = (part for part in find([key], heard, pieces) if len(part.keys))
        assert distinct(verified.keys) == [0]
        assert distinct(verified.spans) == [[begin, begin + size]]
        assert distinct(verified.frames) == [[frames[0], frames[-1] + 1]]
        np.testing.assert_allclose(verified.scores, 0.0, atol=1e-6)


@given(ends=st.sets(st.integers(0, 13)))
def test_a_key_whose_window_is_over_waits_for_its_end(ends):
    tail = bytes(range(101, 113))
    keys = [bytes([first]) + tail for first in range(1, 101)]
    heard = pronounce_sharply(keys[41])
    found = list(find(keys, heard, ends, demand_little(len(keys), nats=0.5)))
    assert [part.keys.tolist() for part in found if len(part.keys)] == [[41]]
    assert found[-1].spans.tolist() == [[0, len(keys[41])]]


@given(size=st.integers(6, 20), ratio=st.floats(0.01, 0.9), data=st.data())
def test_a_substituted_phoneme_costs_what_its_ratio_is(size, ratio, data):
    key, place = bytes(range(1, size + 1)), data.draw(st.integers(0, size - 1))
    taken = key[:place] + bytes([99]) + key[place + 1 :]
    said = {place: (key[place], ratio)}
    (verified,) = find([key], pronounce_sharply(taken, said))
    assert distinct(verified.spans) == [[0, size]]
    np.testing.assert_allclose(verified.scores, np.log(ratio), atol=1e-3)


@given(seed=seeds, size=st.integers(4, 20))
def test_demands_decide(seed, size):
    heard, key, _ = speak(seed, size)
    flat = PhonemeBigrams.flat()
    chance = -0.5 * float(np.log(flat.expect([key])[0]))
    for rarity, least, finds in (
        (0.0, chance - 1e-3, True),
        (0.0, chance + 1e-3, False),
        (1.0, chance + 1.0 - 1e-3, True),
        (-np.inf, -1e3, False),
    ):
        demand = Demand(np.full(1, rarity, np.float32), least, 8.0, flat)
        (verified,) = find([key], heard, demand=demand)
        assert bool(len(verified.keys)) == finds


def test_before_the_first_phoneme_nothing_is_found():
    silence = hypotheses.simulate([], 0.0, np.random.default_rng(0))
    (verified,) = find([bytes([1, 2, 3, 4])], silence)
    assert not len(verified.keys) and not len(verified.frames)
    opened, summed = demand_little(0).measure(np.zeros(0, np.uint8))
    assert len(opened) == len(summed) == 0


def test_a_key_that_fits_early_is_scored_again_when_it_has_ended():
    tail = bytes(range(101, 113))
    keys = [bytes([first]) + tail for first in range(1, 101)]
    ratios = np.full((14, CLASSES), 1e-6)
    ratios[range(12), list(keys[41][:12])] = 1.0
    ratios[12, [0, tail[-1]]] = 1.0, 0.05  # blank, a hint of the last phoneme
    ratios[13, tail[-1]] = 1.0
    heard = hypothesis_module.Hypothesis.read(np.log(ratios))
    for ends in ((), (13,)):
        *_, last = (p for p in find(keys, heard, ends) if 41 in p.keys)
        (index,) = np.flatnonzero(last.keys == 41)[:1]
        assert last.spans[index].tolist() == [0, 13]
