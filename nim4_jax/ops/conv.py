"""Depthwise convolution over time that never looks past its own chunk."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def depthwise(
    inputs: Float[Array, "B T C"],
    kernel: Float[Array, "W C"],
    *,
    right: int,
    chunk_size: Int[Array, ""],
) -> Float[Array, "B U C"]:
    """Sum of shifted products: out[t] = Σ_w kernel[w] · x[t + w].

    `inputs` begins with W − 1 − right frames of left context; output t sits at input
    t + W − 1 − right. Taps that would look beyond the end of the output's chunk see
    zeros, as they do beyond the end of the audio; output 0 begins a chunk.

    Written as W fused multiply-adds and not as `lax.conv`: the chunk's end differs from
    frame to frame, and on CPU the gradient of a grouped convolution inside `lax.scan`
    is two orders of magnitude slower.

    Args:
        inputs: frames with their left context, zero where invalid.
        kernel: one filter of W taps per channel.
        right: taps to the right of the output's own frame.
        chunk_size: encoder frames per chunk, a traced scalar.

    Returns:
        Float [B, U, C] with U = T − (W − 1 − right).
    """
    taps = kernel.shape[0]
    left = taps - 1 - right
    frames = inputs.shape[1] - left
    padded = jnp.pad(inputs, ((0, 0), (0, right), (0, 0)))
    place = jnp.arange(frames, dtype=jnp.int32) % chunk_size
    total = jnp.zeros((inputs.shape[0], frames, inputs.shape[2]), inputs.dtype)
    for tap in range(taps):
        term = jax.lax.slice_in_dim(padded, tap, tap + frames, axis=1)
        ahead = tap - left
        if ahead > 0:
            inside = (place + ahead < chunk_size)[None, :, None]
            term = jnp.where(inside, term, jnp.zeros((), term.dtype))
        total = total + term * kernel[tap][None, None, :]
    return total
