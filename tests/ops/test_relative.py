"""Chunk masks by truth table, and relative scores against a plain gather."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nim4_jax.ops import relative
from nim4_jax.ops.relative import UNLIMITED, Chunking

TABLE = """
xx....
xx....
xxxx..
xxxx..
..xxxx
..xxxx
"""

mask = jax.jit(relative.chunk_mask, static_argnums=(0, 1))
shift = jax.jit(relative.shift_relative, static_argnums=1)


def read_table(text: str) -> np.ndarray:
    """Rows of x and . → Bool [U, K]."""
    return np.array([[mark == "x" for mark in row] for row in text.split()])


def test_truth_table():
    """Chunks of 2 frames, one left chunk: the docstring's table."""
    np.testing.assert_array_equal(mask(6, 0, Chunking.of(2, 1)), read_table(TABLE))


def test_cached_frames_come_first():
    """The last two rows of the table, as a stream sees them."""
    np.testing.assert_array_equal(
        mask(2, 4, Chunking.of(2, 1)), read_table(TABLE)[4:, :6]
    )


def test_no_limit_sees_everything():
    """`full` is the unmasked encoder."""
    assert mask(5, 3, Chunking.full()).all()


@given(
    queries=st.sampled_from([1, 4, 9]),
    cached=st.sampled_from([0, 6]),
    size=st.integers(1, 10),
    left=st.one_of(st.integers(0, 4), st.just(UNLIMITED)),
)
def test_mask_is_chunk_arithmetic(queries, cached, size, left):
    """key's chunk in [query's chunk − left, query's chunk]."""
    got = np.asarray(mask(queries, cached, Chunking.of(size, left)))
    for query in range(queries):
        for key in range(-cached, queries):
            distance = query // size - key // size
            assert got[query, key + cached] == (0 <= distance <= left)


@pytest.mark.parametrize("size, left", [(0, 1), (1, -1)])
def test_impossible_chunkings_are_refused(size, left):
    """The error names both numbers."""
    with pytest.raises(ValueError, match=f"chunk size {size}.*left chunks {left}"):
        Chunking.of(size, left)


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
