"""Segmentation of long recordings at pauses, and batching of the segments."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from nim4_jax.decode import endpoint
from nim4_jax.decode.endpoint import Boundary, Detector, EndpointConfig
from nim4_jax.features import SAMPLE_RATE
from nim4_jax.types import Frames

_HOP = SAMPLE_RATE // 100
_WINDOWS = 64  # of the detector that are scored at once
_WINDOW = 10  # hops: 100 ms, about the closure of a stop consonant or longer
_GAP = SAMPLE_RATE  # samples without speech that part what would fit in one segment


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
    most = _check_limit(limit)
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


def _check_limit(limit: float) -> int:
    """Samples of the longest segment."""
    most = round(limit * SAMPLE_RATE)
    if most < 4 * _WINDOW * _HOP:
        raise ValueError(f"segments of at most {limit} s are too short; use ≥ 0.4 s.")
    return most


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


def cut_speech(
    blocks: Iterable[np.ndarray],
    detector: Detector,
    config: EndpointConfig,
    limit: float,
) -> Iterator[Segment]:
    """Cut the speech out of a recording, in segments of at most `limit` seconds.

    Rule: utterances are what `endpoint.judge` finds; the recording's end ends the last.
    An utterance joins the segment before it, with the gap between, where that gap is
    shorter than 1 s and the whole fits. One that fits in no segment is cut as `cut`
    does. Silence between segments is left out. The segments do not depend on how the
    blocks were cut, and only about 2 · limit + one block of audio is held at once.

    Args:
        blocks: float32 [S] pieces of the recording, in order.
        detector: of speech, such as `Silero`.
        config: when speech begins and ends.
        limit: seconds, at least 0.4.

    Yields:
        Segments in order, which do not overlap; none where nobody speaks.

    Raises:
        ValueError: a limit below 0.4 s, or samples that the detector refuses.
    """
    gathering = _Gathering(_check_limit(limit))
    state, heard = endpoint.EndpointState(), detector.start()
    frame = detector.frame
    for block in blocks:
        gathering.append(block)
        while count := min((gathering.received - state.position) // frame, _WINDOWS):
            end = state.position + count * frame
            windows = gathering.read(state.position, end).reshape(count, frame)
            heard, probabilities = detector.score(heard, windows)
            for probability in probabilities:
                state, boundary = endpoint.judge(
                    config, state, float(probability), frame
                )
                yield from gathering.take(boundary, state.position)
                yield from gathering.release(endpoint.find_earliest(config, state))
    rest = gathering.read(state.position, gathering.received)
    if len(rest):
        window = np.pad(rest, (0, frame - len(rest)))
        heard, probabilities = detector.score(heard, window[None])
        state, boundary = endpoint.judge(config, state, float(probabilities[0]), frame)
        yield from gathering.take(boundary, gathering.received)
    if state.speaking:
        end = gathering.received
        yield from gathering.take(Boundary(endpoint.END, end, end), end)
    yield from gathering.release(gathering.received + _GAP)


class Cutter:
    """Cuts recordings into segments that fit the largest shape.

    A recording that fits is one segment, speech or not. Of a longer one only the speech
    is kept, as `cut_speech` cuts it; without a detector it is cut as `cut` does.

    Attributes:
        limit: seconds of the longest segment.
    """

    def __init__(self, limit: float, make_detector: Callable[[], Detector] | None):
        """Nothing is loaded yet.

        Args:
            limit: seconds, at least 0.4.
            make_detector: makes the detector of speech, once, for the first recording
                that does not fit; None for no detector.
        """
        self.limit = limit
        self._make_detector = make_detector
        self._detector: Detector | None = None

    def cut(self, blocks: Iterable[np.ndarray]) -> Iterator[Segment]:
        """The segments of a recording.

        Args:
            blocks: float32 [S] pieces of the recording, in order.

        Yields:
            Segments in order; none of a long recording in which nobody speaks.

        Raises:
            ValueError: a limit below 0.4 s.
        """
        if self._make_detector is None:
            yield from cut(blocks, self.limit)
            return
        head: list[np.ndarray] = []
        blocks = iter(blocks)
        room = round(self.limit * SAMPLE_RATE)
        while room >= 0 and (block := next(blocks, None)) is not None:
            head.append(block)
            room -= len(block)
        if room >= 0:
            yield from cut(head, self.limit)
            return
        self._detector = self._detector or self._make_detector()
        whole = itertools.chain(head, blocks)
        yield from cut_speech(whole, self._detector, EndpointConfig(), self.limit)


class _Gathering:
    """Utterances on their way into segments, and the audio that these may need.

    Attributes:
        received: samples so far.
    """

    def __init__(self, most: int):
        self.received = 0
        self._most = most
        self._audio = np.zeros(0, np.float32)
        self._base = 0  # sample of the recording at which the audio begins
        self._segment: tuple[int, int] | None = None  # whole utterances, joined
        self._begin: int | None = None  # of the utterance that goes on

    def append(self, block: np.ndarray) -> None:
        self._audio = np.concatenate([self._audio, block])
        self.received += len(block)

    def read(self, start: int, end: int) -> np.ndarray:
        return self._audio[start - self._base : end - self._base]

    def take(self, boundary: Boundary | None, position: int) -> Iterator[Segment]:
        """What a window changed; `position` is one past its last sample."""
        if boundary and boundary.kind == endpoint.START:
            self._begin = boundary.at
        if self._begin is None:
            return
        if self._segment:
            start, end = self._segment
            if self._begin - end >= _GAP or position - start > self._most:
                yield self._emit(start, end)
                self._segment = None
        while position - self._begin > self._most:
            whole = self.read(self._begin, self._begin + self._most)
            place = self._begin + _find_quietest(whole)
            yield self._emit(self._begin, place)
            self._begin = place
        if boundary and boundary.kind == endpoint.END:
            start = self._segment[0] if self._segment else self._begin
            self._segment, self._begin = (start, position), None

    def release(self, earliest: int) -> Iterator[Segment]:
        """Let go what no utterance that begins at `earliest` or later can need."""
        if (
            self._segment
            and self._begin is None
            and earliest >= self._segment[1] + _GAP
        ):
            yield self._emit(*self._segment)
            self._segment = None
        if self._segment:
            earliest = self._segment[0]
        elif self._begin is not None:
            earliest = self._begin
        keep = min(earliest, self.received) - self._base
        # Copying at every window would cost more than the memory is worth.
        if keep > self._most:
            self._audio, self._base = self._audio[keep:].copy(), self._base + keep

    def _emit(self, start: int, end: int) -> Segment:
        return Segment(start / SAMPLE_RATE, self.read(start, end).copy())


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
        long_alone: whether a piece that is longer than the largest shape comes alone,
            in a batch of its own length.
    """

    def __init__(
        self,
        bucket_seconds: Sequence[float],
        rows: Sequence[int],
        *,
        long_alone: bool = False,
    ):
        self.long_alone = long_alone
        self.bucket_seconds = tuple(bucket_seconds)
        self.rows = tuple(rows)
        self._sizes = [round(seconds * SAMPLE_RATE) for seconds in bucket_seconds]
        self._pending: list[list[tuple[Any, np.ndarray]]] = [[] for _ in rows]

    def gather(self, pieces: Iterable[tuple[Any, np.ndarray]]) -> Iterator[AudioBatch]:
        """Batches of (key, samples), and what is left at the end.

        Raises:
            ValueError: see `add`.
        """
        for key, samples in pieces:
            yield from self.add(key, samples)
        yield from self.flush()

    def add(self, key: Any, samples: np.ndarray) -> Iterator[AudioBatch]:
        """Take a piece in; yields a batch when that fills one.

        Raises:
            ValueError: it is longer than the largest shape, and not `long_alone`.
        """
        place = int(np.searchsorted(self._sizes, len(samples)))
        if place == len(self._sizes):
            if self.long_alone:
                mask = np.ones((1, len(samples)), bool)
                audio = Frames(jnp.asarray(samples[None]), jnp.asarray(mask))
                yield AudioBatch((key,), audio)
                return
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
