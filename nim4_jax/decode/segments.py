"""Long audio cut where it is quietest, and pieces of audio gathered into batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from nim4_jax.features import SAMPLE_RATE
from nim4_jax.types import Frames

_HOP = SAMPLE_RATE // 100
_WINDOW = 10  # hops: 100 ms, about the closure of a stop consonant or longer


@dataclasses.dataclass(frozen=True)
class Segment:
    """A piece of a recording.

    Attributes:
        start: seconds from the start of the recording.
        samples: float32 [S] at 16 kHz.
    """

    start: float
    samples: np.ndarray


def cut(blocks: Iterable[np.ndarray], limit: float) -> Iterator[Segment]:
    """Cut a recording into segments of at most `limit` seconds.

    Rule: what fits is one segment. Else the cut is in the middle of the quietest 100 ms
    (least energy, the latest of equals) that lie wholly between limit / 2 and limit.
    The cuts do not depend on how the blocks were cut, and only about limit + one block
    of audio is held at once.

    Args:
        blocks: float32 [S] pieces of the recording, in order.
        limit: seconds, at least 0.4.

    Yields:
        Segments whose samples, one after the other, are the recording's.

    Raises:
        ValueError: a limit below 0.4 s.
    """
    most = round(limit * SAMPLE_RATE)
    if most < 4 * _WINDOW * _HOP:
        raise ValueError(f"segments of at most {limit} s are too short; use ≥ 0.4 s.")
    pending = np.zeros(0, np.float32)
    done = 0
    for block in blocks:
        pending = np.concatenate([pending, block])
        while len(pending) > most:
            place = _find_quietest(pending[:most])
            yield Segment(done / SAMPLE_RATE, pending[:place])
            pending = pending[place:]
            done += place
    if len(pending):
        yield Segment(done / SAMPLE_RATE, pending)


def _find_quietest(samples: np.ndarray) -> int:
    """Middle of the quietest window in the second half."""
    first = -(-len(samples) // (2 * _HOP))
    hops = samples[first * _HOP : len(samples) // _HOP * _HOP].reshape(-1, _HOP)
    energy = np.square(hops, dtype=np.float64).sum(axis=1)
    sums = np.concatenate([[0.0], np.cumsum(energy)])
    # Rounding of the running sum must not decide between equally silent windows.
    windows = np.round(sums[_WINDOW:] - sums[:-_WINDOW], 9)
    best = len(windows) - 1 - int(np.argmin(windows[::-1]))
    return (first + best + _WINDOW // 2) * _HOP


@dataclasses.dataclass(frozen=True)
class AudioBatch:
    """Pieces of audio in one of the fixed shapes.

    Attributes:
        keys: what each real row is; rows behind them are padding.
        audio: Frames of float32 [B, S], on the device.
    """

    keys: tuple[Any, ...]
    audio: Frames


class Batcher:
    """Gathers pieces of audio into batches of a few fixed shapes.

    Attributes:
        bucket_seconds: lengths of the shapes, growing.
        rows: rows of each shape.
    """

    def __init__(self, bucket_seconds: Sequence[float], rows: Sequence[int]):
        self.bucket_seconds = tuple(bucket_seconds)
        self.rows = tuple(rows)
        self._sizes = [round(seconds * SAMPLE_RATE) for seconds in bucket_seconds]
        self._pending: list[list[tuple[Any, np.ndarray]]] = [[] for _ in rows]

    def add(self, key: Any, samples: np.ndarray) -> Iterator[AudioBatch]:
        """Take a piece in; yields a batch when that fills one.

        Raises:
            ValueError: it is longer than the largest shape.
        """
        place = int(np.searchsorted(self._sizes, len(samples)))
        if place == len(self._sizes):
            raise ValueError(
                f"{key}: {len(samples) / SAMPLE_RATE:.2f} s of audio, the largest "
                f"shape holds {self.bucket_seconds[-1]} s; cut it first."
            )
        self._pending[place].append((key, samples))
        if len(self._pending[place]) == self.rows[place]:
            yield self._release(place)

    def flush(self) -> Iterator[AudioBatch]:
        """What is left, in batches filled up with silent rows."""
        for place, waiting in enumerate(self._pending):
            if waiting:
                yield self._release(place)

    def _release(self, place: int) -> AudioBatch:
        waiting, self._pending[place] = self._pending[place], []
        shape = (self.rows[place], self._sizes[place])
        values, mask = np.zeros(shape, np.float32), np.zeros(shape, bool)
        for row, (_, samples) in enumerate(waiting):
            values[row, : len(samples)] = samples
            mask[row, : len(samples)] = True
        audio = Frames(jnp.asarray(values), jnp.asarray(mask))
        return AudioBatch(tuple(key for key, _ in waiting), audio)
