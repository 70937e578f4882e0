"""RoPE: a rotation that depends on position differences only."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nim4_jax.ops import rotary


def random_heads(seed: int, length: int = 3, heads: int = 2, width: int = 8):
    return jax.random.normal(jax.random.key(seed), (1, length, heads, width))


def turn(heads, positions, theta=1e4):
    angles = rotary.rotary_angles(jnp.asarray(positions), heads.shape[-1], theta)
    return rotary.rotate(heads, *angles)


def test_rotation_is_complex_multiplication_of_the_two_halves():
    heads = random_heads(0)
    positions = np.array([[0, 3, 41]])
    turned = np.asarray(turn(heads, positions))
    x = np.asarray(heads, np.float64)
    pairs = x[..., :4] + 1j * x[..., 4:]
    frequencies = 1e4 ** -(np.arange(4) * 2 / 8)
    expected = pairs * np.exp(1j * positions[:, :, None, None] * frequencies)
    np.testing.assert_allclose(turned[..., :4], expected.real, atol=1e-5)
    np.testing.assert_allclose(turned[..., 4:], expected.imag, atol=1e-5)


@given(st.integers(0, 500), st.integers(0, 500), st.integers(0, 2000))
def test_products_depend_on_position_differences_only(first, second, shift):
    query, key = random_heads(1, length=1), random_heads(2, length=1)

    def product(a, b):
        return jnp.sum(turn(query, [[a]]) * turn(key, [[b]]), axis=-1)

    np.testing.assert_allclose(
        product(first, second), product(first + shift, second + shift), atol=2e-3
    )


def test_dtype_stays_and_angles_are_float32():
    cosines, sines = rotary.rotary_angles(jnp.array([[100_000]]), 4, 1e6)
    assert cosines.dtype == sines.dtype == jnp.float32
    np.testing.assert_allclose(cosines[0, 0, 0, 0], np.cos(100_000.0), atol=1e-4)
    assert turn(random_heads(0).astype(jnp.bfloat16), [[0, 1, 2]]).dtype == jnp.bfloat16


def test_odd_head_width_is_refused():
    with pytest.raises(ValueError, match="head_dim=5 must be even"):
        rotary.rotary_angles(jnp.zeros((1, 1), jnp.int32), 5, 1e4)


def test_positions_count_real_tokens_only():
    mask = jnp.array([[1, 1, 0, 0, 1, 1], [0, 0, 1, 0, 1, 0]], bool)
    positions = rotary.count_positions(mask)
    assert positions.tolist() == [[0, 1, 1, 1, 2, 3], [0, 0, 0, 0, 1, 1]]
    later = rotary.count_positions(mask, start=jnp.array([10, 0]))
    assert later.tolist() == [[10, 11, 11, 11, 12, 13], [0, 0, 0, 0, 1, 1]]
