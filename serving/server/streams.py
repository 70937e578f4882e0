"""One client's stream between the event loop and the engine's thread."""

from __future__ import annotations

import asyncio
import collections
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from nim4_jax.decode.live.events import Event, Failed, Final, Partial
from nim4_jax.decode.live.listener import Listener
from nim4_jax.decode.live.session import Session
from nim4_jax.serving.server.metrics import Metrics

_POLL = 0.02  # s between two looks at a stream that is full
_MARKS = 4096  # packets of which the time of arrival is remembered
_PACED = 1.0  # s of audio that a client in real time may be ahead


class BrokenOff(Exception):
    """A stream has ended by something else than the end of its audio.

    Attributes:
        code: what programs look at.
        message: what people read.
    """

    def __init__(self, code: str, message: str):
        super().__init__(message)
        self.code, self.message = code, message


class Outbox:
    """Events on their way to one client, of which so many may wait.

    The engine's thread puts, a coroutine gets. A partial takes the place of the one
    before that was not sent.
    """

    def __init__(self, most: int):
        """An empty one.

        Args:
            most: events that may wait; with one more, the stream breaks off.
        """
        self._most = most
        self._lock = threading.Lock()
        self._events: collections.deque[Event] = collections.deque()
        self._end: BrokenOff | None = None
        self._over = False
        self._waiting: asyncio.Future | None = None

    def put(self, event: Event) -> None:
        """From any thread."""
        with self._lock:
            if self._over:
                return
            last = self._events[-1] if self._events else None
            if isinstance(event, Partial) and isinstance(last, Partial):
                self._events[-1] = event
                return
            if len(self._events) >= self._most:
                self._events.clear()
                self._over = True
                self._end = BrokenOff(
                    "slow_reader",
                    f"{self._most} events wait to be read; the stream was ended.",
                )
            else:
                self._events.append(event)
            self._notify()

    def end(self, reason: BrokenOff | None = None) -> None:
        """No more events; the first reason that was given stays."""
        with self._lock:
            if not self._over:
                self._over, self._end = True, reason
                self._notify()

    async def get(self) -> Event | None:
        """The next event; None behind the last.

        Raises:
            BrokenOff: the stream has ended otherwise, behind the last event.
        """
        while True:
            with self._lock:
                if self._events:
                    return self._events.popleft()
                if self._over:
                    if self._end is not None:
                        raise self._end
                    return None
                waiting = asyncio.get_running_loop().create_future()
                self._waiting = waiting
            await waiting

    def _notify(self) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None and not waiting.done():
            try:
                waiting.get_loop().call_soon_threadsafe(_settle, waiting)
            except RuntimeError:
                return  # the loop is closed: nobody reads any more


def _settle(waiting: asyncio.Future) -> None:
    if not waiting.done():
        waiting.set_result(None)


class Stream:
    """A client's stream.

    Attributes:
        listener: whose chunks it has.
        session: in that listener.
        outbox: its events.
        hits: names of prompts that were written.
        final_seconds: longest wait from the end of speech to a final, None before one.
    """

    def __init__(
        self,
        listener: Listener,
        session: Session,
        *,
        unsent: int,
        waiting: float,
        metrics: Metrics,
        wake: Callable[[], None],
    ):
        """A stream before its audio.

        Args:
            listener: see the attribute.
            session: see the attribute.
            unsent: events that may wait for the client.
            waiting: seconds of audio that may wait to be heard.
            metrics: to count in.
            wake: tells the engine that audio has come.
        """
        self.listener, self.session = listener, session
        self.outbox = Outbox(unsent)
        self.final_seconds: float | None = None
        self.hits = 0
        self._waiting, self._metrics, self._wake = waiting, metrics, wake
        self._began = time.monotonic()
        self._marks: collections.deque[tuple[float, float]] = collections.deque(
            maxlen=_MARKS
        )

    @property
    def seconds(self) -> float:
        """Audio so far."""
        return self.session.seconds

    def feed(self, samples: np.ndarray) -> None:
        """Append float32 samples at 16 kHz.

        Raises:
            StreamError: see `Session.feed`.
        """
        if not len(samples):
            return
        self.session.feed(samples)
        now = time.monotonic()
        if self.seconds <= now - self._began + _PACED:
            self._marks.append((self.seconds, now))
        self._wake()

    def end(self) -> None:
        """No more audio; what is missing of the events comes."""
        self.session.close()
        self._wake()

    async def wait_room(self, seconds: float) -> None:
        """Wait until no more audio waits to be heard than may.

        Raises:
            BrokenOff: it did not become less for that time.
        """
        most, until = self._waiting, time.monotonic() + seconds
        before = self.session.backlog
        while (backlog := self.session.backlog) > most and not self.session.closed:
            if backlog < before:
                before, until = backlog, time.monotonic() + seconds
            if time.monotonic() > until:
                raise BrokenOff(
                    "overloaded", "the server is too slow for this stream's audio."
                )
            await asyncio.sleep(_POLL)

    def tell(self, event: Event) -> None:
        """From the engine's thread: what the listener says."""
        metrics = self._metrics
        if isinstance(event, Failed):
            metrics.failed_streams.inc()
            message = "the recogniser could not go on with this stream."
            self.outbox.end(BrokenOff("stream_failed", message))
            return
        if isinstance(event, Partial | Final):
            self._measure(event)
            if isinstance(event, Final):
                heard = count_heard(event.text, event.hotwords)
                metrics.hotword_hits.inc(heard)
                self.hits += heard
        self.outbox.put(event)

    def finish(self) -> None:
        """From the engine's thread: nothing more comes."""
        self.outbox.end()

    def break_off(self, code: str, message: str) -> None:
        """From any thread: the stream ends here."""
        self.outbox.end(BrokenOff(code, message))

    def _measure(self, event: Partial | Final) -> None:
        """How long after its audio it comes, where that came in real time."""
        came = None
        while self._marks and self._marks[0][0] < event.heard:
            self._marks.popleft()
        if self._marks:
            came = self._marks[0][1]
        if came is None:
            return
        seconds = time.monotonic() - came
        metrics = self._metrics
        if isinstance(event, Final):
            metrics.final_seconds.observe(seconds)
            self.final_seconds = max(self.final_seconds or 0.0, seconds)
            return
        metrics.partial_seconds.observe(seconds)
        if seconds > self.listener.config.seconds:
            metrics.late_partials.inc()


def count_heard(text: str, names: Iterable[str]) -> int:
    """Names of a prompt that the text holds."""
    return sum(name in text for name in names)


def describe_names(lists: Sequence[str], hits: int) -> dict[str, Any]:
    """For the log: lists that were named, and names of prompts that were written."""
    return {
        **({"hotwords": list(lists)} if lists else {}),
        **({"hotword_hits": hits} if hits else {}),
    }
