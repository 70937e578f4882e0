"""Waveform → log-mel features, Kaldi's and Whisper's, of whole audio and of pieces.

Frame t begins `lead` samples before sample 160·t and is 400 samples long (25 ms every
10 ms). Each frame is transformed on its own, so frames of a piece of a stream that
holds their samples equal frames of the whole.

| kind    | lead | which frames exist                | a frame's values              |
| ------- | ---- | --------------------------------- | ----------------------------- |
| Kaldi   | 0    | all samples lie inside the audio  | ln of mel energies            |
| Whisper | 200  | its centre lies inside the audio  | log10, above a floor, scaled  |

Sources: Kaldi `feat/feature-fbank.cc`; `transformers` `WhisperFeatureExtractor`.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from nim4_jax import sharding
from nim4_jax.rates import SAMPLE_RATE
from nim4_jax.types import Frames

_INT16_SCALE = 32_768.0
_EPSILON = float(np.finfo(np.float32).eps)
_WHISPER_LEAST = 1e-10  # mel power below which Whisper hears nothing
_WHISPER_RANGE = 8.0  # decades below the clip's maximum that Whisper keeps


@dataclasses.dataclass(frozen=True)
class FeatureConfig:
    """Kaldi's filterbank ("fbank"): log-mel energies of pre-emphasised frames.

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

    lead: ClassVar[int] = 0
    """Samples of frame t before sample hop · t."""
    tail: ClassVar[int] = 0
    """Samples beyond the end of the audio that its last frame may cover."""

    @property
    def anchors(self) -> tuple[int, ...]:
        """Samples of a frame that must be real for it to exist: first and last."""
        return 0, self.window - 1

    def transform(
        self, frames: Float[Array, "B T W"], mask: Bool[Array, "B T"]
    ) -> Float[Array, "B T M"]:
        """Windows of samples in [-1, 1) → natural log of mel energies, int16 scale."""
        del mask
        frames = frames * _INT16_SCALE
        frames = frames - jnp.mean(frames, axis=-1, keepdims=True)
        previous = jnp.concatenate([frames[..., :1], frames[..., :-1]], axis=-1)
        frames = frames - self.preemphasis * previous
        frames = frames * jnp.asarray(povey_window(self.window)).reshape(1, 1, -1)
        energies = _mel_energies(frames, self.fft_size, mel_filters(self))
        return jnp.log(jnp.maximum(energies, _EPSILON))


@dataclasses.dataclass(frozen=True)
class WhisperFeatures:
    """Whisper's log-mel: centred frames, log10 of mel power, a floor, (x + 4) / 4.

    Whisper's floor is 8 decades below the maximum of its clip of 30 s, which a stream
    does not know before the clip's end. A fixed floor can be streamed.

    Attributes:
        num_mels: mel channels M, 80 or, of large-v3, 128.
        floor: least log10 of mel power; None for Whisper's own rule, for whole clips
            only.
        window: samples per frame, and the transform's length.
        hop: samples between frame starts.
    """

    num_mels: int = 80
    floor: float | None = -8.0
    window: int = 400
    hop: int = 160

    @property
    def lead(self) -> int:
        """Samples of frame t before sample hop · t: frames are centred there."""
        return self.window // 2

    @property
    def tail(self) -> int:
        """Samples beyond the end of the audio that its last frame may cover."""
        return self.window // 2 - 1

    @property
    def anchors(self) -> tuple[int, ...]:
        """Samples of a frame that must be real for it to exist: its centre."""
        return (self.lead,)

    def transform(
        self, frames: Float[Array, "B T W"], mask: Bool[Array, "B T"]
    ) -> Float[Array, "B T M"]:
        """Windows of samples in [-1, 1) → scaled log-mel, mostly in [-1, 1.5]."""
        frames = frames * jnp.asarray(hann_window(self.window)).reshape(1, 1, -1)
        power = _mel_energies(frames, self.window, slaney_filters(self))
        values = jnp.log10(jnp.maximum(power, _WHISPER_LEAST))
        if self.floor is None:
            real = jnp.where(mask[..., None], values, -jnp.inf)
            floor = jnp.max(real, axis=(1, 2), keepdims=True) - _WHISPER_RANGE
        else:
            floor = jnp.full((1, 1, 1), self.floor, jnp.float32)
        return (jnp.maximum(values, floor) + 4.0) / 4.0


Features = FeatureConfig | WhisperFeatures
"""Any front end: hop, window, lead, tail, anchors, num_mels and `transform`."""


