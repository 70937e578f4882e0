"""Chunk masks and Transformer-XL relative attention scores."""

from __future__ import annotations

import flax.struct
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

UNLIMITED = 1 << 28
"""A chunk size, or a number of left chunks, beyond any sequence."""


@flax.struct.dataclass
class Chunking:
    """How far encoder frames see; traced scalars, so that no draw recompiles.

    Attributes:
        size: Int[Array, ""], encoder frames per chunk.
        left: Int[Array, ""], whole chunks seen to the left of a frame's own.
    """

    size: Int[Array, ""]
    left: Int[Array, ""]

    @classmethod
    def full(cls) -> Chunking:
        """One chunk around everything: the unmasked encoder."""
        return cls.of(UNLIMITED, UNLIMITED)

    @classmethod
    def of(cls, size: int, left: int) -> Chunking:
        """Chunking with the given numbers, checked.

        Raises:
            ValueError: size < 1 or left < 0.
        """
        if size < 1 or left < 0:
            raise ValueError(
                f"chunk size {size} must be at least 1 and left chunks {left} at "
                "least 0 (relative.UNLIMITED for no limit)."
            )
        return cls(jnp.asarray(size, jnp.int32), jnp.asarray(left, jnp.int32))


def chunk_mask(queries: int, cached: int, chunking: Chunking) -> Bool[Array, "U K"]:
    """Which keys a query may see: its own chunk and `left` chunks before it.

    Keys are the `cached` frames just before the queries, then the queries themselves;
    query 0 begins a chunk. With chunks of 2 frames, one left chunk and no cache:

        query\\key  0 1 2 3 4 5
        0, 1       x x . . . .
        2, 3       x x x x . .
        4, 5       . . x x x x

    Args:
        queries: number of query frames U.
        cached: number of frames before them.

    Returns:
        Bool [U, cached + U].
    """
    query = jnp.arange(queries, dtype=jnp.int32)[:, None] // chunking.size
    key = jnp.arange(-cached, queries, dtype=jnp.int32)[None, :] // chunking.size
    return (key <= query) & (query - key <= chunking.left)


def sinusoids(queries: int, keys: int, width: int) -> np.ndarray:
    """Sinusoidal embedding of every distance query − key that can occur.

    Row r stands for distance keys − 1 − r, from the farthest key on the left down to
    −(queries − 1), the farthest on the right; even columns sine, odd columns cosine.

    Returns:
        float32 [queries + keys − 1, width].
    """
    distance = np.arange(keys - 1, -queries, -1, dtype=np.float64)[:, None]
    rate = np.exp(np.arange(0, width, 2) * (-np.log(10_000.0) / width))
    table = np.zeros((queries + keys - 1, width), np.float32)
    table[:, 0::2] = np.sin(distance * rate)
    table[:, 1::2] = np.cos(distance * rate)
    return table


def shift_relative(
    scores: Float[Array, "B N U R"], keys: int
) -> Float[Array, "B N U K"]:
    """Turn scores by distance into scores by key: out[i, j] = scores[i, U − 1 − i + j].

    Source: Transformer-XL (arXiv 1901.02860), appendix B.
    """
    batch, heads, queries, distances = scores.shape
    padded = jnp.pad(scores, ((0, 0), (0, 0), (0, 0), (1, 0)))
    folded = padded.reshape(batch, heads, distances + 1, queries)[:, :, 1:]
    return folded.reshape(batch, heads, queries, distances)[..., :keys]
