"""Laws of the paired bootstrap, and how often its interval holds the truth."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nim4_jax.eval.measures import bootstrap

counts = st.tuples(st.integers(0, 9), st.integers(0, 12))
rows = st.lists(st.tuples(counts, counts), min_size=1, max_size=12)
seeds = st.integers(0, 2**31)


def split(pairs):
    table = np.array(pairs, np.int64).reshape(-1, 2, 2)
    return table[:, 0], table[:, 1]


@given(pairs=rows, seed=seeds)
def test_swapping_turns_the_sign(pairs, seed):
    a, b = split(pairs)
    forth = bootstrap.compare(a, b, resamples=200, seed=seed)
    back = bootstrap.compare(b, a, resamples=200, seed=seed)
    assert (back.a, back.b, back.p) == (forth.b, forth.a, forth.p)
    assert back.change == -forth.change
    assert back.low == pytest.approx(-forth.high)
    assert back.high == pytest.approx(-forth.low)


@given(pairs=rows, seed=seeds)
def test_equal_runs_do_not_differ(pairs, seed):
    a, _ = split(pairs)
    same = bootstrap.compare(a, a, resamples=100, seed=seed)
    assert (same.change, same.low, same.high, same.p) == (0.0, 0.0, 0.0, 1.0)
    assert not same.shown and same.relative == 0.0


@given(pairs=rows, seed=seeds)
def test_rates_are_those_of_the_whole_set_and_repeat_with_the_seed(pairs, seed):
    a, b = split(pairs)
    made = bootstrap.compare(a, b, resamples=50, seed=seed)
    assert made == bootstrap.compare(a, b, resamples=50, seed=seed)
    assert made.a == pytest.approx(100 * a[:, 0].sum() / max(a[:, 1].sum(), 1))
    assert made.b == pytest.approx(100 * b[:, 0].sum() / max(b[:, 1].sum(), 1))
    assert made.low <= made.high and 0.0 < made.p <= 1.0


def test_it_is_the_bootstrap_that_draws_utterances_one_by_one():
    """Grouping equal utterances changes nothing in the distribution."""
    rng = np.random.default_rng(5)
    units = rng.integers(3, 20, 60)
    a, b = (np.stack([rng.binomial(units, p), units], axis=1) for p in (0.2, 0.15))
    drawn = rng.integers(60, size=(20_000, 60))
    plain = 100 * (b[drawn, 0].sum(axis=1) - a[drawn, 0].sum(axis=1))
    plain = plain / units[drawn].sum(axis=1)
    made = bootstrap.compare(a, b, resamples=20_000)
    low, high = np.percentile(plain, [2.5, 97.5])
    assert made.low == pytest.approx(low, abs=0.15)
    assert made.high == pytest.approx(high, abs=0.15)


@pytest.mark.parametrize("shift", [0.0, 0.06])
def test_intervals_hold_the_truth_as_often_as_they_say(shift):
    """In 95 % of all sets of utterances; of two runs over the same ones, too.

    Errors of an utterance go together, in one run and in both. The truth is that of all
    utterances which a set might hold.
    """
    trials, size = 1000, 150
    rng = np.random.default_rng(11)
    units = rng.integers(4, 9, (trials, size))
    hard = rng.beta(1, 5, (trials, size))
    a = np.stack([rng.binomial(units, hard), units], axis=-1)
    b = np.stack([rng.binomial(units, np.minimum(hard + shift, 1)), units], axis=-1)
    share = np.linspace(0, 1, 100_001)[1:-1]
    density = 5 * (1 - share) ** 4
    worse = np.average(np.minimum(share + shift, 1), weights=density)
    truths = {"a": 100 / 6, "difference": 100 * worse - 100 / 6}
    held = dict.fromkeys(truths, 0)
    shown = 0
    for seed in range(trials):
        made = bootstrap.compare(a[seed], b[seed], resamples=250, seed=seed)
        ends = {
            "a": bootstrap.interval(a[seed], resamples=250, seed=seed),
            "difference": (made.low, made.high),
        }
        for name, (low, high) in ends.items():
            held[name] += low <= truths[name] <= high
        shown += made.shown
    for name, count in held.items():
        assert count / trials == pytest.approx(0.95, abs=0.02), name
    assert shown / trials <= 0.07 if shift == 0.0 else shown / trials > 0.8


@given(pairs=rows, seed=seeds)
def test_an_interval_is_narrower_for_less_confidence(pairs, seed):
    counts, _ = split(pairs)
    wide, narrow = (
        bootstrap.interval(counts, resamples=200, confidence=share, seed=seed)
        for share in (0.95, 0.5)
    )
    assert wide[0] <= narrow[0] <= narrow[1] <= wide[1]
    assert wide == bootstrap.interval(counts, resamples=200, seed=seed)
    one = bootstrap.interval(counts[:1], resamples=50)
    assert (
        one[0]
        == one[1]
        == pytest.approx(100 * counts[0, 0] / max(int(counts[0, 1]), 1))
    )


@pytest.mark.parametrize("size", [1, 30, 400])
def test_an_interval_is_that_of_plain_resampling(size):
    rng = np.random.default_rng(size)
    units = rng.integers(1, 20, size)
    counts = np.stack([rng.binomial(units, 0.2), units], axis=1)
    drawn = counts[rng.integers(size, size=(20_000, size))].sum(axis=1)
    expected = np.percentile(100 * drawn[:, 0] / drawn[:, 1], [2.5, 97.5])
    made = bootstrap.interval(counts, resamples=20_000)
    assert made == pytest.approx(expected, abs=0.4)


@pytest.mark.parametrize(
    "change",
    [
        {"counts": np.zeros((0, 2), int)},
        {"counts": np.zeros((3, 3), int)},
        {"counts": np.zeros(2, int)},
        {"counts": np.array([[0, -1]])},
        {"resamples": 0},
        {"confidence": 0.0},
    ],
)
def test_an_interval_of_nothing_is_refused(change):
    given_ = {"counts": np.array([[0, 2]]), **change}
    with pytest.raises(ValueError, match="expected"):
        bootstrap.interval(given_.pop("counts"), **given_)


def test_small_blocks_draw_the_same_number(monkeypatch):
    a, b = split([((1, 4), (0, 4)), ((2, 5), (3, 5)), ((0, 6), (1, 6))])
    monkeypatch.setattr(bootstrap, "_BLOCK", 10)
    both = np.concatenate([a, b], axis=1)
    made = bootstrap._resample(both, 101, np.random.default_rng(0))
    assert made.shape == (101, 2)


def test_a_change_from_nothing_has_no_relative_size():
    made = bootstrap.compare(np.array([[0, 3]]), np.array([[1, 3]]), resamples=10)
    assert made.relative is None and made.change == pytest.approx(100 / 3)


@pytest.mark.parametrize(
    "change",
    [
        {"a": np.zeros((0, 2), int), "b": np.zeros((0, 2), int)},
        {"b": np.zeros((3, 2), int)},
        {"a": np.array([[-1, 2]])},
        {"resamples": 0},
        {"confidence": 1.0},
    ],
)
def test_what_cannot_be_compared_is_refused(change):
    given_ = {"a": np.array([[0, 2]]), "b": np.array([[1, 2]]), **change}
    with pytest.raises(ValueError, match="expected"):
        bootstrap.compare(given_.pop("a"), given_.pop("b"), **given_)
