"""Synthetic noise: a vehicle, music, a quiet room.

They stand in for recordings where there are none. All are pure functions of a generator
and a length, in numpy alone, at about a millisecond a second of audio.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from nim4_jax.data.audio.reading import SAMPLE_RATE

_TABLE_BITS = 11
_TABLE = 2**_TABLE_BITS  # samples of one period of a tone
_FFT_BLOCK = 4096  # lengths of transforms are multiples, so that all have small factors

_SCALES = ((0, 2, 4, 5, 7, 9, 11), (0, 2, 3, 5, 7, 8, 10))  # major, minor; semitones
_PROGRESSIONS = ((0, 4, 5, 3), (0, 5, 3, 4), (0, 3, 4, 3), (1, 4, 0, 0), (5, 3, 0, 4))
_BAR = 4  # beats

Samples = Float[np.ndarray, " S"]


def make_vehicle(rng: np.random.Generator, size: int) -> Samples:
    """The inside of a moving car.

    Low-passed coloured noise of the road, a little hiss of the wind, the harmonics of
    an engine whose speed wanders, and a slow drift of the whole in loudness.

    Args:
        rng: draws the car, the road and every sample.
        size: samples.

    Returns:
        float32 [size] of root mean square 1.
    """
    corner, slope = rng.uniform(80, 400), rng.uniform(1.0, 2.0)
    hiss = 10 ** (rng.uniform(-40, -25) / 20)
    frequency = _list_frequencies(size)
    road = 1 / (1 + (frequency / corner) ** slope)
    wind = hiss / (1 + (frequency / 2500) ** 2)
    rumble = _colour(rng, (road + wind) * (frequency > 20), size)
    pace = rng.uniform(25, 75) * (1 + 0.1 * _drift(rng, size, 1.5))
    phase = rng.random() + np.cumsum(pace / SAMPLE_RATE)
    table = _make_table(rng, harmonics=10, tilt=rng.uniform(0.7, 1.5))
    engine = table[(phase * _TABLE).astype(np.int64) % _TABLE]
    engine *= np.float32(10 ** (rng.uniform(-12, 3) / 20))
    loudness = 10 ** (2.0 * _drift(rng, size, 1.0) / 20)
    return _normalise((rumble + engine) * loudness.astype(np.float32))


def make_music(rng: np.random.Generator, size: int) -> Samples:
    """A short sequence of chords with bass, plucked notes and a beat, in a loop.

    Args:
        rng: draws key, tempo, chords, instruments and notes.
        size: samples.

    Returns:
        float32 [size] of root mean square 1.
    """
    beat = SAMPLE_RATE * 60 / rng.uniform(70, 150)
    tonic = 110 * 2 ** (rng.integers(12) / 12)
    scale = _SCALES[rng.integers(len(_SCALES))]
    chords = _PROGRESSIONS[rng.integers(len(_PROGRESSIONS))]
    tables = [_make_table(rng, harmonics=6, tilt=rng.uniform(1, 2)) for _ in range(3)]
    bar_size = int(_BAR * beat)
    held = _make_envelope(bar_size, rng.uniform(0.01, 0.15), rng.uniform(0.5, 3.0))
    plucked = _make_envelope(int(2 * beat), 0.004, rng.uniform(0.1, 0.4))
    drums = _make_drums(rng, beat)
    music = np.zeros(size, np.float32)
    start = -rng.integers(bar_size)
    bar = int(rng.integers(len(chords)))
    while start < size:
        degrees = chords[bar % len(chords)] + np.array([0, 2, 4])
        steps = np.array(scale)[degrees % 7] + 12 * (degrees // 7)
        pitches = tonic * 2 ** (steps / 12)
        for pitch in pitches:
            _play(music, start, tables[0], pitch, 0.5 * held)
        for half in range(0, 2 * _BAR):
            place = start + int(half * beat / 2)
            if half % 4 == 0:
                _play(music, place, tables[1], pitches[0] / 2, plucked)
            if rng.random() < 0.7:
                pitch = 2 * pitches[rng.integers(3)]
                _play(music, place, tables[2], pitch, 0.7 * plucked)
        _add(music, start, drums)
        start, bar = start + bar_size, bar + 1
    return _normalise(music)


def make_hush(rng: np.random.Generator, size: int) -> Samples:
    """The murmur of a quiet room and of a microphone: faintly coloured noise.

    Returns:
        float32 [size] of root mean square 1.
    """
    frequency = _list_frequencies(size)
    tilt = rng.uniform(0.0, 1.0)
    return _normalise(_colour(rng, 1 / (1 + frequency / 100) ** tilt, size))


def _list_frequencies(size: int) -> np.ndarray:
    """Hz of the bins from which `_colour` makes `size` samples."""
    length = -(-size // _FFT_BLOCK) * _FFT_BLOCK
    return np.fft.rfftfreq(length, 1 / SAMPLE_RATE)


def _colour(rng: np.random.Generator, amplitude: np.ndarray, size: int) -> Samples:
    """Gaussian noise of a given spectrum, root mean square 1."""
    parts = rng.standard_normal((len(amplitude), 2), dtype=np.float32)
    spectrum = parts.view(np.complex64)[:, 0] * amplitude.astype(np.float32)
    return _normalise(np.fft.irfft(spectrum)[:size].astype(np.float32))


def _drift(rng: np.random.Generator, size: int, seconds: float) -> np.ndarray:
    """A slow curve: normal values every so many seconds, joined by straight lines."""
    gap = seconds * SAMPLE_RATE
    knots = rng.standard_normal(int(size / gap) + 2)
    return np.interp(np.arange(size), gap * np.arange(len(knots)), knots)


def _make_table(rng: np.random.Generator, harmonics: int, tilt: float) -> Samples:
    """One period of a tone; harmonic k has amplitude k^−tilt, give or take a half."""
    numbers = np.arange(1, harmonics + 1)[:, None]
    phases = 2 * np.pi * (numbers * np.arange(_TABLE) / _TABLE)
    phases += rng.uniform(0, 2 * np.pi, numbers.shape)
    weights = rng.uniform(0.5, 1.5, numbers.shape) / numbers**tilt
    return _normalise(np.sum(weights * np.sin(phases), axis=0).astype(np.float32))


def _play(
    target: Samples, start: int, table: Samples, pitch: float, envelope: Samples
) -> None:
    """Add a note in place; `pitch` is in Hz, the phase of 32 bits."""
    heard = envelope[max(-start, 0) : max(len(target) - start, 0)]
    step = np.uint32(pitch * 2**32 / SAMPLE_RATE)
    phase = np.arange(len(heard), dtype=np.uint32) * step
    note = table[phase >> np.uint32(32 - _TABLE_BITS)] * heard
    _add(target, max(start, 0), note)


def _make_envelope(size: int, attack: float, decay: float) -> Samples:
    """A linear rise over `attack` s, an exponential fall over `decay` s, a soft end."""
    time = np.arange(size) / SAMPLE_RATE
    release = (size / SAMPLE_RATE - time) / 0.02
    shape = np.minimum(time / attack, 1.0) * np.minimum(release, 1.0)
    return (shape * np.exp(-time / decay)).astype(np.float32)


def _make_drums(rng: np.random.Generator, beat: float) -> Samples:
    """One bar: a kick on beats 1 and 3, a snare on 2 and 4, a hat on every half beat.

    Args:
        rng: draws the drums.
        beat: samples, ≥ 4800.
    """
    bar = np.zeros(int(_BAR * beat), np.float32)
    size = int(0.2 * SAMPLE_RATE)
    time = np.arange(size) / SAMPLE_RATE
    noise = rng.standard_normal((2, size), dtype=np.float32)
    kick = np.sin(2 * np.pi * (50 * time + 3 * (1 - np.exp(-time / 0.03))))
    kick *= np.exp(-time / 0.08) * rng.uniform(0.5, 2.0)
    snare = noise[0] * np.exp(-time / 0.05) * rng.uniform(0.2, 0.8)
    hat = np.diff(noise[1], prepend=0) * np.exp(-time / 0.015) * rng.uniform(0.1, 0.4)
    for half in range(2 * _BAR):
        _add(bar, int(half * beat / 2), hat.astype(np.float32))
        if half % 2 == 0:
            sound = kick if half % 4 == 0 else snare
            _add(bar, int(half * beat / 2), sound.astype(np.float32))
    return bar


def _add(target: Samples, start: int, sound: Samples) -> None:
    """Add a sound in place, from sample `start` (which may be negative) on."""
    first, last = max(start, 0), min(start + len(sound), len(target))
    if first < last:
        target[first:last] += sound[first - start : last - start]


def _normalise(samples: np.ndarray) -> np.ndarray:
    """Samples of root mean square 1; silence stays silent."""
    root = np.sqrt(np.mean(np.square(samples, dtype=np.float64)))
    return samples / np.float32(root) if root > 0 else samples
