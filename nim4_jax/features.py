"""Waveform → log-mel filterbanks under Kaldi's conventions, whole and piecewise.

Frame t covers samples 160·t … 160·t + 399 (25 ms every 10 ms, "snip edges"): only
frames that lie wholly inside the audio exist. Each frame has its mean removed, is
pre-emphasised, windowed (povey) and transformed on its own, so frames cut from a stream
equal frames cut from the whole; the piecewise form only has to keep the last 20 ms of
audio.

Source: Kaldi `feat/feature-fbank.cc`, conventions of SPEC §2.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from nim4_jax import struct
from nim4_jax.types import Frames

SAMPLE_RATE = 16_000
"""Hz; the only rate below the data border."""

_INT16_SCALE = 32_768.0
_EPSILON = float(np.finfo(np.float32).eps)


@dataclasses.dataclass(frozen=True)
class FeatureConfig:
    """The front end's constants.

    Attributes:
        num_mels: mel channels M.
        window: samples per frame.
        hop: samples between frame starts.
        fft_size: transform length, at least `window`.
        preemphasis: coefficient of the first-order pre-emphasis.
        low_hz: lower edge of the lowest mel filter, Hz.
        high_hz: upper edge of the highest mel filter, Hz.
    """

    num_mels: int = 80
    window: int = 400
    hop: int = 160
    fft_size: int = 512
    preemphasis: float = 0.97
    low_hz: float = 20.0
    high_hz: float = 8_000.0

    @property
    def carried_samples(self) -> int:
        """Samples that the piecewise form keeps: whole hops that cover window − hop."""
        return -(-(self.window - self.hop) // self.hop) * self.hop

    @property
    def latency(self) -> int:
        """Frames by which the piecewise form's output lags behind its input."""
        return self.carried_samples // self.hop


@struct.dataclass
class FeatureState:
    """The end of the audio seen so far, [B, carried_samples]."""

    samples: Float[Array, "B S"]
    mask: Bool[Array, "B S"]


def num_frames(num_samples: int, config: FeatureConfig) -> int:
    """Frames in S samples: 1 + (S − window) // hop, none when S < window."""
    return max(0, 1 + (num_samples - config.window) // config.hop)


@functools.lru_cache
def mel_filters(config: FeatureConfig) -> np.ndarray:
    """Triangular filters on Kaldi's mel scale, mel(f) = 1127 · ln(1 + f/700).

    Returns:
        float32 [fft_size // 2 + 1, num_mels]; the Nyquist bin has no weight.
    """

    def mel(hertz):
        return 1127.0 * np.log(1.0 + np.asarray(hertz) / 700.0)

    edges = np.linspace(mel(config.low_hz), mel(config.high_hz), config.num_mels + 2)
    left, center, right = edges[:-2], edges[1:-1], edges[2:]
    bins = mel(np.arange(config.fft_size // 2) * SAMPLE_RATE / config.fft_size)[:, None]
    rising = (bins - left) / (center - left)
    falling = (right - bins) / (right - center)
    weights = np.maximum(0.0, np.minimum(rising, falling))
    nyquist = np.zeros((1, config.num_mels))
    return np.concatenate([weights, nyquist]).astype(np.float32)


@functools.lru_cache
def povey_window(size: int) -> np.ndarray:
    """Hann window to the power 0.85, float32 [size]."""
    ramp = 2.0 * np.pi * np.arange(size) / (size - 1)
    return ((0.5 - 0.5 * np.cos(ramp)) ** 0.85).astype(np.float32)


def cut_frames(samples: Array, config: FeatureConfig) -> Array:
    """Overlapping windows without a gather: hop-sized blocks, laid side by side.

    Args:
        samples: [B, S].

    Returns:
        [B, T, window] with T = 1 + (S − window) // hop.
    """
    count = num_frames(samples.shape[1], config)
    blocks_per_window = -(-config.window // config.hop)
    needed = (count + blocks_per_window - 1) * config.hop
    kept = samples[:, :needed]
    kept = jnp.pad(kept, ((0, 0), (0, needed - kept.shape[1])))
    blocks = kept.reshape(kept.shape[0], -1, config.hop)
    shifted = [blocks[:, k : k + count] for k in range(blocks_per_window)]
    last = config.window - (blocks_per_window - 1) * config.hop
    shifted[-1] = shifted[-1][..., :last]
    return jnp.concatenate(shifted, axis=-1)


def log_mel(audio: Frames, config: FeatureConfig) -> Frames:
    """Log-mel energies of padded audio.

    Args:
        audio: samples in [-1, 1), Float [B, S] at 16 kHz, with their mask.

    Returns:
        Frames of Float [B, T, M], natural log of mel energies at int16 scale; a frame
        is valid when all of its samples are.
    """
    count = num_frames(audio.values.shape[1], config)
    last = config.window - 1
    starts = slice(0, count * config.hop, config.hop)
    ends = slice(last, last + count * config.hop, config.hop)
    mask = audio.mask[:, starts] & audio.mask[:, ends]
    samples = audio.masked().values.astype(jnp.float32) * _INT16_SCALE
    frames = cut_frames(samples, config)
    frames = frames - jnp.mean(frames, axis=-1, keepdims=True)
    previous = jnp.concatenate([frames[..., :1], frames[..., :-1]], axis=-1)
    frames = frames - config.preemphasis * previous
    window = jnp.asarray(povey_window(config.window))
    spectrum = jnp.fft.rfft(frames * window.reshape(1, 1, -1), config.fft_size)
    power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
    filters = jnp.asarray(mel_filters(config))
    energies = jnp.einsum(
        "btf,fm->btm", power, filters, precision=jax.lax.Precision.HIGHEST
    )
    return Frames(jnp.log(jnp.maximum(energies, _EPSILON)), mask).masked()


def init_state(batch: int, config: FeatureConfig) -> FeatureState:
    """State before the first sample: nothing heard, nothing valid."""
    shape = (batch, config.carried_samples)
    return FeatureState(jnp.zeros(shape), jnp.zeros(shape, bool))


def step(
    audio: Frames, state: FeatureState, config: FeatureConfig
) -> tuple[Frames, FeatureState]:
    """The next piece of a stream: as many frames out as hops in, `latency` frames late.

    Args:
        audio: Float [B, S] with S a multiple of `hop`.
        state: what `init_state` or the last call gave.

    Returns:
        Frames [B, S // hop, M] (frames that begin before the audio are invalid), state.

    Raises:
        ValueError: S is not a multiple of `hop`.
    """
    size = audio.values.shape[1]
    if size % config.hop:
        raise ValueError(
            f"a piece of {size} samples is not a whole number of hops; "
            f"feed multiples of {config.hop} samples."
        )
    samples = jnp.concatenate([state.samples, audio.masked().values], axis=1)
    mask = jnp.concatenate([state.mask, audio.mask], axis=1)
    keep = config.carried_samples
    features = log_mel(Frames(samples, mask), config)
    return features, FeatureState(samples[:, -keep:], mask[:, -keep:])
