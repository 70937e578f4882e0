"""Real-time runs of streams: each packet sent when due, each event timed.

A run asks what a listener promises to people who speak: whether so many streams can be
held, and how late their text comes. The clock is given, so that tests can run it.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from nim4_jax.decode.live.events import Failed
from nim4_jax.decode.live.listener import Listener
from nim4_jax.decode.live.session import Session
from nim4_jax.decode.live.utterance import Piece
from nim4_jax.eval.measures import latency
from nim4_jax.eval.measures.latency import Latency, Timed
from nim4_jax.features import SAMPLE_RATE

PACKET = SAMPLE_RATE // 50
"""Samples of a packet, 20 ms."""


@dataclasses.dataclass(frozen=True)
class Run:
    """What came of streams that were paced.

    Attributes:
        latency: of all streams.
        chunk_delays: a chunk each: seconds from when its audio was complete until its
            result was out, whether or not it changed the text.
        gave_up: whether the run was broken off because too many chunks were late.
    """

    latency: Latency
    chunk_delays: tuple[float, ...]
    gave_up: bool = False


def join_speech(
    recordings: Sequence[np.ndarray],
    seconds: float,
    seed: int = 0,
    *,
    pauses: tuple[float, float] = (0.3, 1.5),
) -> np.ndarray:
    """Speech without end: recordings drawn anew each time, with pauses between.

    Args:
        recordings: float32 [S] each, 16 kHz.
        seconds: wanted.
        seed: of draws and pauses.
        pauses: shortest and longest, seconds, drawn uniformly.

    Returns:
        float32 [seconds · 16000]; the last recording is cut there.
    """
    random = np.random.default_rng(seed)
    wanted, pieces, length = round(seconds * SAMPLE_RATE), [], 0
    while length < wanted:
        recording = recordings[int(random.integers(len(recordings)))]
        pause = np.zeros(round(random.uniform(*pauses) * SAMPLE_RATE), np.float32)
        pieces += [recording, pause]
        length += len(recording) + len(pause)
    return np.concatenate(pieces)[:wanted]


@dataclasses.dataclass(eq=False)
class _Caller:
    """One stream, its audio, and when what of it came.

    Attributes:
        session: in the listener.
        audio: all of it.
        phase: seconds of the run's clock at which its first sample is due.
        heard: seconds of audio that each chunk taken since the last look needed.
        delays: of all chunks before.
        events: timed by the stream's own clock.
        fed: samples so far.
    """

    session: Session
    audio: np.ndarray
    phase: float
    heard: list[float] = dataclasses.field(default_factory=list)
    delays: list[float] = dataclasses.field(default_factory=list)
    events: list[Timed] = dataclasses.field(default_factory=list)
    fed: int = 0

    def __post_init__(self):
        # A partial is only told where the text changed; every chunk is taken.
        take = self.session.take

        def note(piece: Piece, *args: Any, **kwargs: Any) -> None:
            self.heard.append(piece.heard / SAMPLE_RATE)
            take(piece, *args, **kwargs)

        self.session.take = note

    @property
    def due(self) -> float:
        """When the next packet is complete, in the run's clock."""
        end = min(self.fed + PACKET, len(self.audio))
        return self.phase + end / SAMPLE_RATE

    def feed(self, now: float) -> None:
        """All packets that are due."""
        while not self.session.closed and self.due <= now:
            self.session.feed(self.audio[self.fed : self.fed + PACKET])
            self.fed += PACKET
            if self.fed >= len(self.audio):
                self.session.close()

    def settle(self, now: float) -> list[float]:
        """What was taken since the last look is out now; its delays."""
        fresh = [now - self.phase - heard for heard in self.heard]
        self.heard.clear()
        self.delays += fresh
        return fresh


def pace(
    listener: Listener,
    audios: Sequence[np.ndarray],
    *,
    most_late: int | None = None,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> Run:
    """Play recordings to a listener, all at once, each as a stream in real time.

    Stream i of N begins i / N of a chunk later than the first, so that chunks do not
    all come due together. A packet is fed when its last sample is due; the listener
    advances whenever anything was fed, and its events count as out when that call
    returns.

    Args:
        listener: with a place for each; programs compiled (`Listener.warm_up`).
        audios: float32 [S] each, 16 kHz.
        most_late: chunks later than a chunk's duration above which to break off.
        clock: seconds.
        sleep: waits so many of them.

    Raises:
        StreamError: fewer places than recordings.
        ValueError: the clock ran backwards.
        RuntimeError: a stream failed.
    """
    step = listener.config.seconds / max(1, len(audios))
    callers = [
        _Caller(listener.open(), audio, number * step)
        for number, audio in enumerate(audios)
    ]
    try:
        busy, gave_up = _play(listener, callers, most_late, clock, sleep)
    finally:
        for caller in callers:
            listener.drop(caller.session)
    found = latency.add_up(
        latency.measure(caller.events, caller.fed / SAMPLE_RATE) for caller in callers
    )
    delays = tuple(delay for caller in callers for delay in caller.delays)
    return Run(dataclasses.replace(found, busy_seconds=busy), delays, gave_up)


def _play(
    listener: Listener,
    callers: Sequence[_Caller],
    most_late: int | None,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
) -> tuple[float, bool]:
    """Until all streams have ended; seconds at work, and whether it was broken off."""
    of_session = {caller.session: caller for caller in callers}
    begun, busy, late = clock(), 0.0, 0
    while True:
        before = clock() - begun
        for caller in callers:
            caller.feed(before)
        told = listener.advance()
        now = clock() - begun
        for session, event in told:
            if isinstance(event, Failed):
                raise RuntimeError(
                    f"a stream failed: {event.error}."
                ) from session.failure
            caller = of_session[session]
            caller.events.append(Timed(event, now - caller.phase))
        fresh = [delay for caller in callers for delay in caller.settle(now)]
        late += sum(delay > listener.config.seconds for delay in fresh)
        busy += now - before
        if most_late is not None and late > most_late:
            return busy, True
        if told or listener.pending:
            continue
        coming = [caller.due for caller in callers if not caller.session.closed]
        if not coming:
            return busy, False
        sleep(max(0.0, min(coming) - (clock() - begun)))


def find_most(
    holds: Callable[[int], bool], first: int, most: int, grain: int = 4
) -> int:
    """The largest number that holds, where all smaller ones do: doubling, then halving.

    Args:
        holds: tries a number ≥ 1.
        first: number to begin with.
        most: largest to try.
        grain: the gap to a number that fails is at most held / grain (or 1) in the end.

    Returns:
        0 where not even 1 holds.
    """
    held, failed, number = 0, most + 1, min(first, most)
    while failed - held > max(1, held // grain if failed <= most else 1):
        if holds(number):
            held = number
        else:
            failed = number
        doubled = min(2 * held, most) if held and failed > most else 0
        number = doubled or (held + failed) // 2
    return held
