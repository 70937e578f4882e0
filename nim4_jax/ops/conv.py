"""Depthwise convolution over time that never looks past its own chunk."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

_ROWS = 2
"""Rows that the kernel's gradient adds up in one fused loop on CPU."""


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
    is two orders of magnitude slower. Both gradients are such sums too: what autodiff
    makes of the slices (padding each term, reducing over rows) takes four times as
    long. Reverse mode only.

    Args:
        inputs: frames with their left context, zero where invalid.
        kernel: one filter of W taps per channel.
        right: taps to the right of the output's own frame.
        chunk_size: encoder frames per chunk, a traced scalar.

    Returns:
        Float [B, U, C] with U = T − (W − 1 − right).
    """
    taps = kernel.shape[0]
    frames = inputs.shape[1] - (taps - 1 - right)
    place = jnp.arange(frames, dtype=jnp.int32) % chunk_size
    ahead = jnp.arange(-(taps - 1 - right), right + 1, dtype=jnp.int32)
    visible = (place[:, None] + ahead[None] < chunk_size) | (ahead <= 0)[None]
    padded = jnp.pad(inputs, ((0, 0), (0, right), (0, 0)))
    return _shifted_sum(padded, kernel, visible, right)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _shifted_sum(
    padded: Float[Array, "B S C"],
    kernel: Float[Array, "W C"],
    visible: Bool[Array, "U W"],
    right: int,
) -> Float[Array, "B U C"]:
    """out[t] = Σ_w kernel[w] · padded[t + w], of the taps visible from t."""
    frames, taps = visible.shape
    total = jnp.zeros((padded.shape[0], frames, padded.shape[2]), padded.dtype)
    for tap in range(taps):
        term = jax.lax.slice_in_dim(padded, tap, tap + frames, axis=1)
        total = total + _seen(term, visible, tap, right) * kernel[tap][None, None]
    return total


def _seen(term: Array, visible: Array, tap: int, right: int) -> Array:
    """`term` [..., U, C] with zeros where the tap may not look."""
    if tap < visible.shape[1] - right:
        return term
    seen = visible[:, tap, None]
    seen = jnp.expand_dims(seen, tuple(range(term.ndim - seen.ndim)))
    return jnp.where(seen, term, jnp.zeros((), term.dtype))


def _forward(padded, kernel, visible, right):
    return _shifted_sum(padded, kernel, visible, right), (padded, kernel, visible)


def _backward(right, saved, gradient):
    padded, kernel, visible = saved
    inputs = _input_gradient(kernel, visible, gradient, right)
    return inputs, _kernel_gradient(padded, visible, gradient, right), None


def _input_gradient(kernel, visible, gradient, right):
    """in[s] = Σ_w kernel[w] · gradient[s − w], of the taps that saw s."""
    frames, taps = visible.shape
    length = frames + taps - 1
    spread = jnp.pad(gradient, ((0, 0), (taps - 1, taps - 1), (0, 0)))
    seen = jnp.pad(visible, ((taps - 1, taps - 1), (0, 0)))
    total = jnp.zeros((gradient.shape[0], length, gradient.shape[2]), gradient.dtype)
    for tap in range(taps):
        start = taps - 1 - tap
        term = jax.lax.slice_in_dim(spread, start, start + length, axis=1)
        term = _seen(term, seen[start : start + length], tap, right)
        total = total + term * kernel[tap][None, None]
    return total


def _kernel_gradient(padded, visible, gradient, right):
    """kernel[w] = Σ_{b, t} padded[b, t + w] · gradient[b, t], float32 sums."""
    arguments = padded, visible, gradient
    by_platform = {"cpu": sum_by_rows, "default": sum_at_once}
    by_platform = {k: partial(f, right=right) for k, f in by_platform.items()}
    return jax.lax.platform_dependent(*arguments, **by_platform).astype(padded.dtype)


def sum_at_once(padded, visible, gradient, right):
    """The kernel's gradient as reductions, which accelerators fuse well."""
    frames, taps = visible.shape
    sums = []
    for tap in range(taps):
        term = padded[:, tap : tap + frames] * gradient
        term = _seen(term, visible, tap, right)
        sums.append(term.sum((0, 1), dtype=jnp.float32))
    return jnp.stack(sums)


def sum_by_rows(padded, visible, gradient, right):
    """The same, rows added slice by slice: XLA's CPU reductions are slow over rows."""
    frames, taps = visible.shape
    extra = ((0, -gradient.shape[0] % min(_ROWS, gradient.shape[0])), (0, 0), (0, 0))

    def group(sums, rows):
        padded, gradient = rows
        fresh = []
        for tap in range(taps):
            total = jnp.zeros(gradient.shape[1:], jnp.float32)
            for row in range(gradient.shape[0]):
                term = padded[row, tap : tap + frames] * gradient[row]
                total = total + term.astype(jnp.float32)
            total = _seen(total, visible, tap, right)
            fresh.append(total.sum(0))
        return sums + jnp.stack(fresh), None

    rows = jax.tree.map(
        lambda x: jnp.pad(x, extra).reshape(-1, min(_ROWS, x.shape[0]), *x.shape[1:]),
        (padded, gradient),
    )
    start = jnp.zeros((taps, gradient.shape[2]), jnp.float32)
    return jax.lax.scan(group, start, rows)[0]


_shifted_sum.defvjp(_forward, _backward)
