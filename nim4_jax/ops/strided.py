"""The strided convolution of the subsampling, with a custom kernel gradient on CPU."""

from __future__ import annotations

import functools

import jax
from jaxtyping import Array, Float

from nim4_jax.ops.cpu import by_taps, switch

_STRIDE = 2


@jax.custom_vjp
def convolve(
    inputs: Float[Array, "B T M E"], kernel: Float[Array, "V W E F"]
) -> Float[Array, "B Y Z F"]:
    """out[y, z] = Σ_{v, w} inputs[2y + v, 2z + w] · kernel[v, w], no padding.

    XLA's CPU writes the kernel's gradient as a convolution of transposed inputs and
    transposes them in memory first; products of the inputs that each tap saw take half
    of its time (8 × 201 × 39 frames of 32 channels). Reverse mode only.

    Args:
        inputs: E channels over time and frequency.
        kernel: of the same dtype.

    Returns:
        Of the operands' dtype, Y = (T − V) // 2 + 1, Z = (M − W) // 2 + 1.
    """
    return _apply(inputs, kernel)


def _apply(inputs, kernel):
    return jax.lax.conv_general_dilated(
        inputs,
        kernel,
        window_strides=(_STRIDE, _STRIDE),
        padding="VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _forward(inputs, kernel):
    return convolve(inputs, kernel), (inputs, kernel)


def _backward(operands, gradient):
    inputs, kernel = operands
    (by_inputs,) = jax.linear_transpose(lambda x: _apply(x, kernel), inputs)(gradient)
    wide = kernel.shape[2] > 1
    products = functools.partial(by_taps.multiply_taps, stride=_STRIDE)
    form = products if wide else transpose
    by_kernel = switch.choose(inputs, kernel, gradient, cpu=form, default=transpose)
    return by_inputs, by_kernel


def transpose(inputs, kernel, gradient):
    """The kernel's gradient as XLA has it."""
    (by_kernel,) = jax.linear_transpose(lambda k: _apply(inputs, k), kernel)(gradient)
    return by_kernel


convolve.defvjp(_forward, _backward)
