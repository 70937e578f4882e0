"""Transformer-XL relative attention scores."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


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


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def shift_relative(
    scores: Float[Array, "B N U R"], keys: int
) -> Float[Array, "B N U K"]:
    """Turn scores by distance into scores by key: out[i, j] = scores[i, U − 1 − i + j].

    In memory out[i, j] stands U − 1 + i·(R − 1) + j behind scores[0, 0]: one piece, cut
    into rows that are shorter by one. The gradient goes the same way back, zeros where
    nothing was read; autodiff would pad inside a loop that also computes the scores'
    gradient. Reverse mode only.

    Source: Transformer-XL (arXiv 1901.02860), appendix B.
    """
    batch, heads, queries, distances = scores.shape
    if queries == 1:  # rows of R − 1 would be shorter than the keys
        return scores[..., :keys]
    flat = scores.reshape(batch, heads, -1)
    pieces = flat[..., queries - 1 : -1].reshape(batch, heads, queries, distances - 1)
    return pieces[..., :keys]


def _shift_forward(scores, keys):
    return shift_relative(scores, keys), None


def _shift_backward(keys, saved, gradient):
    batch, heads, queries, _ = gradient.shape
    if queries == 1:
        return (gradient,)

    def zeros(*shape: int) -> Array:
        return jnp.zeros((batch, heads, *shape), gradient.dtype)

    rows = jnp.concatenate([gradient, zeros(queries, queries - 2)], axis=-1)
    flat = rows.reshape(batch, heads, -1)
    flat = jnp.concatenate([zeros(queries - 1), flat, zeros(1)], axis=-1)
    return (flat.reshape(batch, heads, queries, queries + keys - 1),)


shift_relative.defvjp(_shift_forward, _shift_backward)
