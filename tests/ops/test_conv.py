"""The depthwise convolution against its definition, tap by tap."""

import functools

import jax
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from nim4_jax.ops import conv
from nim4_jax.ops.relative import UNLIMITED

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
