"""A telephone line: 8 kHz, the voice band, and eight bits of µ-law or A-law a sample.

Samples leave at 16 kHz as they came, as many and in place: every filter has no phase.

Source: ITU-T G.711 (companding), G.712 (the band from 300 to 3400 Hz).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int
from scipy import fft

from nim4_jax.data.audio import reading
from nim4_jax.data.audio.reading import SAMPLE_RATE

LAWS = ("mulaw", "alaw")
"""Companding: µ-law of North America and Japan, A-law of the rest of the world."""

RATE = 8000
"""Samples a second on the line, Hz."""

BAND = (300.0, 3400.0)
"""Hz at which the line takes 3 dB away."""

_ORDERS = (4, 12)  # of the slopes below and above the band: 24 and 72 dB an octave
_RINGING = 400  # samples (50 ms) after which the band's filter has faded


def transmit(samples: Float[np.ndarray, " S"], law: str) -> Float[np.ndarray, " S"]:
    """Audio after a telephone line: band-passed, companded, back at 16 kHz.

    Args:
        samples: float32 at 16 kHz; what lies outside [-1, 1) clips.
        law: of `LAWS`.

    Returns:
        float32 [S] at 16 kHz in [-1, 1).

    Raises:
        ValueError: an unknown law.
    """
    narrow = limit_band(reading.resample(samples, SAMPLE_RATE, RATE))
    coded = reading.to_float32(compand(reading.to_int16(narrow), law))
    wide = reading.resample(coded, RATE, SAMPLE_RATE)[: len(samples)]
    # Two roundings of the length may lose a sample.
    whole = np.pad(wide, (0, len(samples) - len(wide)))
    return reading.clip(whole)


def limit_band(samples: Float[np.ndarray, " S"]) -> Float[np.ndarray, " S"]:
    """The part of samples at 8 kHz in `BAND`: Butterworth slopes, without phase.

    |H(f)|² = 1 / (1 + (300 / f)⁸) · 1 / (1 + (f / 3400)²⁴)
    """
    length = int(fft.next_fast_len(len(samples) + _RINGING, real=True))
    frequency = np.fft.rfftfreq(length, 1 / RATE)
    frequency[0] = 1e-3  # Hz; nothing is left of it, and nothing divides by zero
    low = 1 + (BAND[0] / frequency) ** (2 * _ORDERS[0])
    high = 1 + (frequency / BAND[1]) ** (2 * _ORDERS[1])
    gain = (1 / np.sqrt(low * high)).astype(np.float32)
    spectrum = np.asarray(fft.rfft(samples, length)) * gain
    return np.asarray(fft.irfft(spectrum, length))[: len(samples)]


def compand(samples: Int[np.ndarray, " S"], law: str) -> Int[np.ndarray, " S"]:
    """Samples as they are after coding to 8 bits and decoding, bit for bit as G.711.

    Both laws keep the sign, the octave and four more bits of the magnitude m, and give
    back the middle of such a step:

        step = 2^(octave − 4), octave = ⌊log₂ m⌋, decoded = (⌊m / step⌋ + ½) · step

    µ-law adds 132 to the magnitude before and takes it away behind, so that the finest
    steps are of 8; A-law has steps of 16 in everything below its second octave.

    Args:
        samples: int16.
        law: of `LAWS`.

    Returns:
        int16 [S].

    Raises:
        ValueError: an unknown law.
    """
    if law not in LAWS:
        raise ValueError(f"companding law {law!r}; choose from {', '.join(LAWS)}")
    wide = samples.astype(np.int32)
    sign = wide >> 31  # −1 below zero, else 0
    if law == "mulaw":
        bias, lowest = 132, 7
        magnitude = np.minimum(np.abs(wide), 32635) + bias
    else:
        bias, lowest = 0, 8
        magnitude = wide ^ sign  # −1 is as far from zero as 0 is
    # A float32 holds such a number exactly; its exponent is the octave.
    octave = np.frexp(magnitude.astype(np.float32))[1] - 1
    step = np.maximum(octave, lowest) - 4
    decoded = (magnitude >> step << step) + (1 << step >> 1) - bias
    return ((decoded ^ sign) - sign).astype(np.int16)
