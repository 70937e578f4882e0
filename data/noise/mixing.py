"""Mixing noise with speech at a signal-to-noise ratio; levels, silence around, babble.

Everything here is a pure function of its arguments; what must be read from files is
read in augment.py.

Source: SPEC §3, robustness; NIM4-ASR §2.2.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from nim4_jax.data.audio.reading import SAMPLE_RATE

TALKERS = (3, 7)
"""Fewest and most voices of babble."""

_BLOCK = SAMPLE_RATE // 50  # samples (20 ms) that are active or not together
_FLOOR = 1e-3  # −30 dB: blocks this far below the loudest one hold no speech
_CEILING = 32767 / 32768  # the largest sample of 16 bits


def fit_silence(
    lead: Float[np.ndarray, " *N"],
    tail: Float[np.ndarray, " *N"],
    room: Float[np.ndarray, " *N"],
) -> tuple[np.ndarray, np.ndarray]:
    """Shorten silences in proportion where both together exceed `room` (all in s)."""
    whole = np.maximum(lead + tail, 1e-9)
    share = np.minimum(1.0, np.maximum(room, 0.0) / whole)
    return lead * share, tail * share


def pad_silence(
    speech: Float[np.ndarray, " S"], lead: float, tail: float, size: int
) -> Float[np.ndarray, " Z"]:
    """Speech with zeros before and behind.

    Args:
        speech: float32 samples.
        lead: zeros before, s.
        tail: zeros behind, s.
        size: most samples of the result; where it is short of room there is less
            silence, never less speech.
    """
    room = np.float64((size - len(speech)) / SAMPLE_RATE)
    silences = fit_silence(np.float64(lead), np.float64(tail), room)
    before, behind = (int(seconds * SAMPLE_RATE) for seconds in silences)
    return np.pad(speech, (before, behind))


def find_active(speech: Float[np.ndarray, " S"]) -> Bool[np.ndarray, " S"]:
    """Where somebody speaks: blocks of 20 ms at most 30 dB below the loudest one.

    Digital silence has no active part.
    """
    starts = np.arange(0, len(speech), _BLOCK)
    sizes = np.minimum(_BLOCK, len(speech) - starts)
    power = np.add.reduceat(np.square(speech, dtype=np.float64), starts) / sizes
    return np.repeat((power > 0) & (power >= _FLOOR * power.max()), sizes)


def mix(
    speech: Float[np.ndarray, " S"], noise: Float[np.ndarray, " S"], snr: float
) -> Float[np.ndarray, " S"]:
    """Speech and noise at a signal-to-noise ratio, without clipping.

        c · (speech + g · noise), with g from 10 log₁₀ (P(speech) / P(g · noise)) = snr,

    P the mean power over the speech's active part, c ≤ 1 what keeps [-1, 1). Noise that
    pauses just there (30 dB below its own mean) is measured over its whole length, lest
    the rest of it drown everything. Nothing can be said of the ratio where speech or
    noise are digital silence: the speech then stays as it is.

    Args:
        speech: float32 samples, silences around it included.
        noise: as many.
        snr: dB.

    Returns:
        float32 samples in [-1, 1).

    Raises:
        ValueError: unequal lengths.
    """
    if len(speech) != len(noise):
        raise ValueError(
            f"{len(noise)} samples of noise for {len(speech)} of speech; make as many"
        )
    active = find_active(speech)
    if not active.any() or not noise.any():
        return speech
    hum, mean = measure_power(noise[active]), measure_power(noise)
    hum = hum if hum > _FLOOR * mean else mean
    gain = np.sqrt(measure_power(speech[active]) / (hum * 10 ** (snr / 10)))
    return limit_peak(speech + np.float32(gain) * noise)


def measure_power(samples: Float[np.ndarray, " S"]) -> float:
    """Mean square of samples."""
    return float(np.mean(np.square(samples, dtype=np.float64)))


def limit_peak(samples: Float[np.ndarray, " S"]) -> Float[np.ndarray, " S"]:
    """Samples scaled down until they lie in [-1, 1); those that do are not touched."""
    peak = float(np.max(np.abs(samples), initial=0.0))
    return samples if peak <= _CEILING else samples * np.float32(_CEILING / peak)


def set_level(samples: Float[np.ndarray, " S"], level: float) -> np.ndarray:
    """Samples with a root mean square of `level` dB below full scale, if not silent."""
    root = np.sqrt(measure_power(samples)) if samples.any() else 1.0
    return samples * np.float32(10 ** (level / 20) / root)


def loop(
    samples: Float[np.ndarray, " S"], start: int, size: int
) -> Float[np.ndarray, " Z"]:
    """`size` samples of a recording that begins again where it ends."""
    return np.take(samples, np.arange(start, start + size), mode="wrap")


def mix_babble(
    rng: np.random.Generator, voices: Sequence[Float[np.ndarray, " _"]], size: int
) -> Float[np.ndarray, " S"]:
    """Many people speaking at once.

    Args:
        rng: draws where each voice begins, and how near it is (± 3 dB).
        voices: float32 samples of utterances; each is looped if it is short.
        size: samples wanted.

    Returns:
        float32 [size], not scaled to anything.
    """
    sum_of_voices = np.zeros(size, np.float32)
    for voice in voices:
        start = int(rng.integers(len(voice)))
        level = rng.normal(0.0, 3.0)
        active = find_active(voice)
        if active.any():
            gain = 10 ** (level / 20) / np.sqrt(measure_power(voice[active]))
            sum_of_voices += np.float32(gain) * loop(voice, start, size)
    return sum_of_voices
