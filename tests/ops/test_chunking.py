"""Chunk masks by truth table."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nim4_jax.ops import chunking
from nim4_jax.ops.chunking import UNLIMITED, Chunking

TABLE = """
xx....
xx....
xxxx..
xxxx..
..xxxx
..xxxx
"""

mask = jax.jit(chunking.chunk_mask, static_argnums=(0, 1))


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
