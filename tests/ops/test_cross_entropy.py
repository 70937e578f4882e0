"""Chunked cross-entropy = the direct one, with its gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nim4_jax.ops import cross_entropy

BATCH, LENGTH, WIDTH, VOCAB = 2, 7, 4, 11
RNG = np.random.default_rng(0)
HIDDEN = jnp.asarray(RNG.normal(size=(BATCH, LENGTH, WIDTH)), jnp.float32)
TABLE = jnp.asarray(RNG.normal(size=(VOCAB, WIDTH)), jnp.float32)
TARGETS = jnp.asarray(RNG.integers(0, VOCAB, (BATCH, LENGTH)), jnp.int32)


def score(hidden, table, chunk):
    """The function under test with a tied table."""
    return cross_entropy.token_log_probs(
        hidden, TARGETS, lambda states: states @ table.T, chunk
    )


def define(hidden, table):
    """log softmax over the whole vocabulary, at the target."""
    log_probs = jax.nn.log_softmax(hidden @ table.T)
    chosen = jnp.take_along_axis(log_probs, TARGETS[..., None], axis=-1)[..., 0]
    return chosen, jnp.argmax(log_probs, axis=-1) == TARGETS


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
def test_any_chunk_gives_the_direct_result(chunk):
    """Values, accuracy and both gradients; 7 places do not divide by 3."""
    log_probs, best = jax.jit(score, static_argnums=2)(HIDDEN, TABLE, chunk)
    expected, expected_best = define(HIDDEN, TABLE)
    np.testing.assert_allclose(log_probs, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(best, expected_best)

    def total(function, hidden, table):
        return jnp.sum(jnp.sin(function(hidden, table)[0]))

    got = jax.grad(functools.partial(total, lambda h, t: score(h, t, chunk)), (0, 1))
    wanted = jax.grad(functools.partial(total, define), (0, 1))
    for pair in zip(jax.jit(got)(HIDDEN, TABLE), wanted(HIDDEN, TABLE)):
        np.testing.assert_allclose(*pair, rtol=1e-5, atol=1e-6)


def test_logits_exist_a_chunk_at_a_time():
    """No array of the traced loss and gradient has all places times the vocabulary."""
    length, vocab = 64, 1_000
    hidden = jax.ShapeDtypeStruct((1, length, WIDTH), jnp.float32)
    table = jax.ShapeDtypeStruct((vocab, WIDTH), jnp.float32)
    targets = jnp.zeros((1, length), jnp.int32)

    def loss(hidden, table):
        got, _ = cross_entropy.token_log_probs(
            hidden, targets, lambda states: states @ table.T, 8
        )
        return jnp.sum(got)

    text = str(jax.make_jaxpr(jax.grad(loss, (0, 1)))(hidden, table))
    assert "8,1000" in text and "64,1000" not in text and "8,1,8,1000" not in text
