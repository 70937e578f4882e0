"""Activation functions whose backward pass keeps only their input.

Autodiff keeps what is cheap to compute again, too: two more arrays for each of these.
"""

from __future__ import annotations

from functools import partial

import jax
from jaxtyping import Array, Float


@partial(jax.checkpoint, prevent_cse=False)
def swish(inputs: Float[Array, "..."]) -> Float[Array, "..."]:
    """x · σ(x), also called SiLU."""
    return jax.nn.swish(inputs)


@partial(jax.checkpoint, prevent_cse=False)
def glu(inputs: Float[Array, "*B E"]) -> Float[Array, "*B F"]:
    """a · σ(b) of the two halves a, b of the last axis."""
    return jax.nn.glu(inputs)


@partial(jax.checkpoint, prevent_cse=False)
def swiglu(
    gate: Float[Array, "*B F"], values: Float[Array, "*B F"]
) -> Float[Array, "*B F"]:
    """swish(gate) · values."""
    return jax.nn.swish(gate) * values


@partial(jax.checkpoint, prevent_cse=False)
def gelu(inputs: Float[Array, "..."]) -> Float[Array, "..."]:
    """x · Φ(x), Φ the normal distribution's function, not its tanh approximation."""
    return jax.nn.gelu(inputs, approximate=False)
