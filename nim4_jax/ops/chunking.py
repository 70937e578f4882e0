"""How far encoder frames see: chunks, their masks, and their draw in training."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from nim4_jax import struct

UNLIMITED = 1 << 28
"""A chunk size, or a number of left chunks, beyond any sequence."""


@struct.dataclass
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
                "least 0 (chunking.UNLIMITED for no limit)."
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


@dataclasses.dataclass(frozen=True)
class DynamicChunks:
    """WeNet's draw of a chunk size and of left chunks, once per batch.

    Half of the batches (1 − `full_share`) get a chunk of `smallest` … `largest` frames
    with 0 … all, or with probability `unlimited_left` all, left chunks; the others see
    everything.

    Attributes:
        full_share: share of the batches without a mask.
        largest: largest chunk, encoder frames.
        unlimited_left: of the batches with one, share that see all left chunks.
        smallest: smallest chunk, encoder frames.

    Source: wenet `add_optional_chunk_mask`.
    """

    full_share: float = 0.5
    largest: int = 25
    unlimited_left: float = 0.5
    smallest: int = 1

    def __post_init__(self):
        if not 1 <= self.smallest <= self.largest:
            raise ValueError(
                f"chunks of {self.smallest} to {self.largest} encoder frames; expected "
                "1 ≤ smallest ≤ largest."
            )

    def draw(self, rng: Array, length: int) -> Chunking:
        """A chunking for utterances padded to `length` encoder frames."""
        keys = jax.random.split(rng, 4)
        full = jax.random.bernoulli(keys[0], self.full_share)
        size = jax.random.randint(keys[1], (), self.smallest, self.largest + 1)
        most = (length - 1) // size
        share = jax.random.uniform(keys[2])
        left = jnp.floor(share * (most + 1).astype(jnp.float32)).astype(jnp.int32)
        unlimited = jax.random.bernoulli(keys[3], self.unlimited_left)
        endless = jnp.asarray(UNLIMITED, jnp.int32)
        return Chunking(
            jnp.where(full, endless, size).astype(jnp.int32),
            jnp.where(full | unlimited, endless, left),
        )
