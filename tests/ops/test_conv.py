"""The depthwise convolution against its definition, tap by tap."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nim4_jax import sharding
from nim4_jax.aot import collectives
from nim4_jax.ops import conv
from nim4_jax.ops.chunking import UNLIMITED
from nim4_jax.ops.cpu import by_taps

TAPS, FRAMES, CHANNELS = 5, 12, 3


@functools.partial(jax.jit, static_argnames="right")
def run(inputs, kernel, chunk_size, right):
    """The function under test, compiled once per context."""
    return conv.depthwise(inputs, kernel, right=right, chunk_size=chunk_size)


def define(inputs, kernel, right, chunk_size):
    """out[t] = Σ_w kernel[w] · x[t + w], zero beyond the end of t's chunk."""
    left = TAPS - 1 - right
    frames = inputs.shape[1] - left
    outputs = np.zeros((inputs.shape[0], frames, CHANNELS))
    for t, w in np.ndindex(frames, TAPS):
        source = t + w - left
        if source < frames and source // chunk_size <= t // chunk_size:
            outputs[:, t] += kernel[w] * inputs[:, t + w]
    return outputs


@given(
    seed=st.integers(0, 999),
    right=st.sampled_from([0, TAPS // 2]),
    chunk_size=st.sampled_from([1, 2, 3, 5, FRAMES, UNLIMITED]),
)
def test_taps_stop_at_the_chunk(seed, right, chunk_size):
    """Left context is always seen, the right only inside the own chunk."""
    rng = np.random.default_rng(seed)
    size = (2, FRAMES + TAPS - 1 - right, CHANNELS)
    inputs = rng.normal(size=size).astype(np.float32)
    kernel = rng.normal(size=(TAPS, CHANNELS)).astype(np.float32)
    got = run(inputs, kernel, np.int32(chunk_size), right)
    expected = define(inputs, kernel, right, chunk_size)
    np.testing.assert_allclose(got, expected, atol=1e-5, rtol=1e-5)


def test_an_endless_chunk_is_a_plain_convolution():
    """Symmetric taps around everything: numpy's "same" convolution."""
    rng = np.random.default_rng(0)
    signal = rng.normal(size=(1, FRAMES, CHANNELS)).astype(np.float32)
    kernel = rng.normal(size=(TAPS, CHANNELS)).astype(np.float32)
    padded = np.pad(signal, ((0, 0), (TAPS // 2, 0), (0, 0)))
    got = run(padded, kernel, np.int32(UNLIMITED), TAPS // 2)
    for channel in range(CHANNELS):
        expected = np.convolve(signal[0, :, channel], kernel[::-1, channel], "same")
        np.testing.assert_allclose(got[0, :, channel], expected, atol=1e-5)


@given(
    seed=st.integers(0, 999),
    batch=st.integers(1, 5),
    right=st.sampled_from([0, TAPS // 2]),
    chunk_size=st.sampled_from([1, 3, UNLIMITED]),
)
def test_gradients_are_those_of_the_definition(seed, batch, right, chunk_size):
    """Both written gradients = the linear map's adjoint."""
    rng = np.random.default_rng(seed)
    frames = FRAMES + TAPS - 1 - right
    inputs = rng.normal(size=(batch, frames, CHANNELS))
    kernel = rng.normal(size=(TAPS, CHANNELS))
    outputs = define(inputs, kernel, right, chunk_size)
    slope = rng.normal(size=outputs.shape)
    _, pull = jax.vjp(
        lambda x, k: run(x, k, np.int32(chunk_size), right),
        inputs.astype(np.float32),
        kernel.astype(np.float32),
    )
    by_input, by_kernel = pull(slope.astype(np.float32))
    bump = np.zeros_like(kernel)
    for place in np.ndindex(*kernel.shape):
        bump[place] = 1.0
        expected = np.vdot(slope, define(inputs, bump, right, chunk_size))
        np.testing.assert_allclose(by_kernel[place], expected, atol=1e-4)
        bump[place] = 0.0
    direction = rng.normal(size=inputs.shape)
    expected = np.vdot(slope, define(direction, kernel, right, chunk_size))
    np.testing.assert_allclose(np.vdot(by_input, direction), expected, atol=1e-3)


@pytest.mark.parametrize("right", [0, TAPS // 2])
@pytest.mark.parametrize("hidden", [False, True])
def test_the_forms_of_the_kernel_gradient_agree(right, hidden):
    """What CPUs, GPUs and TPUs run, with taps that chunks hide and without."""
    rng = np.random.default_rng(0)
    padded = rng.normal(size=(3, FRAMES + TAPS - 1, CHANNELS)).astype(np.float32)
    slope = rng.normal(size=(3, FRAMES, CHANNELS)).astype(np.float32)
    visible = np.ones((FRAMES, TAPS), bool)
    if hidden:
        visible[:, TAPS - right :] = rng.random((FRAMES, right)) < 0.5
    forms = (by_taps.sum_by_taps, conv.sum_at_once, conv.convolve)
    sums = [jax.jit(f, static_argnums=3)(padded, visible, slope, right) for f in forms]
    for other in sums[1:]:
        np.testing.assert_allclose(sums[0], other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", [by_taps.sum_by_taps, conv.sum_at_once, conv.convolve])
def test_each_device_sums_over_its_own_rows(form):
    """One sum of what they found, where the rows lie on eight devices."""
    rng = np.random.default_rng(0)
    padded = rng.normal(size=(16, FRAMES + TAPS - 1, CHANNELS)).astype(np.float32)
    slope = rng.normal(size=(16, FRAMES, CHANNELS)).astype(np.float32)
    visible = np.ones((FRAMES, TAPS), bool)
    visible[:, TAPS - 2 :] = rng.random((FRAMES, 2)) < 0.5
    summed = jax.jit(lambda x, g: form(x, visible, g, 2))
    expected = summed(padded, slope)
    with jax.set_mesh(sharding.make_mesh((8, 1, 1))):
        placed = sharding.put_batch((padded, slope))
        program = summed.lower(*placed).compile()
        assert set(collectives.read(program.as_text())) == {"all-reduce"}
        np.testing.assert_allclose(program(*placed), expected, rtol=1e-5, atol=1e-5)


def test_sums_of_bfloat16_are_float32():
    """128 and 32 times a half are 144; bfloat16 would stay at 128 after each half."""
    inputs = jnp.ones((1, 33 + 32, 1), jnp.bfloat16).at[:, 16].set(256.0)
    kernel = jnp.full((33, 1), 0.5, jnp.bfloat16)
    outputs = conv.depthwise(inputs, kernel, right=0, chunk_size=jnp.int32(1))
    assert outputs.dtype == jnp.bfloat16
    assert float(outputs[0, 0, 0]) == 128.0 + 0.5 * 32
