"""Random phonemes hold no more hits than are borne, whatever the budget and names."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nim4_jax.eval.measures import hypotheses
from nim4_jax.retrieval import database
from nim4_jax.retrieval.chance import PHONEMES_PER_HOUR, PhonemeBigrams
from nim4_jax.retrieval.gate import LATTICE, NOWHERE, Gate
from nim4_jax.retrieval.hotwords import EXACT, HotwordRetriever, StreamState
from nim4_jax.retrieval.layer import Layer
from nim4_jax.retrieval.names import Name
from nim4_jax.text.phonemes import INVENTORY

CLASSES = len(INVENTORY)
MINUTES = 4
PER_MINUTE = PHONEMES_PER_HOUR // 60


def draw_bigrams(rng):
    """Phonemes that follow each other as unevenly as those of a language."""
    pairs = rng.gamma(0.3, size=(CLASSES, CLASSES)) + 1e-4
    pairs[:, 0] = 1e-12  # the blank is none of them
    pairs /= pairs.sum(axis=1, keepdims=True)
    first = np.full(CLASSES, 1 / CLASSES)
    for _ in range(50):
        first = first @ pairs
    return PhonemeBigrams(
        np.log(first).astype(np.float32), np.log(pairs).astype(np.float32)
    )


def draw_phonemes(bigrams, lengths, rng):
    """Sequences of the chain, uint8 [B, longest]; each is as long as it should be."""
    sums = np.cumsum(np.exp(bigrams.pairs.astype(np.float64)), axis=1)
    heads = np.cumsum(np.exp(bigrams.first.astype(np.float64)))
    columns = [np.searchsorted(heads, rng.random(len(lengths)) * heads[-1])]
    for _ in range(max(lengths) - 1):
        rows = sums[columns[-1]]
        drawn = rng.random((len(rows), 1)) * rows[:, -1:]
        columns.append((rows < drawn).sum(axis=1))
    return np.stack(columns, axis=1).astype(np.uint8)


def make_names(count, rng):
    """A database of as many random names, and the chain that they are drawn from."""
    bigrams = draw_bigrams(rng)
    lengths = rng.integers(4, 13, count)
    drawn = draw_phonemes(bigrams, lengths, rng)
    keys = {row[:length].tobytes() for row, length in zip(drawn, lengths)}
    readings = {f"name {n}": (key,) for n, key in enumerate(sorted(keys))}
    return database.build(map(Name, readings), readings, bigrams), bigrams


def hear(layer, phonemes, rng):
    """Hits among random phonemes, of which one in twenty is heard wrongly."""
    heard = hypotheses.simulate(phonemes.tolist(), 0.05, rng)
    state, _ = HotwordRetriever([layer]).scan(
        StreamState(), heard.phonemes, heard.log_probs, heard.times
    )
    return state.hits


@pytest.mark.parametrize("count", [1_000, 10_000, 100_000])
def test_random_phonemes_hold_no_more_hits_than_are_borne(count):
    """Exact and near alike: chance hits of each kind stay within the one budget."""
    rng = np.random.default_rng(count)
    base, bigrams = make_names(count, rng)
    (spoken,) = draw_phonemes(bigrams, [MINUTES * PER_MINUTE], rng)
    told = []
    for budget in (1.0, 10.0):
        gate = Gate(false_per_minute=budget, max_chance=np.inf)
        most = budget * MINUTES
        most += 4.0 * np.sqrt(most) + 3.0  # a Poisson count is above once in 10,000
        for near in (LATTICE, NOWHERE):
            hits = hear(Layer(base, gate, near), spoken, rng)
            exact = sum(hit.source == EXACT for hit in hits)
            told.append((budget, near, exact, len(hits) - exact, most))
    assert all(exact + near <= most for *_, exact, near, most in told), told


@given(
    rates=st.lists(st.floats(2.0**-20, 50.0, width=32), max_size=40),
    budgets=st.tuples(st.floats(0.0, 20.0), st.floats(0.0, 20.0)),
    cap=st.sampled_from([0.1, 1.0, np.inf]),
    near=st.booleans(),
)
def test_the_budget_is_kept_and_more_of_it_lets_more_through(rates, budgets, cap, near):
    chance = np.array(rates, np.float32)
    lengths = np.resize([3, 4, 9], len(rates))
    passed = []
    for budget in sorted(budgets):
        gate = Gate(false_per_minute=budget, max_chance=cap)
        threshold = gate.find_threshold(chance, lengths, near)
        allowed = gate.allow(chance, lengths, near)
        assert threshold <= cap and not allowed[lengths < 4].any()
        spent = chance[allowed].sum(dtype=float)
        if allowed.any() and near:
            spent += allowed.sum() * threshold
        assert spent <= 60.0 * budget * (1 + 1e-5)
        passed.append((threshold, allowed))
    (low, few), (high, more) = passed
    assert low <= high and not (few & ~more).any()


@given(rates=st.lists(st.floats(2.0**-20, 50.0, width=32), min_size=1, max_size=40))
def test_no_larger_set_of_keys_fits_the_budget(rates):
    """The rarest keys are let through, and the next one would be too much."""
    chance, lengths = np.array(rates, np.float32), np.full(len(rates), 5)
    gate = Gate(false_per_minute=1.0, max_chance=np.inf)
    allowed = gate.allow(chance, lengths, True)
    if not allowed.all():
        follower = chance[~allowed].min()
        assert follower > chance[allowed].max(initial=0.0)
        within = chance <= follower
        assert chance[within].sum(dtype=float) + within.sum() * follower > 60.0


def test_one_threshold_holds_for_exact_and_near_hits():
    base, _ = make_names(2_000, np.random.default_rng(0))
    gate = Gate(false_per_minute=2.0)
    demand, allowed = base.demand(gate), base.allow(gate)
    evidence = np.array([base.find_evidence(key) for key in range(len(base.chance))])
    np.testing.assert_array_equal(allowed, evidence >= demand.least - 1e-6)
    np.testing.assert_array_equal(np.isfinite(demand.rarity), allowed)


@pytest.mark.parametrize("field", ["false_per_minute", "max_chance", "near_nats"])
def test_a_gate_takes_numbers_from_0_on(field):
    for value in (-1.0, float("nan")):
        with pytest.raises(ValueError, match=rf"Gate\({field}={value}\)"):
            Gate(**{field: value})
