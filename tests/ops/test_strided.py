"""The subsampling's convolution: its gradients, in each form, are the definition's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nim4_jax.ops import strided
from nim4_jax.ops.cpu import by_taps


def define(inputs: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """The sum as the docstring writes it, float64."""
    height, width = kernel.shape[:2]
    steps = (inputs.shape[1] - height) // 2 + 1
    bands = (inputs.shape[2] - width) // 2 + 1
    outputs = np.zeros((inputs.shape[0], steps, bands, kernel.shape[3]))
    for y, z in np.ndindex(steps, bands):
        seen = inputs[:, 2 * y : 2 * y + height, 2 * z : 2 * z + width]
        outputs[:, y, z] = np.einsum("bvwe,vwef->bf", seen, kernel)
    return outputs


@settings(max_examples=15, deadline=None)
@given(
    size=st.tuples(st.integers(3, 9), st.integers(3, 8)),
    channels=st.sampled_from([1, 4]),
    seed=st.integers(0, 99),
)
def test_outputs_and_gradients_are_those_of_the_definition(size, channels, seed):
    """Odd and even sizes: frames that no window reaches have no part in it."""
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(2, *size, channels)).astype(np.float32)
    kernel = rng.normal(size=(3, 3, channels, 5)).astype(np.float32)
    operands = jnp.asarray(inputs), jnp.asarray(kernel)
    outputs, pull = jax.vjp(strided.convolve, *operands)
    expected = define(inputs, kernel)
    np.testing.assert_allclose(outputs, expected, atol=1e-4)
    slope = rng.normal(size=expected.shape).astype(np.float32)
    by_inputs, by_kernel = pull(slope)
    for place in ((0, 0, 0, 0), (2, 2, channels - 1, 4), (1, 2, 0, 3)):
        bump = np.zeros_like(kernel)
        bump[place] = 1.0
        change = np.vdot(slope, define(inputs, bump))
        np.testing.assert_allclose(by_kernel[place], change, atol=1e-3)
    direction = rng.normal(size=inputs.shape)
    change = np.vdot(slope, define(direction, kernel))
    np.testing.assert_allclose(np.vdot(by_inputs, direction), change, atol=1e-3)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_forms_of_the_kernel_gradient_agree(dtype):
    """What CPUs multiply and what other platforms transpose, in the kernel's dtype."""
    rng = np.random.default_rng(0)
    inputs = jnp.asarray(rng.normal(size=(3, 11, 8, 4)), dtype)
    kernel = jnp.zeros((3, 3, 4, 6), dtype)
    slope = jnp.asarray(rng.normal(size=(3, 5, 3, 6)), dtype)
    products = by_taps.multiply_taps(inputs, kernel, slope, stride=2)
    transposed = strided.transpose(inputs, kernel, slope)
    assert products.dtype == transposed.dtype == dtype
    tolerance = 1e-5 if dtype == jnp.float32 else 0.1
    np.testing.assert_allclose(
        products.astype(jnp.float32),
        transposed.astype(jnp.float32),
        rtol=tolerance,
        atol=tolerance,
    )
