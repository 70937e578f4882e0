"""Relative scores against a plain gather."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nim4_jax.ops import relative

shift = jax.jit(relative.shift_relative, static_argnums=1)


@given(
    seed=st.integers(0, 99),
    queries=st.sampled_from([1, 3, 6]),
    cached=st.sampled_from([0, 4]),
)
def test_shift_picks_the_distance(seed, queries, cached):
    """out[i, j] is the score of distance i + cached − j."""
    keys = queries + cached
    rows = queries + keys - 1
    scores = np.random.default_rng(seed).normal(size=(1, 2, queries, rows))
    got = np.asarray(shift(scores.astype(np.float32), keys))
    assert got.shape == (1, 2, queries, keys)
    for i, j in np.ndindex(queries, keys):
        row = (keys - 1) - (i + cached - j)  # row 0 is the farthest key on the left
        np.testing.assert_allclose(got[:, :, i, j], scores[:, :, i, row], rtol=1e-6)


@pytest.mark.parametrize("queries", [1, 2, 5])
@pytest.mark.parametrize("cached", [0, 3])
def test_shift_sends_gradients_back_where_it_read(queries, cached):
    """Each key's gradient to its distance, zeros to distances that nobody read."""
    keys = queries + cached
    shape = (2, 2, queries, queries + keys - 1)
    gradient = np.random.default_rng(0).normal(size=(2, 2, queries, keys))
    gradient = gradient.astype(np.float32)
    _, pull = jax.vjp(lambda x: shift(x, keys), np.zeros(shape, np.float32))
    wanted = np.zeros(shape, np.float32)
    for i, j in np.ndindex(queries, keys):
        wanted[:, :, i, queries - 1 - i + j] = gradient[:, :, i, j]
    np.testing.assert_array_equal(pull(gradient)[0], wanted)


def test_sinusoids_run_from_the_past_to_the_future():
    """Row r stands for distance keys − 1 − r; even columns sine, odd cosine."""
    table = relative.sinusoids(3, 5, 8)
    distance = np.arange(4, -3, -1)
    assert table.shape == (7, 8)
    np.testing.assert_allclose(table[:, 0], np.sin(distance), atol=1e-6)
    np.testing.assert_allclose(table[:, 1], np.cos(distance), atol=1e-6)
    np.testing.assert_allclose(table[:, 6], np.sin(distance * 1e-3), atol=1e-6)
    np.testing.assert_array_equal(table[4], [0.0, 1.0] * 4)
