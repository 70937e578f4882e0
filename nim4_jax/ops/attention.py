"""Grouped-query attention over masked keys; the one place that picks a kernel."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

HIDDEN = -1e30
"""Logit of an invisible key: finite, so that a row that sees nothing stays finite."""


def causal_mask(mask: Bool[Array, "B L"]) -> Bool[Array, "B L L"]:
    """Who sees whom among L tokens in layout order.

    key real | key at or before the query | visible
       1     |             1              |    1
       1     |             0              |    0
       0     |            any             |    0

    Args:
        mask: True where the token is real.

    Returns:
        [query, key] True where the query sees the key.
    """
    slots = jnp.arange(mask.shape[1])
    return (slots[None, :] <= slots[:, None])[None] & mask[:, None, :]


def attend(
    queries: Float[Array, "B L N H"],
    keys: Float[Array, "B K C H"],
    values: Float[Array, "B K C H"],
    mask: Bool[Array, "B L C"],
    scale: float,
) -> Float[Array, "B L N H"]:
    """softmax(scale · q kᵀ) v; query head n reads key head n // (N / K).

    The softmax is float32 whatever the operands are. Every platform takes the XLA form;
    a fused kernel joins here, and nowhere else, by a branch on the platform.

    Args:
        queries: of N heads.
        keys: of K heads, never repeated in memory; finite also behind the mask.
        values: beside the keys; finite also behind the mask.
        mask: True where the query sees the key.
        scale: factor on the logits, usually 1/√H.

    Returns:
        Weighted values in the queries' dtype; zeros for a query that sees no key.

    Raises:
        ValueError: the query heads do not divide into groups, or the mask's shape
            does not fit.

    Source: Ainslie et al. 2023 (arXiv 2305.13245).
    """
    batch, length, heads, _ = queries.shape
    _, kv_heads, slots, _ = keys.shape
    if heads % kv_heads:
        raise ValueError(
            f"{heads} query heads do not divide into groups over {kv_heads} key heads; "
            "use a multiple."
        )
    if mask.shape != (batch, length, slots):
        raise ValueError(
            f"attention mask has shape {mask.shape}; queries {queries.shape} and keys "
            f"{keys.shape} need {(batch, length, slots)}."
        )
    return _attend_xla(queries, keys, values, mask, scale)


def _attend_xla(queries, keys, values, mask, scale):
    batch, length, heads, width = queries.shape
    kv_heads = keys.shape[1]
    rows = length * (heads // kv_heads)
    # Two plain batched products, queries and weights on the left: einsum puts the cache
    # there, and XLA's CPU then multiplies values by a naive loop.
    grouped = queries.reshape(batch, length, kv_heads, -1, width)
    grouped = jnp.swapaxes(grouped, 1, 2).reshape(batch, kv_heads, rows, width)
    logits = jax.lax.dot_general(
        keys,
        grouped,
        (((3,), (3,)), ((0, 1), (0, 1))),
        preferred_element_type=jnp.float32,
    )
    logits = jnp.swapaxes(logits, 2, 3)
    logits = logits.reshape(batch, kv_heads, length, -1, keys.shape[2])
    visible = mask[:, None, :, None]
    logits = jnp.where(visible, logits * jnp.float32(scale), jnp.float32(HIDDEN))
    peak = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    weights = jnp.where(visible, jnp.exp(logits - peak), jnp.float32(0.0))
    total = jnp.sum(weights, axis=-1, keepdims=True)
    weights = weights / jnp.where(total > 0.0, total, jnp.float32(1.0))
    weights = weights.astype(values.dtype).reshape(batch, kv_heads, rows, -1)
    outputs = jax.lax.dot_general(weights, values, (((3,), (2,)), ((0, 1), (0, 1))))
    outputs = outputs.reshape(batch, kv_heads, length, -1, width)
    outputs = jnp.swapaxes(outputs, 1, 2).reshape(batch, length, heads, width)
    return outputs.astype(queries.dtype)
