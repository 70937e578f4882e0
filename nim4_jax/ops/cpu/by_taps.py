"""Gradients of convolutions as one matrix product for each tap, faster on CPU."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nim4_jax import sharding


def multiply_taps(inputs, kernel, gradient, stride):
    """The kernel's gradient of a strided convolution: a product for each tap.

    Args:
        inputs: [B, T, M, E], E > 1: else they are too narrow for products.
        kernel: [V, W, E, F].
        gradient: [B, Y, Z, F], of the convolution's result.
        stride: of both axes.

    Returns:
        As `kernel`; sums are float32.
    """
    height, width = kernel.shape[:2]
    steps, bands = gradient.shape[1:3]
    axes = (0, 1, 2)

    def multiply(v: int, w: int) -> Array:
        rows = slice(v, v + stride * steps, stride)
        columns = slice(w, w + stride * bands, stride)
        seen = inputs[:, rows, columns]
        return jax.lax.dot_general(
            seen, gradient, ((axes, axes), ((), ())), preferred_element_type=jnp.float32
        )

    rows = [jnp.stack([multiply(v, w) for w in range(width)]) for v in range(height)]
    return jnp.stack(rows).astype(kernel.dtype)


def lay_out(kernel: Float[Array, "W C"]) -> Float[Array, "W C"]:
    """The kernel as the product with 1.

    XLA's CPU fuses the slice that a scan takes from its stack of kernels into the loop
    that reads it, which then takes seven times as long; into products it fuses nothing.
    """
    return jnp.eye(kernel.shape[0], dtype=kernel.dtype) @ kernel


def sum_by_taps(padded, visible, gradient, right):
    """The kernel's gradient of a depthwise convolution, tap by tap.

    Products of frames are summed over rows, then over frames, as
    `conv.sum_at_once` sums them at once.

    XLA's CPU sums over leading axes slowly, and makes the gradient anew for each tap
    that stands in one loop with it. Each device sums over its own rows.
    """
    del right
    return sharding.sum_rows(_sum_by_rows, len(padded))(visible, padded, gradient)


def _sum_by_rows(visible, padded, gradient):
    gradient = gradient.astype(jnp.float32)

    def sum_up(_, tap):
        first, seen = tap
        rows = jax.lax.dynamic_slice_in_dim(padded, first, seen.shape[0], axis=1)
        total = jnp.zeros(gradient.shape[1:], jnp.float32)
        for row, weights in zip(rows, gradient, strict=True):
            total = total + row.astype(jnp.float32) * weights
        return None, seen @ total

    taps = jnp.arange(visible.shape[1], dtype=jnp.int32)
    seen = visible.T.astype(jnp.float32)
    return jax.lax.scan(sum_up, None, (taps, seen))[1]
