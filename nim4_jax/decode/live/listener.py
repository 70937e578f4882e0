"""The listener: schedules many streams on one recogniser, packets in, events out.

    listener = Listener(recogniser, streams=16)
    stream = listener.open()
    stream.feed(samples)
    for session, event in listener.advance(): …

`advance` takes at most one chunk of each stream through the device, all in one batch.
What a stream says depends on its own audio alone: not on its packets, nor on when
`advance` is called, nor on the other streams. One that breaks (its hotword search, its
hints, its detector) says `Failed` and gives its place back; the others go on.

Any thread may open, feed, close and drop streams while another one advances.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from nim4_jax.decode import timing
from nim4_jax.decode.endpoint import BlankDetector, EndpointConfig
from nim4_jax.decode.live import detection
from nim4_jax.decode.live.batch import Batch, OccupiedSlot, list_sizes
from nim4_jax.decode.live.events import Event
from nim4_jax.decode.live.prompter import Prompter
from nim4_jax.decode.live.session import Limits, Session, StreamError
from nim4_jax.decode.live.slots import Row, Slot, make_final
from nim4_jax.decode.live.stream_config import StreamConfig
from nim4_jax.decode.live.utterance import Ending, Piece
from nim4_jax.decode.programs import Arrival, Request
from nim4_jax.decode.recogniser import BatchRecogniser
from nim4_jax.decode.silero import Silero
from nim4_jax.features import SAMPLE_RATE
from nim4_jax.retrieval.hotwords import HotwordRetriever

StreamEvent = tuple[Session, Event]


class DeviceError(RuntimeError):
    """The device failed; what it knew of the streams is lost, see `Listener.reset`."""


@dataclasses.dataclass
class Metrics:
    """Counters of the device's work.

    Attributes:
        ticks: calls of the tick program.
        chunks: chunks that they took.
        finals: second passes.
        passes: sequential passes of the LLM, in ticks and second passes.
        accepted: tokens of drafts that stayed: passes saved, were each stream alone.
        host_seconds: processor time of `advance` without its calls of the device.
        device_seconds: processor time of the calling thread in these.
    """

    ticks: int = 0
    chunks: int = 0
    finals: int = 0
    passes: int = 0
    accepted: int = 0
    host_seconds: float = 0.0
    device_seconds: float = 0.0


@dataclasses.dataclass(frozen=True, eq=False)
class _Call:
    """A call that the device is busy with, and what will come of it."""

    batch: Batch
    made: tuple[Any, ...]


class Listener:
    """A recogniser that listens to up to so many streams at once.

    Attributes:
        config: sizes.
        metrics: what the device has done so far.
    """

    def __init__(
        self,
        recogniser: BatchRecogniser,
        *,
        streams: int = 1,
        config: StreamConfig | None = None,
        boundaries: EndpointConfig | None = None,
        detector: Silero | BlankDetector | None = None,
        most_rows: int | None = None,
    ):
        """Make room for the streams; programs are compiled when first needed.

        Args:
            recogniser: a model that writes.
            streams: most streams at once.
            config: sizes; None for the defaults.
            boundaries: when speech begins and ends; None for the defaults.
            detector: of speech; None for Silero.
            most_rows: most streams in one call of the device, which bounds the memory
                that it needs beside their state; None for all.

        Raises:
            ValueError: the model does not write, the prompt has no room, or no row is
                allowed.
        """
        recogniser.check_writes()
        if most_rows is not None and most_rows < 1:
            raise ValueError(f"most_rows={most_rows} must be ≥ 1, or None for all.")
        self.config = config or StreamConfig.of(rates=recogniser.programs.rates)
        self.metrics = Metrics()
        self._recogniser = recogniser
        self._boundaries = boundaries or EndpointConfig()
        self._detector = detector or Silero()
        self._prompter = Prompter(recogniser.tokenizer, self.config.suffix_tokens)
        self._sizes = list_sizes(min(streams, most_rows or streams))
        self._slots: list[Slot | None] = [None] * streams
        self._events: list[StreamEvent] = []
        self._opening = threading.Lock()
        self._advancing = threading.RLock()
        self._broken: BaseException | None = None
        self._state = recogniser.programs.start(self.config, streams)

    @property
    def streams(self) -> int:
        """Most streams at once."""
        return len(self._slots)

    @property
    def pending(self) -> bool:
        """Whether audio that has come, or an event, waits for `advance`."""
        return bool(self._events) or any(slot.waits for _, slot in self._occupied())

    def open(
        self,
        *,
        hints: Sequence[str] = (),
        retriever: HotwordRetriever | None = None,
        limits: Limits | None = None,
        boundaries: EndpointConfig | None = None,
    ) -> Session:
        """A new stream.

        Args:
            hints: names for every prompt of the stream.
            retriever: finds further names in what is heard.
            limits: what the stream may ask for; None for the defaults.
            boundaries: when its speech begins and ends; None for the listener's.

        Raises:
            StreamError: all places are taken, or hints beyond the limits.
        """
        session = Session(
            self.config,
            boundaries or self._boundaries,
            self._detector,
            hints=hints,
            retriever=retriever,
            limits=limits,
        )
        with self._opening:
            for index, slot in enumerate(self._slots):
                if slot is None:
                    self._slots[index] = Slot(session)
                    return session
        raise StreamError(
            f"all {self.streams} streams are taken; close one, or make a listener for "
            "more."
        )

    def drop(self, session: Session) -> None:
        """Forget a stream at once, whatever it has not said yet."""
        for index, slot in self._occupied():
            if slot.session is session:
                self._leave(index, slot)

    def list_sessions(self) -> set[Session]:
        """Streams that have a place, that is, have more to say."""
        return {slot.session for _, slot in self._occupied()}

    def advance(self) -> list[StreamEvent]:
        """Take the next chunk of every stream that has one.

        Returns:
            Events, those of a stream in the order of its audio. A stream that was
            closed, or failed, gives its place back with its last event.

        Raises:
            DeviceError: the device failed, now or before. Events that are ready are
                kept for the call after `reset`.
        """
        with self._advancing, self._on_host():
            self._check_device()
            self._detect()
            self._progress()
            self._take_chunks()
            self._progress()
            self._take_endings()
            self._progress()
            events, self._events = self._events, []
            return events

    def drain(self) -> Iterator[StreamEvent]:
        """Events until more audio is needed."""
        events = self.advance()
        while events or self.pending:
            yield from events
            events = self.advance()

    def reset(self) -> None:
        """Begin anew on the device, after a `DeviceError` or when it shall be emptied.

        Streams of which it held an utterance say `Failed`; all others go on.

        Raises:
            Exception: what the device says if it cannot even begin.
        """
        with self._advancing:
            cause = self._broken
            self._state = None  # the old one's memory first
            self._state = self._recogniser.programs.start(self.config, self.streams)
            self._broken = None
            for index, slot in self._occupied():
                with self._alone(index, slot):
                    self._read(slot)
                begun = slot.piece is not None and not slot.piece.fresh
                if slot.live or slot.ending or begun:
                    error = DeviceError(f"the device was reset ({_describe(cause)}).")
                    self._fail(index, slot, error)

    def warm_up(self) -> None:
        """Compile every program that streams may need, and load what texts need."""
        timing.warm_up()
        with self._advancing:
            self._check_device()
            for size in self._sizes:
                nobody = Batch([], [], [], size, size == self.streams)
                arrival = nobody.arrive(self.config, self._prompter, self.streams)
                zeros, suffix = nobody.list_limits(), nobody.pack(self._prompter)
                slots = nobody.list_slots(self.streams)
                for width in self.config.widths():
                    self._start_tick(width, arrival)
                    self._start_finish(width, Request(slots, zeros, zeros, suffix))
            with self._on_host(), self._on_device():
                jax.block_until_ready(self._state)

    def _occupied(self) -> list[OccupiedSlot]:
        """Who has which slot now."""
        return [(index, slot) for index, slot in enumerate(self._slots) if slot]

    def _leave(self, index: int, slot: Slot) -> None:
        """Give a slot back, unless somebody else has it by now."""
        with self._opening:
            if self._slots[index] is slot:
                self._slots[index] = None

    def _fail(self, index: int, slot: Slot, error: Exception) -> None:
        self._events.append((slot.session, slot.session.fail(error)))
        self._leave(index, slot)

    @contextlib.contextmanager
    def _alone(self, index: int, slot: Slot) -> Iterator[None]:
        """Whatever goes wrong within ends this stream and no other."""
        try:
            yield
        except Exception as error:
            self._fail(index, slot, error)

    def _detect(self) -> None:
        """Find speech in what is new in all streams."""
        slots = {slot.session: (index, slot) for index, slot in self._occupied()}
        for session, error in detection.detect(slots).items():
            self._fail(*slots[session], error)

    def _progress(self) -> None:
        """Let every stream say what it can before the device is needed."""
        for index, slot in self._occupied():
            with self._alone(index, slot):
                self._read(slot)
                while not (slot.piece or slot.ending):
                    try:
                        step = slot.session.advance()
                    except StopIteration:
                        self._leave(index, slot)
                        break
                    if step is None:
                        break
                    if isinstance(step, Piece | Ending):
                        slot.queue(step)
                    else:
                        self._events.append((slot.session, step))

    def _read(self, slot: Slot) -> None:
        """What the device made for a stream, if it has made something."""
        row, slot.done = slot.done, None
        if row is None:
            return
        tokenizer = self._recogniser.tokenizer
        if row.piece is None:
            event = make_final(row, tokenizer, self.config.rates.frame_seconds)
        else:
            event = slot.read_chunk(row, tokenizer, self.config.text_tokens)
        if event is not None:
            self._events.append((slot.session, event))

    def _prepare(self, index: int, slot: Slot, until: int | None) -> Row | None:
        """The row of a stream's chunk or second pass; None: it failed.

        Args:
            slot: of the stream.
            slot: with a piece or an ending.
            until: sample up to which text is asked for; None for none.
        """
        if slot.unfinished:
            return slot.unfinished
        piece, utterance = slot.piece, slot.ending
        if utterance is None:
            assert piece is not None
            utterance = piece.utterance
        with self._alone(index, slot):
            hits = slot.session.find_hits(utterance) if utterance.begun else ()
            hints = self._prompter.choose(slot.session.hints, hits)
            limit = 0
            if until is not None:
                seconds = (until - utterance.start) / SAMPLE_RATE
                limit = self._recogniser.budget.count(seconds)
            limit = min(limit, self.config.text_tokens)
            return Row(utterance, hints, limit, None if slot.ending else piece)
        return None

    def _form(
        self, occupied: Sequence[OccupiedSlot], until: Callable[[Slot], int | None]
    ) -> Iterator[Batch]:
        """Streams that are ready for the device, so many at a time."""
        ready = [
            (one, row)
            for one in occupied
            if (row := self._prepare(*one, until(one[1])))
        ]
        for begin in range(0, len(ready), self._sizes[-1]):
            group, rows = zip(*ready[begin : begin + self._sizes[-1]])
            yield Batch.form(list(group), list(rows), self._sizes, self.streams)

    def _check_device(self) -> None:
        if self._broken is not None:
            raise DeviceError(
                f"the device failed before ({_describe(self._broken)}) and knows "
                "nothing of its streams any more; call Listener.reset() first."
            ) from self._broken

    @contextlib.contextmanager
    def _on_host(self) -> Iterator[None]:
        """Counts processor time; that of the device's calls does not count."""
        began = time.thread_time()
        try:
            yield
        finally:
            self.metrics.host_seconds += time.thread_time() - began

    @contextlib.contextmanager
    def _on_device(self) -> Iterator[None]:
        """Calls that leave nothing to go on with if they fail."""
        began = time.thread_time()
        try:
            yield
        except BaseException as error:
            self._broken = error
            if not isinstance(error, Exception):
                raise
            raise DeviceError(
                f"the device failed ({_describe(error)}). Call Listener.reset() to go "
                "on without the utterances that it held; if memory was short, with "
                "fewer most_rows or streams."
            ) from error
        finally:
            spent = time.thread_time() - began
            self.metrics.host_seconds -= spent
            self.metrics.device_seconds += spent

    def _run(self, call: Callable[[], tuple[Any, ...]]) -> tuple[Any, ...]:
        """What the device makes besides its next state; nothing waits for it."""
        with self._on_device():
            self._state, *made = call()
        return tuple(made)

    def _dispatch_chunks(self, batch: Batch) -> _Call:
        width = batch.find_width(self.config, self._prompter)
        arrival = batch.arrive(self.config, self._prompter, self.streams)
        self.metrics.ticks += 1
        self.metrics.chunks += len(batch.rows)
        return _Call(batch, self._start_tick(width, arrival))

    def _dispatch_finals(self, batch: Batch) -> _Call:
        request = Request(
            batch.list_slots(self.streams),
            batch.list_limits(),
            batch.list_kept(),
            batch.pack(self._prompter),
        )
        width = batch.find_width(self.config, self._prompter)
        return _Call(batch, self._start_finish(width, request))

    def _start_tick(self, width: int, arrival: Arrival) -> tuple[Any, ...]:
        return self._run(
            lambda: self._recogniser.programs.tick(
                self.config, width, self._state, jax.device_put(arrival)
            )
        )

    def _start_finish(self, width: int, request: Request) -> tuple[Any, ...]:
        return self._run(
            lambda: self._recogniser.programs.finish(
                self.config, width, self._state, jax.device_put(request)
            )
        )

    def _collect(self, call: _Call) -> None:
        """Wait for what the device makes, and note it."""
        with self._on_device():
            *heard, written = jax.device_get(call.made)
        batch = call.batch
        self.metrics.passes += int(written.passes)
        self.metrics.accepted += int(written.accepted[batch.places].sum())
        batch.commit(heard[0] if heard else None, written)
        if not heard:
            self.metrics.finals += sum(bool(slot.done) for _, slot in batch.occupied)

    def _take_chunks(self) -> None:
        """One chunk of every stream that has one."""

        def until(slot: Slot) -> int | None:
            # The second pass follows the last chunk at once, and writes the same.
            piece = slot.piece
            return piece.until if piece and _asks_for_text(piece) else None

        occupied = [one for one in self._occupied() if one[1].piece]
        self._send(self._dispatch_chunks, self._form(occupied, until))

    def _take_endings(self) -> None:
        """The second pass of the utterances that are over."""
        occupied = [one for one in self._occupied() if one[1].ending]
        batches = self._form(
            occupied, lambda slot: slot.ending.end if slot.ending else None
        )
        self._send(self._dispatch_finals, batches)

    def _send(
        self, dispatch: Callable[[Batch], _Call], batches: Iterator[Batch]
    ) -> None:
        """All calls are made before the first is waited for."""
        for call in [dispatch(batch) for batch in batches]:
            self._collect(call)


def _asks_for_text(piece: Piece) -> bool:
    return piece.utterance.begun and not piece.last


def _describe(error: BaseException | None) -> str:
    return f"{type(error).__name__}: {error}" if error else "it was asked to"
