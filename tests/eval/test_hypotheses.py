"""Simulated hearings hold the errors asked for, and traces of what was said."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nim4_jax.eval.measures import error_rates, hypotheses
from nim4_jax.retrieval import hypothesis
from nim4_jax.text import articulation
from nim4_jax.text.phonemes import INVENTORY

FRAME_SECONDS = 0.04

CLASSES = len(INVENTORY)
spoken_lists = st.lists(st.integers(1, CLASSES - 1), max_size=40)
seeds = st.integers(0, 2**32 - 1)
rates = st.floats(0.0, 1.0)


def hear(spoken, rate, seed):
    return hypotheses.simulate(spoken, rate, np.random.default_rng(seed))


@given(spoken=spoken_lists, seed=seeds)
def test_without_errors_what_is_heard_is_what_was_spoken(spoken, seed):
    assert hear(spoken, 0.0, seed).phonemes.tolist() == spoken


@given(label=st.integers(1, CLASSES - 1), count=st.integers(1, 20), seed=seeds)
def test_a_repeated_phoneme_is_heard_each_time(label, count, seed):
    assert len(hear([label] * count, 0.0, seed).phonemes) == count


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.2])
def test_as_many_errors_are_heard_as_were_asked_for(rate):
    rng = np.random.default_rng(7)
    total = error_rates.Counts()
    for _ in range(120):
        spoken = rng.integers(1, CLASSES, 50).tolist()
        heard = hypotheses.simulate(spoken, rate, rng)
        total += error_rates.score_phonemes(spoken, heard.phonemes.tolist())
    assert total.percent == pytest.approx(100 * rate, rel=0.15)
    assert total.substitutions > total.deletions > total.insertions > 0


@given(spoken=spoken_lists, rate=rates, seed=seeds)
def test_posteriors_sum_to_one_and_the_greedy_path_is_what_was_heard(
    spoken, rate, seed
):
    heard = hear(spoken, rate, seed)
    assert heard.log_probs.shape[1] == CLASSES
    sums = np.exp(heard.log_probs.astype(np.float64)).sum(axis=1)
    np.testing.assert_allclose(sums, 1.0, rtol=1e-4)
    again = hypothesis.Hypothesis.read(heard.log_probs)
    np.testing.assert_array_equal(again.phonemes, heard.phonemes)
    best = np.argmax(heard.log_probs, axis=1)
    np.testing.assert_array_equal(best[heard.frames], heard.phonemes)
    assert heard.phonemes.dtype == np.uint8 and (heard.phonemes > 0).all()


@given(spoken=spoken_lists, rate=rates, seed=seeds)
def test_phonemes_begin_one_after_the_other(spoken, rate, seed):
    heard = hear(spoken, rate, seed)
    assert (np.diff(heard.frames) > 0).all()
    assert heard.times.shape == (len(heard.phonemes), 2)
    frames = np.rint(heard.times / FRAME_SECONDS)
    np.testing.assert_array_equal(frames[:, 0], heard.frames)
    np.testing.assert_array_equal(frames[:, 1], heard.frames + 1)


@given(spoken=spoken_lists, rate=rates, seed=seeds)
def test_equal_seeds_hear_the_same(spoken, rate, seed):
    one, other = hear(spoken, rate, seed), hear(spoken, rate, seed)
    np.testing.assert_array_equal(one.log_probs, other.log_probs)
    np.testing.assert_array_equal(one.phonemes, other.phonemes)


@pytest.mark.parametrize("rate", [-0.01, 1.01, float("nan"), float("inf")])
def test_a_rate_out_of_range_is_refused(rate):
    with pytest.raises(ValueError, match="must lie in 0 … 1"):
        hear([1, 2], rate, 0)


def test_a_substituted_phoneme_leaves_a_trace():
    rng = np.random.default_rng(3)
    traces, taken = [], []
    for said in rng.integers(1, CLASSES, 2500).tolist():
        heard = hypotheses.simulate([said], 1.0, rng)
        if len(heard.phonemes) == 1 and heard.phonemes[0] != said:
            frame = heard.log_probs[heard.frames[0]]
            traces.append(frame[said] - frame.max())
            taken.append((said, int(heard.phonemes[0])))
    assert len(traces) / 2500 == pytest.approx(hypotheses._SUBSTITUTED, abs=0.04)
    assert np.mean(traces) == pytest.approx(-3.2, abs=0.4)
    likely = articulation.confusions()
    assert np.mean([likely[pair] for pair in taken]) > 10 / CLASSES


def test_a_lost_phoneme_leaves_a_trace():
    rng = np.random.default_rng(4)
    traces = []
    for said in rng.integers(1, CLASSES, 2500).tolist():
        heard = hypotheses.simulate([said], 1.0, rng)
        if not len(heard.phonemes):
            ratios = heard.log_probs - heard.log_probs.max(axis=1, keepdims=True)
            traces.append(ratios[1:, said].max())
    assert len(traces) / 2500 == pytest.approx(hypotheses._DELETED, abs=0.04)
    assert np.mean(traces) == pytest.approx(-3.2, abs=0.6)
