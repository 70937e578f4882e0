"""Matrix products in float32 accumulation, with custom gradients."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

SAVED = "product"
"""Name of what `multiply` gives, for rules of what the backward pass computes again."""


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def einsum(
    subscripts: str, left: Float[Array, "..."], right: Float[Array, "..."]
) -> Float[Array, "..."]:
    """`jnp.einsum` of two operands of one dtype with a float32 result.

    For logits and scores that go into a softmax. The gradient of the result is rounded
    to the operands' dtype before it is multiplied, as every other product's is: else
    the backward pass multiplies and, on a mesh, sends float32. Reverse mode only.

    Args:
        subscripts: of two operands; every letter of one stands in the other or in the
            result.
        left: bfloat16 or float32.
        right: of the same dtype.
    """
    return jnp.einsum(subscripts, left, right, preferred_element_type=jnp.float32)


def _forward(subscripts, left, right):
    return einsum(subscripts, left, right), (left, right)


def _backward(subscripts, operands, gradient):
    _, pull = jax.vjp(partial(jnp.einsum, subscripts), *operands)
    return pull(gradient.astype(operands[0].dtype))


einsum.defvjp(_forward, _backward)


def multiply(
    inputs: Float[Array, "*B I"], kernel: Float[Array, "I O"], operands: jnp.dtype
) -> Float[Array, "*B O"]:
    """x · kernel, with the kernel's gradient as xᵀ · gradient.

    Autodiff writes it as (gradientᵀ · x)ᵀ, for which XLA's CPU transposes every
    gradient in memory: 6 % of nano's training step. Reverse mode only.

    Args:
        inputs: rows of any leading axes.
        kernel: of the same dtype.
        operands: dtype that the factors of all three products are rounded to; sums and
            results keep the inputs' dtype.
    """
    return checkpoint_name(_multiply(inputs, kernel, operands), SAVED)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _multiply(inputs, kernel, operands):
    return _multiply_forward(inputs, kernel, operands)[0]


def _multiply_forward(inputs, kernel, operands):
    rounded = inputs.astype(operands), kernel.astype(operands)
    dims = (((inputs.ndim - 1,), (0,)), ((), ()))
    outputs = jax.lax.dot_general(*rounded, dims, preferred_element_type=inputs.dtype)
    return outputs, rounded


def _multiply_backward(operands, rounded, gradient):
    inputs, kernel = rounded
    dtype, gradient = gradient.dtype, gradient.astype(operands)
    last, rows = inputs.ndim - 1, tuple(range(inputs.ndim - 1))
    multiply_into = partial(jax.lax.dot_general, preferred_element_type=dtype)
    inner = multiply_into(gradient, kernel, (((last,), (1,)), ((), ())))
    return inner, multiply_into(inputs, gradient, ((rows, rows), ((), ())))


_multiply.defvjp(_multiply_forward, _multiply_backward)
