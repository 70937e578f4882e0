"""Whisper's encoder beyond the contract: positions, and what it refuses.

Its numbers are compared with the reference's in tests/weights/test_whisper.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nim4_jax.layers import Policy
from nim4_jax.models.whisper_encoder import WhisperEncoderConfig, sinusoids
from nim4_jax.ops.chunking import Chunking
from nim4_jax.types import Frames

TINY = WhisperEncoderConfig(
    num_layers=1, width=8, num_heads=2, num_mels=4, max_frames=10
)


def make_silence(frames: int) -> Frames:
    return Frames(jnp.zeros((1, frames, 4)), jnp.ones((1, frames), bool))


@pytest.mark.parametrize("frames, fits", [(19, True), (20, True), (21, False)])
def test_an_utterance_longer_than_the_positions_is_refused(frames, fits):
    """20 ms a position; the error names both numbers."""
    module = TINY.build(Policy())

    def encode():
        return jax.eval_shape(
            module.init, jax.random.key(0), make_silence(frames), Chunking.full()
        )

    if fits:
        encode()
    else:
        with pytest.raises(ValueError, match=r"11 encoder frames .* 10 positions"):
            encode()


def test_positions_are_whispers():
    """sin | cos of place · 10000^(−i / (D/2 − 1))."""
    table = sinusoids(7, 6)
    assert table.shape == (7, 6) and table.dtype == np.float32
    np.testing.assert_array_equal(table[0], [0, 0, 0, 1, 1, 1])
    rates = 10_000.0 ** -np.array([0.0, 0.5, 1.0])
    np.testing.assert_allclose(table[3, :3], np.sin(3 * rates), atol=1e-6)
    np.testing.assert_allclose(table[3, 3:], np.cos(3 * rates), atol=1e-6)


def test_dropout_is_drawn_in_training_only():
    config = WhisperEncoderConfig(
        num_layers=1, width=8, num_heads=2, num_mels=4, dropout=0.5
    )
    frames = make_silence(8)
    params = config.build(Policy()).init(jax.random.key(0), frames, Chunking.full())

    def run(deterministic, seed):
        module = config.build(Policy(), "none", deterministic)
        rngs = {"dropout": jax.random.key(seed)}
        return np.asarray(
            module.apply(params, frames, Chunking.full(), rngs=rngs).values
        )

    assert np.array_equal(run(True, 0), run(True, 1))
    assert not np.array_equal(run(False, 0), run(False, 1))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"num_heads": 3}, "width 8.*multiple of num_heads 3"),
        ({"max_frames": 0}, "max_frames=0 must be at least 1"),
    ],
)
def test_impossible_shapes_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        WhisperEncoderConfig(**{"width": 8, "num_heads": 2, **change})
