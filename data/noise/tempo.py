"""Speech faster or slower at its own pitch: waveform similarity overlap-add (WSOLA).

Windows of speech are laid at another pace than they were cut. Each is cut where, near
its due place, the waveform looks most like what followed the window before: periods of
the voice join without a seam.

Source: Verhelst and Roelands 1993.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

_HOP = 240  # samples (15 ms) from window to window; a window is twice as long
_REACH = 160  # samples (10 ms) on either side of its due place: a period of 50 Hz
_COARSE = 4  # samples that are one in the first search
_SILENT = 1e-6  # energy that keeps silence from dividing by zero


def change_tempo(samples: Float[np.ndarray, " S"], factor: float) -> np.ndarray:
    """Play samples `factor` times as fast at the same pitch.

    Args:
        samples: float32 at 16 kHz.
        factor: > 0; the duration is divided by it, as in `audio.change_speed`.

    Returns:
        float32 [S / factor], rounded; what is heard at t s was at t · factor, within
        10 ms.
    """
    size = round(len(samples) / factor)
    if factor == 1.0:
        return samples
    count = size // _HOP + 2
    due = np.rint(np.arange(count) * _HOP * factor).astype(np.int64) + _REACH
    # Window 0 ends one hop into the result; the last one must be there to be cut.
    length = _COARSE * (-(-(int(due[-1]) + 4 * _HOP + 2 * _REACH) // _COARSE))
    padded = np.zeros(length, np.float32)
    heard = samples[: length - _REACH - _HOP]
    padded[_REACH + _HOP : _REACH + _HOP + len(heard)] = heard
    starts = _find_starts(padded, due)
    phases = np.pi * (np.arange(2 * _HOP, dtype=np.float32) + 0.5) / (2 * _HOP)
    windows = padded[starts[:, None] + np.arange(2 * _HOP)] * np.sin(phases) ** 2
    joined = np.zeros((count + 1, _HOP), np.float32)
    joined[:-1] = windows[:, :_HOP]
    joined[1:] += windows[:, _HOP:]
    return joined.reshape(-1)[_HOP : _HOP + size]


def _find_starts(
    samples: Float[np.ndarray, " Z"], due: Int[np.ndarray, " N"]
) -> Int[np.ndarray, " N"]:
    """Where each window is cut: near its due place, and most like what was to follow.

    Likeness is the correlation over the root of the window's energy. It is searched for
    in sums of 4 samples, then among the samples around the best of them.
    """
    coarse = samples.reshape(-1, _COARSE).sum(axis=1)
    reach, length = _REACH // _COARSE, 2 * _HOP // _COARSE
    energy = np.cumsum(np.square(coarse, dtype=np.float64))
    roots = np.sqrt(energy[length:] - energy[:-length] + _SILENT).astype(np.float32)
    starts = due.tolist()
    for number, place in enumerate(starts[1:], start=1):
        target = starts[number - 1] + _HOP
        first = place // _COARSE - reach
        wanted = coarse[target // _COARSE :][:length]
        likeness = np.correlate(coarse[first : first + 2 * reach + length], wanted)
        likeness /= roots[first : first + 2 * reach + 1]
        near = (first + int(likeness.argmax())) * _COARSE - _COARSE + 1
        near = max(near, place - _REACH)
        wanted = samples[target : target + 2 * _HOP]
        found = samples[near : near + 2 * _HOP + 2 * _COARSE - 2]
        starts[number] = near + int(np.correlate(found, wanted).argmax())
    return np.array(starts)
