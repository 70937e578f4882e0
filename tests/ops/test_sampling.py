"""Sampling: the log-probability is that of the distribution drawn from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nim4_jax.ops import sampling


def random_logits(seed: int, batch: int = 4, vocabulary: int = 11):
    return 2.0 * jax.random.normal(jax.random.key(seed), (batch, vocabulary))


def restrict_by_loop(row, top_p, top_k):
    """Ids that may be drawn, by the definition."""
    order = sorted(range(len(row)), key=lambda v: -row[v])
    order = order[: top_k or len(row)]
    if top_p is None:
        return set(order)
    weights = np.exp(row[order] - row.max())
    weights /= weights.sum()
    before = np.cumsum(weights) - weights
    return {v for v, mass in zip(order, before) if mass < top_p}


def test_greedy_takes_the_likeliest_with_its_raw_log_probability():
    logits = random_logits(0)
    tokens, log_probs = sampling.sample(logits, top_p=0.1, top_k=1)
    assert tokens.dtype == jnp.int32
    np.testing.assert_array_equal(tokens, jnp.argmax(logits, 1))
    np.testing.assert_allclose(log_probs, jax.nn.log_softmax(logits).max(1), atol=1e-6)


@given(
    seed=st.integers(0, 2**20),
    temperature=st.floats(0.3, 2.0),
    top_p=st.none() | st.floats(0.05, 0.95),
    top_k=st.sampled_from([None, 1, 4, 20]),
)
def test_drawn_tokens_and_log_probabilities(seed, temperature, top_p, top_k):
    logits = random_logits(seed)
    tokens, log_probs = sampling.sample(
        logits, jax.random.key(seed), temperature, top_p, top_k
    )
    for row, token, log_prob in zip(np.asarray(logits), tokens, log_probs):
        scaled = row.astype(np.float64) / temperature
        allowed = restrict_by_loop(scaled, top_p, top_k)
        assert int(token) in allowed
        total = np.log(sum(np.exp(scaled[v]) for v in allowed))
        np.testing.assert_allclose(log_prob, scaled[int(token)] - total, atol=1e-4)


def test_frequencies_are_the_probabilities():
    logits = jnp.tile(jnp.log(jnp.array([[0.5, 0.3, 0.15, 0.05]])), (4000, 1))
    tokens, _ = sampling.sample(logits, jax.random.key(0), 1.0)
    counts = np.bincount(tokens, minlength=4) / 4000
    np.testing.assert_allclose(counts, [0.5, 0.3, 0.15, 0.05], atol=0.03)


def test_a_row_with_its_own_key_draws_alone_as_in_the_batch():
    logits, keys = random_logits(1), jax.random.split(jax.random.key(7), 4)
    together, _ = sampling.sample(logits, keys, 1.0)
    for b in range(4):
        alone, _ = sampling.sample(logits[b : b + 1], keys[b : b + 1], 1.0)
        assert alone[0] == together[b]


def test_temperature_and_mass_may_be_traced_without_recompiling():
    draw = jax.jit(lambda *args: sampling.sample(random_logits(2), *args))
    for temperature in (0.5, 1.0):
        expected = sampling.sample(
            random_logits(2), jax.random.key(0), temperature, top_p=0.8
        )
        got = draw(jax.random.key(0), jnp.float32(temperature), jnp.float32(0.8))
        np.testing.assert_array_equal(got[0], expected[0])
        np.testing.assert_allclose(got[1], expected[1], atol=1e-6)
    assert draw._cache_size() == 1


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"temperature": -1.0}, "temperature=-1.0 must be ≥ 0"),
        ({"temperature": 0.5, "rng": None}, "give an rng key"),
        ({"top_p": 0.0}, "top_p=0.0 must lie"),
        ({"top_p": 1.5}, "top_p=1.5 must lie"),
        ({"top_k": 0}, "top_k=0 must be"),
    ],
)
def test_settings_that_make_no_sense_are_refused(setting, message):
    setting = {"temperature": 1.0, "rng": jax.random.key(0), **setting}
    with pytest.raises(ValueError, match=message):
        sampling.sample(random_logits(0), **setting)


def test_a_wrong_number_of_keys_is_refused():
    with pytest.raises(ValueError, match="one key or 4 keys"):
        sampling.row_keys(jax.random.split(jax.random.key(0), 3), 4)