def num_frames(num_samples: int, config: Features) -> int:
    """Frames of S samples of audio.

    Kaldi 1 + (S − 400) // 160, none below 400 samples; Whisper ⌈S / 160⌉.
    """
    covered = num_samples + config.lead + config.tail
    return max(0, 1 + (covered - config.window) // config.hop)


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


@functools.lru_cache
def slaney_filters(config: WhisperFeatures) -> np.ndarray:
    """Triangular filters of equal area on Slaney's mel scale.

    Returns:
        float32 [window // 2 + 1, num_mels].
    """
    # Slow to import, and no other front end needs it.
    from librosa.filters import mel

    weights = mel(sr=SAMPLE_RATE, n_fft=config.window, n_mels=config.num_mels)
    return np.ascontiguousarray(weights.T, np.float32)


@functools.lru_cache
def hann_window(size: int) -> np.ndarray:
    """Periodic Hann window, float32 [size]."""
    ramp = 2.0 * np.pi * np.arange(size) / size
    return (0.5 - 0.5 * np.cos(ramp)).astype(np.float32)


def _mel_energies(
    frames: Float[Array, "B T W"], fft_size: int, filters: np.ndarray
) -> Float[Array, "B T M"]:
    """Mel-weighted power spectrum of windowed frames."""

    def measure(frames: Array) -> Array:
        spectrum = jnp.fft.rfft(frames, fft_size)
        return jnp.square(spectrum.real) + jnp.square(spectrum.imag)

    # Not every compiler divides a transform over devices.
    power = sharding.split_rows(measure, frames.shape[0])(frames)
    precision = jax.lax.Precision.HIGHEST
    return jnp.einsum("btf,fm->btm", power, jnp.asarray(filters), precision=precision)


def cut_frames(samples: Array, config: Features) -> Array:
    """Overlapping windows without a gather: hop-sized blocks, laid side by side.

    Args:
        samples: [B, S].

    Returns:
        [B, T, window] with T = 1 + (S − window) // hop.
    """
    count = max(0, 1 + (samples.shape[1] - config.window) // config.hop)
    blocks_per_window = -(-config.window // config.hop)
    needed = (count + blocks_per_window - 1) * config.hop
    kept = samples[:, :needed]
    kept = jnp.pad(kept, ((0, 0), (0, needed - kept.shape[1])))
    blocks = kept.reshape(kept.shape[0], -1, config.hop)
    shifted = [blocks[:, k : k + count] for k in range(blocks_per_window)]
    last = config.window - (blocks_per_window - 1) * config.hop
    shifted[-1] = shifted[-1][..., :last]
    return jnp.concatenate(shifted, axis=-1)


def log_mel(audio: Frames, config: Features) -> Frames:
    """Features of whole utterances, padded.

    Args:
        audio: samples in [-1, 1), Float [B, S] at 16 kHz, with their mask.
        config: the kind of features.

    Returns:
        Frames of Float [B, T, M], T = `num_frames(S)`; a frame is valid when its
        anchors are.
    """
    count = num_frames(audio.mask.shape[1], config)
    last = (count - 1) * config.hop + config.window
    behind = max(0, last - config.lead - audio.mask.shape[1])
    pads = ((0, 0), (config.lead, behind))
    audio = jax.tree.map(lambda leaf: jnp.pad(leaf, pads), audio)
    return log_mel_piece(audio, config, 0)


def log_mel_piece(audio: Frames, config: Features, before: int) -> Frames:
    """Features of a piece of a stream that holds all samples of its frames.

    Args:
        audio: Float [B, S]; the piece's first frame begins with its first sample.
        config: the kind of features.
        before: frames of the piece before its own. An utterance may begin with the
            first of its own, at sample `before · hop + lead`: what is masked before it
            is the time before the utterance, which Whisper mirrors. Nothing may be
            masked there in the utterance's later pieces.

    Returns:
        Frames of Float [B, 1 + (S − window) // hop, M].
    """
    count = max(0, 1 + (audio.mask.shape[1] - config.window) // config.hop)
    mask = jnp.ones((audio.mask.shape[0], count), bool)
    for anchor in config.anchors:
        places = slice(anchor, anchor + count * config.hop, config.hop)
        mask = mask & audio.mask[:, places]
    samples = audio.masked().values.astype(jnp.float32)
    if config.lead:
        origin = before * config.hop + config.lead
        samples = _mirror(samples, audio.mask, origin, config.lead)
    frames = cut_frames(samples, config)
    return Frames(config.transform(frames, mask), mask).masked()


def _mirror(
    samples: Float[Array, "B S"], mask: Bool[Array, "B S"], origin: int, size: int
) -> Float[Array, "B S"]:
    """What is masked of the `size` samples before `origin`, mirrored there."""
    after = samples[:, origin + 1 : origin + 1 + size][:, ::-1]
    after = jnp.pad(after, ((0, 0), (size - after.shape[1], 0)))
    place = slice(origin - size, origin)
    known = jnp.where(mask[:, place], samples[:, place], after)
    return jnp.concatenate(
        [samples[:, : origin - size], known, samples[:, origin:]], axis=1
    )
