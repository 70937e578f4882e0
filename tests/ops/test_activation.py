"""Activations: values are the formulas', and the gradient keeps inputs alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nim4_jax.ops import activation


def sigmoid(x):
    """1 / (1 + e^−x)."""
    return 1.0 / (1.0 + jnp.exp(-x))


CASES = {
    "swish": (activation.swish, lambda x: x * sigmoid(x), 1),
    "glu": (activation.glu, lambda x: x[..., :4] * sigmoid(x[..., 4:]), 1),
    "swiglu": (activation.swiglu, lambda gate, x: gate * sigmoid(gate) * x, 2),
}


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_autodiffs(name):
    """And nothing but the inputs is kept for the gradient."""
    function, formula, count = CASES[name]
    draw = np.random.default_rng(0)
    inputs = [draw.normal(size=(5, 8)).astype(np.float32) for _ in range(count)]
    wanted, pull = jax.vjp(formula, *inputs)
    got, pull_ours = jax.vjp(function, *inputs)
    np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-6)
    gradient = draw.normal(size=got.shape).astype(np.float32)
    for ours, theirs in zip(pull_ours(gradient), pull(gradient), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    kept = [leaf for leaf in jax.tree.leaves(pull_ours) if leaf.size > 1]
    assert len(kept) == count
