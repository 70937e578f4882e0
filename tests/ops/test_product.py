"""Products with gradients of their own give what autodiff gives."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nim4_jax.ops import product

DTYPES = ("float32", "bfloat16")


def draw(dtype: str, *shapes: tuple[int, ...]) -> list[jax.Array]:
    """An array of each shape; small integers, which every dtype holds exactly."""
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.integers(-3, 4, shape), dtype) for shape in shapes]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lead", [(), (5,), (2, 3)])
def test_multiply_is_a_product(dtype, lead):
    """Values, both gradients and their dtypes, over any leading axes."""
    inputs, kernel, gradient = draw(dtype, (*lead, 4), (4, 6), (*lead, 6))
    wanted, pull = jax.vjp(jnp.matmul, inputs, kernel)
    plain = functools.partial(product.multiply, operands=jnp.dtype(dtype))
    got, pull_ours = jax.vjp(plain, inputs, kernel)
    np.testing.assert_array_equal(got, wanted)
    for ours, theirs in zip(pull_ours(gradient), pull(gradient), strict=True):
        assert ours.dtype == theirs.dtype == jnp.dtype(dtype)
        np.testing.assert_array_equal(ours, theirs)


def test_operands_are_rounded_and_sums_are_not():
    """float32 results of bfloat16 factors, in all three products."""
    rng = np.random.default_rng(0)
    shapes = (7, 300), (300, 6), (7, 6)
    inputs, kernel, gradient = (
        jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes
    )

    def rounded(array):
        return array.astype(jnp.bfloat16).astype(jnp.float32)

    half = functools.partial(product.multiply, operands=jnp.dtype(jnp.bfloat16))
    got, pull = jax.vjp(half, inputs, kernel)
    by_inputs, by_kernel = pull(gradient)
    for ours, left, right in (
        (got, inputs, kernel),
        (by_inputs, gradient, kernel.T),
        (by_kernel, inputs.T, gradient),
    ):
        assert ours.dtype == jnp.float32
        np.testing.assert_allclose(ours, rounded(left) @ rounded(right), atol=1e-4)
        assert np.abs(ours - left @ right).max() > 1e-3


@pytest.mark.parametrize("dtype", DTYPES)
def test_einsum_sums_in_float32(dtype):
    """Its result is float32, its gradients are of the operands' dtype."""
    left, right = draw(dtype, (2, 3, 4), (5, 4))
    subscripts = "bld,vd->blv"
    got, pull = jax.vjp(lambda *x: product.einsum(subscripts, *x), left, right)
    assert got.dtype == jnp.float32
    np.testing.assert_array_equal(
        got, left.astype("float32") @ right.T.astype("float32")
    )
    gradient = draw("float32", got.shape)[0]
    _, plain = jax.vjp(lambda *x: jnp.einsum(subscripts, *x), left, right)
    for ours, theirs in zip(pull(gradient), plain(gradient.astype(dtype)), strict=True):
        assert ours.dtype == jnp.dtype(dtype)
        np.testing.assert_array_equal(ours, theirs)
