"""LayerNorm and RMSNorm whose backward pass keeps few residuals.

Autodiff keeps three arrays of the input's size for each norm. Here the input itself is
kept, which the layer beside it keeps too, and the statistics, which are small. Sums are
float32. Reverse mode only.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def _over_rows(vector: Array, rank: int) -> Array:
    """[D] → [1, …, 1, D] in float32."""
    return vector.astype(jnp.float32).reshape((1,) * (rank - 1) + (-1,))


def _mean(values: Array) -> Array:
    """Mean over the last axis, kept with size 1."""
    return jnp.mean(values, axis=-1, keepdims=True)


def _sum_rows(values: Array, like: Array) -> Array:
    """Sum over all axes but the last, in the dtype of a parameter."""
    return jnp.sum(values, axis=tuple(range(values.ndim - 1))).astype(like.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(
    inputs: Float[Array, "*B D"],
    scale: Float[Array, " D"],
    bias: Float[Array, " D"],
    epsilon: float,
) -> Float[Array, "*B D"]:
    """(x − mean) / √(variance + ε) · scale + bias over the last axis, in float32."""
    return _layer_forward(inputs, scale, bias, epsilon)[0]


def _layer_forward(inputs, scale, bias, epsilon):
    x = inputs.astype(jnp.float32)
    mean = _mean(x)
    rate = jax.lax.rsqrt(_mean(jnp.square(x - mean)) + epsilon)
    normal = (x - mean) * rate
    outputs = normal * _over_rows(scale, x.ndim) + _over_rows(bias, x.ndim)
    return outputs, (inputs, mean, rate, scale, bias)


def _layer_backward(epsilon, saved, gradient):
    inputs, mean, rate, scale, bias = saved
    normal = (inputs.astype(jnp.float32) - mean) * rate
    inner = gradient * _over_rows(scale, gradient.ndim)
    inner = inner - _mean(inner) - normal * _mean(inner * normal)
    outer = (inner * rate).astype(inputs.dtype)
    return outer, _sum_rows(gradient * normal, scale), _sum_rows(gradient, bias)


layer_norm.defvjp(_layer_forward, _layer_backward)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def rms_norm(
    inputs: Float[Array, "*B D"], scale: Float[Array, " D"], epsilon: float
) -> Float[Array, "*B D"]:
    """x / √(mean(x²) + ε) · scale over the last axis, in float32."""
    return _rms_forward(inputs, scale, epsilon)[0]


def _rms_forward(inputs, scale, epsilon):
    x = inputs.astype(jnp.float32)
    rate = jax.lax.rsqrt(_mean(jnp.square(x)) + epsilon)
    return x * rate * _over_rows(scale, x.ndim), (inputs, rate, scale)


def _rms_backward(epsilon, saved, gradient):
    inputs, rate, scale = saved
    normal = inputs.astype(jnp.float32) * rate
    inner = gradient * _over_rows(scale, gradient.ndim)
    inner = inner - normal * _mean(inner * normal)
    outer = (inner * rate).astype(inputs.dtype)
    return outer, _sum_rows(gradient * normal, scale)


rms_norm.defvjp(_rms_forward, _rms_backward)
