"""The LLM's key/value cache as an explicit struct of arrays."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from nim4_jax import sharding, struct
from nim4_jax.models.llm_config import LLMConfig

Heads = Float[Array, "layers B K C H"] | tuple[Float[Array, "B K C H"], ...]
"""Keys or values of all layers, stacked or one by one."""


@struct.dataclass
class KVCache:
    """Keys and values of the tokens so far; slot order is the order of causality.

    Invariant: mask[b, c] implies c < length[b]. Slots that were written behind a mask
    (padding between two segments) stay in place and are never attended to.

    Attributes:
        keys: Float[Array, "layers B K C H"], after RoPE; heads before slots, as the
            products with queries want them. For a packed LLM a tuple with an array
            [B, K, C, H] per layer, which needs no copy to be read.
        values: as the keys.
        mask: Bool[Array, "B C"], True where the slot holds a real token.
        length: Int[Array, "B"], the next slot to be written, per row.
    """

    keys: Heads
    values: Heads
    mask: Bool[Array, "B C"]
    length: Int[Array, " B"]

    @property
    def slots(self) -> int:
        """C, the number of slots of a row."""
        return self.mask.shape[1]


def init_cache(
    config: LLMConfig,
    batch: int,
    slots: int,
    dtype: jnp.dtype = jnp.float32,
    *,
    packed: bool = False,
) -> KVCache:
    """An empty cache.

    Args:
        config: of the LLM that will write into it.
        batch: number of rows.
        slots: tokens that a row can hold, padding included.
        dtype: of keys and values; the model's compute dtype.
        packed: whether the LLM is.

    Returns:
        A cache of length 0.

    Raises:
        ValueError: batch or slots is not positive.
    """
    if batch < 1 or slots < 1:
        raise ValueError(f"cache of batch={batch}, slots={slots}: both must be ≥ 1.")
    shape, layers = (
        (batch, config.num_kv_heads, slots, config.head_dim),
        config.num_layers,
    )

    def make() -> Heads:
        if packed:
            return tuple(jnp.zeros(shape, dtype) for _ in range(layers))
        axes = ("layers", "batch", "kv_heads", None, None)
        return sharding.constrain(jnp.zeros((layers, *shape), dtype), *axes)

    return KVCache(
        keys=make(),
        values=make(),
        mask=jnp.zeros((batch, slots), jnp.bool_),
        length=jnp.zeros((batch,), jnp.int32),
    )


def extend(cache: KVCache, mask: Bool[Array, "B L"]) -> KVCache:
    """Claim slots length … length+L−1 of each row; `write` fills them layer by layer.

    The caller keeps length + L ≤ C: lengths are traced, so an overflow cannot raise
    here, and the tokens beyond the last slot would be lost.

    Args:
        cache: of the earlier tokens.
        mask: True where the new token is real.

    Returns:
        The cache, longer by L in every row, keys and values not yet written.

    Raises:
        ValueError: L exceeds the number of slots.
    """
    tokens = mask.shape[1]
    if tokens > cache.slots:
        raise ValueError(
            f"{tokens} tokens do not fit a cache of {cache.slots} slots; make the "
            "cache larger (init_cache(slots=...))."
        )
    places = _places(cache.length, *mask.shape)
    return dataclasses.replace(
        cache,
        mask=cache.mask.at[places].set(mask, mode="drop", unique_indices=True),
        length=cache.length + tokens,
    )


def write(
    cached: Float[Array, "*layers B K C H"],
    heads: Float[Array, "B L K H"],
    start: Int[Array, " B"],
    layer: Int[Array, ""] | None = None,
) -> Float[Array, "*layers B K C H"]:
    """One layer's keys or values of L new tokens, put at each row's own offset.

    Args:
        cached: keys or values of all layers, or of this one.
        heads: of the new tokens.
        start: slot of the first new token, per row.
        layer: index into all layers; None for one layer.

    Returns:
        The same, updated in place if it is donated or carried by a loop.
    """
    rows, slots = _places(start, *heads.shape[:2])
    numbers = jnp.arange(heads.shape[2], dtype=jnp.int32)
    where = (rows[..., None], numbers[None, None], slots[..., None])
    new = heads.astype(cached.dtype)
    # A scatter of many small rows, for XLA's CPU changes that in place. Under vmap,
    # `dynamic_update_slice` makes it transpose the whole stack, 100 × slower; a scatter
    # of one index becomes a conditional update, for which it copies the cache.
    at = cached.at[where if layer is None else (layer, *where)]
    return at.set(new, mode="drop", unique_indices=True)


def _places(start: Array, batch: int, tokens: int) -> tuple[Array, Array]:
    """Row and slot of each new token, [B, L]; slots that do not exist are dropped."""
    slots = start[:, None] + jnp.arange(tokens, dtype=jnp.int32)[None, :]
    rows = jnp.arange(batch, dtype=jnp.int32)[:, None]
    return jnp.broadcast_to(rows, slots.shape), slots


def visible_slots(cache: KVCache, tokens: int) -> Bool[Array, "B L C"]:
    """Attention mask over the cache for the last `tokens` tokens of an extended cache.

    slot real | slot at or before the token's own | visible
        1     |                 1                 |    1
        1     |                 0                 |    0
        0     |                any                |    0

    Args:
        cache: after `extend`.
        tokens: L.

    Returns:
        [token, slot] True where the token sees the slot.
    """
    ago = jnp.arange(tokens, 0, -1, dtype=jnp.int32)
    own = cache.length[:, None] - ago[None, :]
    slots = jnp.arange(cache.slots, dtype=jnp.int32)
    return (slots[None, None, :] <= own[:, :, None]) & cache.mask[:, None, :]


def repeat(cache: KVCache, times: int) -> KVCache:
    """Each row so many times in a row, to go on in as many ways."""
    rows = functools.partial(jnp.repeat, repeats=times)
    heads = functools.partial(jax.tree.map, lambda x: rows(x, axis=x.ndim - 4))
    return KVCache(
        keys=heads(cache.keys),
        values=heads(cache.values),
        mask=rows(cache.mask, axis=0),
        length=rows(cache.length, axis=0),
    )


def grow(cache: KVCache, slots: int) -> KVCache:
    """The same tokens in a cache with room for more.

    Args:
        cache: to copy.
        slots: C of the new cache, at least the old one.

    Returns:
        The larger cache.

    Raises:
        ValueError: slots is less than the cache has.
    """
    extra = slots - cache.slots
    if extra < 0:
        raise ValueError(f"grow(slots={slots}): the cache has {cache.slots} already.")

    def pad(array: Array, axis: int) -> Array:
        width = [(0, extra if i == axis % array.ndim else 0) for i in range(array.ndim)]
        return jnp.pad(array, width)

    longer = functools.partial(pad, axis=-2)
    return dataclasses.replace(
        cache,
        keys=jax.tree.map(longer, cache.keys),
        values=jax.tree.map(longer, cache.values),
        mask=pad(cache.mask, axis=1),
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
    return dataclasses.replace(cache, mask=cache.mask & kept, length=length)
