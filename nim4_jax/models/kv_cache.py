"""The key/value cache of the LLM: an explicit struct that goes in and comes out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

if TYPE_CHECKING:
    from nim4_jax.models.qwen3 import LLMConfig


@flax.struct.dataclass
class KVCache:
    """Keys and values of the tokens so far; slot order is the order of causality.

    Invariant: mask[b, c] implies c < length[b]. Slots that were written behind a mask
    (padding between two segments) stay in place and are never attended to.

    Attributes:
        keys: Float[Array, "layers B C K H"], after RoPE.
        values: Float[Array, "layers B C K H"].
        mask: Bool[Array, "B C"], True where the slot holds a real token.
        length: Int[Array, "B"], the next slot to be written, per row.
    """

    keys: Float[Array, "layers B C K H"]
    values: Float[Array, "layers B C K H"]
    mask: Bool[Array, "B C"]
    length: Int[Array, " B"]

    @property
    def slots(self) -> int:
        """C, the number of slots of a row."""
        return self.mask.shape[1]


def init_cache(
    config: LLMConfig, batch: int, slots: int, dtype: jnp.dtype = jnp.float32
) -> KVCache:
    """An empty cache.

    Args:
        config: of the LLM that will write into it.
        batch: number of rows.
        slots: tokens that a row can hold, padding included.
        dtype: of keys and values; the model's compute dtype.

    Returns:
        A cache of length 0.

    Raises:
        ValueError: batch or slots is not positive.
    """
    if batch < 1 or slots < 1:
        raise ValueError(f"cache of batch={batch}, slots={slots}: both must be ≥ 1.")
    shape = (config.num_layers, batch, slots, config.num_kv_heads, config.head_dim)
    return KVCache(
        keys=jnp.zeros(shape, dtype),
        values=jnp.zeros(shape, dtype),
        mask=jnp.zeros((batch, slots), jnp.bool_),
        length=jnp.zeros((batch,), jnp.int32),
    )


def write(
    cache: KVCache,
    keys: Float[Array, "layers B L K H"],
    values: Float[Array, "layers B L K H"],
    mask: Bool[Array, "B L"],
) -> KVCache:
    """Put L tokens at slots length … length+L−1 of each row.

    The caller keeps length + L ≤ C: lengths are traced, so an overflow cannot raise
    here, and it would overwrite the last L slots.

    Args:
        cache: to write into; donate it.
        keys: of the new tokens.
        values: of the new tokens.
        mask: True where the new token is real.

    Returns:
        The cache, longer by L in every row.

    Raises:
        ValueError: L exceeds the number of slots.
    """
    tokens = mask.shape[1]
    if tokens > cache.slots:
        raise ValueError(
            f"{tokens} tokens do not fit a cache of {cache.slots} slots; make the "
            "cache larger (init_cache(slots=...))."
        )
    update = jax.lax.dynamic_update_slice_in_dim
    flags = jax.vmap(lambda old, new, at: update(old, new, at, axis=0))
    # Layers outside, rows inside: with one vmap over axis 1 XLA transposes the whole
    # cache (100 × slower on CPU).
    rows = jax.vmap(flags, in_axes=(0, 0, None))
    return cache.replace(
        keys=rows(cache.keys, keys.astype(cache.keys.dtype), cache.length),
        values=rows(cache.values, values.astype(cache.values.dtype), cache.length),
        mask=flags(cache.mask, mask, cache.length),
        length=cache.length + tokens,
    )


def rewind(cache: KVCache, length: Int[Array, " B"]) -> KVCache:
    """Forget the slots from `length` on, as if they had never been written.

    Args:
        cache: to shorten.
        length: slots to keep, per row; rows that are shorter already stay as they are.

    Returns:
        The shortened cache, same shapes.
    """
    length = jnp.minimum(cache.length, length.astype(jnp.int32))
    kept = jnp.arange(cache.slots, dtype=jnp.int32)[None, :] < length[:, None]
    return cache.replace(mask=cache.mask & kept, length=length)


def repeat_rows(cache: KVCache, times: int) -> KVCache:
    """Each row `times` times in succession: row b becomes b·times … b·times+times−1.

    Args:
        cache: of B rows.
        times: copies of each row, ≥ 1.

    Returns:
        A cache of B · times rows.

    Raises:
        ValueError: times is less than 1.
    """
    if times < 1:
        raise ValueError(f"repeat_rows(times={times}): must be ≥ 1.")
    return KVCache(
        keys=jnp.repeat(cache.keys, times, axis=1),
        values=jnp.repeat(cache.values, times, axis=1),
        mask=jnp.repeat(cache.mask, times, axis=0),
        length=jnp.repeat(cache.length, times, axis=0),
    )
