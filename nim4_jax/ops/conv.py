"""Depthwise convolution over time that never looks beyond its own chunk."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from nim4_jax.ops.cpu import by_taps, switch


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

    Written as W fused multiply-adds, added up in float32, and not as `lax.conv`: the
    chunk's end differs from frame to frame; on CPU the gradient of a grouped
    convolution inside `lax.scan` is two orders of magnitude slower; and on TPU (v5e,
    4 × 375 frames of 2560 channels, bfloat16) the compiler counts 0.78 M cycles for
    the sum and 0.97 M for the convolution. The gradient by the inputs is such a sum
    too; that by the kernel is each platform's own, see `_kernel_gradient`. Reverse
    mode only.

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
    return _apart(_shifted_sum(_apart(padded), kernel, visible, right))


def _apart(array: Array) -> Array:
    """The array, on GPUs not fused with what comes before or after.

    Else XLA weighs making each of the W slices anew from what they are slices of, for
    every reader: the encoder of the full size then compiled for more than four minutes
    instead of a quarter of one.
    """
    barrier = jax.lax.optimization_barrier
    return jax.lax.platform_dependent(array, cuda=barrier, default=lambda x: x)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _shifted_sum(
    padded: Float[Array, "B S C"],
    kernel: Float[Array, "W C"],
    visible: Bool[Array, "U W"],
    right: int,
) -> Float[Array, "B U C"]:
    """out[t] = Σ_w kernel[w] · padded[t + w], of the taps visible from t."""
    frames, taps = visible.shape
    kernel = _lay_out(kernel)
    total = jnp.zeros((padded.shape[0], frames, padded.shape[2]), jnp.float32)
    for tap in range(taps):
        term = jax.lax.slice_in_dim(padded, tap, tap + frames, axis=1)
        factors = _seen(kernel[tap][None], visible, tap, right)
        total = total + _multiply(term, factors)
    return total.astype(padded.dtype)


def _multiply(term: Float[Array, "B U C"], factors: Float[Array, "#U C"]) -> Array:
    """Their product in float32."""
    return term.astype(jnp.float32) * factors.astype(jnp.float32)[None]


def _lay_out(kernel: Float[Array, "W C"]) -> Float[Array, "W C"]:
    return switch.choose(kernel, cpu=by_taps.lay_out, default=lambda x: x)


def _seen(values: Array, visible: Array, tap: int, right: int) -> Array:
    """`values` [..., #U, C] of each frame, zeros where the tap may not look."""
    if tap < visible.shape[1] - right:
        return values
    seen = visible[:, tap, None]
    seen = jnp.expand_dims(seen, tuple(range(values.ndim - seen.ndim)))
    return jnp.where(seen, values, jnp.zeros((), values.dtype))


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
    kernel = _lay_out(kernel)
    total = jnp.zeros((gradient.shape[0], length, gradient.shape[2]), jnp.float32)
    for tap in range(taps):
        start = taps - 1 - tap
        term = jax.lax.slice_in_dim(spread, start, start + length, axis=1)
        place = seen[start : start + length]
        factors = _seen(kernel[tap][None], place, tap, right)
        total = total + _multiply(term, factors)
    return total.astype(gradient.dtype)


def _kernel_gradient(padded, visible, gradient, right):
    """kernel[w] = Σ_{b, t} padded[b, t + w] · gradient[b, t], float32 sums.

    At the size that `depthwise` names, the TPU's compiler counts 0.94 M cycles and
    319 MiB of memory traffic for W reductions, 0.06 M and 48 MiB for a convolution.
    """
    arguments = padded, visible, gradient
    forms = {"cpu": by_taps.sum_by_taps, "tpu": convolve, "default": sum_at_once}
    forms = {name: partial(form, right=right) for name, form in forms.items()}
    return switch.choose(*arguments, **forms).astype(padded.dtype)


def sum_at_once(padded, visible, gradient, right, first=0):
    """The kernel's gradient as reductions, from tap `first` on."""
    frames, taps = visible.shape
    gradient = gradient.astype(jnp.float32)
    sums = []
    for tap in range(first, taps):
        term = padded[:, tap : tap + frames].astype(jnp.float32) * gradient
        sums.append(_seen(term, visible, tap, right).sum((0, 1)))
    return jnp.stack(sums)


def convolve(padded, visible, gradient, right):
    """The same as a convolution's own gradient, but for taps that chunks hide."""
    taps = visible.shape[1]

    def apply(kernel: Array) -> Array:
        return jax.lax.conv_general_dilated(
            padded,
            kernel[:, None],
            (1,),
            "VALID",
            dimension_numbers=("NWC", "WIO", "NWC"),
            feature_group_count=kernel.shape[1],
        )

    zeros = jnp.zeros((taps, padded.shape[2]), padded.dtype)
    (sums,) = jax.linear_transpose(apply, zeros)(gradient)
    sums = sums.astype(jnp.float32)
    if not right:
        return sums
    first = taps - right
    ahead = jax.lax.cond(
        jnp.all(visible),
        lambda: sums[first:],
        lambda: sum_at_once(padded, visible, gradient, right, first),
    )
    return jnp.concatenate([sums[:first], ahead])


_shifted_sum.defvjp(_forward, _backward)
