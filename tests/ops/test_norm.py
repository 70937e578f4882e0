"""Norms: values and gradients are those of autodiff through the formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nim4_jax.ops import norm

EPSILON = 1e-5


def layer_formula(x, scale, bias):
    """The docstring's equation, left to autodiff."""
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(centred**2, axis=-1, keepdims=True)
    lead = (1,) * (x.ndim - 1)
    normal = centred / jnp.sqrt(variance + EPSILON)
    return normal * scale.reshape(*lead, -1) + bias.reshape(*lead, -1)


def rms_formula(x, scale):
    """The same without mean and bias."""
    square = jnp.mean(x**2, axis=-1, keepdims=True)
    return x / jnp.sqrt(square + EPSILON) * scale.reshape((1,) * (x.ndim - 1) + (-1,))


NORMS = {
    "layer": (norm.layer_norm, layer_formula, 2),
    "rms": (norm.rms_norm, rms_formula, 1),
}


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("shape", [(7,), (5, 8), (2, 3, 8)])
def test_values_and_gradients_are_autodiffs(name, shape):
    """Of inputs with a mean far from zero, over any leading axes."""
    function, formula, vectors = NORMS[name]
    draw = np.random.default_rng(len(shape))
    inputs = [3.0 + draw.normal(size=shape)]
    inputs += [draw.normal(size=shape[-1]) for _ in range(vectors)]
    inputs = [x.astype(np.float32) for x in inputs]
    gradient = draw.normal(size=shape).astype(np.float32)
    wanted, pull = jax.vjp(formula, *inputs)
    got, pull_ours = jax.vjp(lambda *x: function(*x, EPSILON), *inputs)
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(pull_ours(gradient), pull(gradient), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("name", NORMS)
def test_short_inputs_have_long_statistics(name):
    """Of bfloat16: float32 results, a gradient in the input's own dtype."""
    function, _, vectors = NORMS[name]
    exact = np.random.default_rng(0).normal(3.0, size=(4, 64)).astype(np.float32)
    short = jnp.asarray(exact, jnp.bfloat16)
    rest = [jnp.ones(64)] * vectors
    got, pull = jax.vjp(lambda *x: function(*x, EPSILON), short, *rest)
    wanted = function(short.astype(jnp.float32), *rest, EPSILON)
    assert got.dtype == jnp.float32
    np.testing.assert_array_equal(got, wanted)
    first, *others = pull(jnp.ones_like(got))
    assert first.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in others} == {jnp.dtype("float32")}


@pytest.mark.parametrize("name", NORMS)
def test_the_gradient_keeps_its_input_and_statistics(name):
    """Nothing else of the input's size is kept."""
    function, _, vectors = NORMS[name]
    inputs = jnp.ones((32, 16))
    _, pull = jax.vjp(
        lambda *x: function(*x, EPSILON), inputs, *[jnp.ones(16)] * vectors
    )
    large = [leaf for leaf in jax.tree.leaves(pull) if leaf.size >= inputs.size]
    assert len(large) == 1
