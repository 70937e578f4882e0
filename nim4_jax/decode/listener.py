"""Many streams of audio, one recogniser: packets in, events out.

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
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from nim4_jax.decode import detection
from nim4_jax.decode.endpoint import BlankDetector, EndpointConfig
from nim4_jax.decode.events import Event
from nim4_jax.decode.programs import Arrival
from nim4_jax.decode.prompter import Prompter
from nim4_jax.decode.recogniser import Recogniser
from nim4_jax.decode.seat import Row, Seat, make_final
from nim4_jax.decode.session import Limits, Session, StreamError
from nim4_jax.decode.silero import Silero
from nim4_jax.decode.stream_config import StreamConfig
from nim4_jax.decode.utterance import Ending, Piece
from nim4_jax.features import SAMPLE_RATE
from nim4_jax.retrieval.hotwords import HotwordRetriever
from nim4_jax.types import Frames, Labels

Told = tuple[Session, Event]
_Seated = tuple[int, Seat]


class DeviceError(RuntimeError):
    """The device failed; what it knew of the streams is lost, see `Listener.reset`."""


@dataclasses.dataclass
class Effort:
    """What the device has done.

    Attributes:
        ticks: calls of the tick program.
        chunks: chunks that they took.
        finals: second passes.
        passes: sequential passes of the LLM, in ticks and second passes.
        accepted: tokens of drafts that stayed: passes saved, were each stream alone.
    """

    ticks: int = 0
    chunks: int = 0
    finals: int = 0
    passes: int = 0
    accepted: int = 0


class Listener:
    """A recogniser that listens to up to so many streams at once.

    Attributes:
        config: sizes.
        effort: what the device has done so far.
    """

    def __init__(
        self,
        recogniser: Recogniser,
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
        self.effort = Effort()
        self._recogniser = recogniser
        self._boundaries = boundaries or EndpointConfig()
        self._detector = detector or Silero()
        self._prompter = Prompter(recogniser.tokenizer, self.config.suffix_tokens)
        self._most_rows = min(streams, most_rows or streams)
        self._seats: list[Seat | None] = [None] * streams
        self._told: list[Told] = []
        self._seating = threading.Lock()
        self._advancing = threading.RLock()
        self._broken: BaseException | None = None
        self._state = recogniser.programs.start(self.config, streams)

    @property
    def streams(self) -> int:
        """Most streams at once."""
        return len(self._seats)

    @property
    def pending(self) -> bool:
        """Whether audio that has come, or something to be told, waits for `advance`."""
        return bool(self._told) or any(seat.waits for _, seat in self._seated())

    def open(
        self,
        *,
        hints: Sequence[str] = (),
        retriever: HotwordRetriever | None = None,
        limits: Limits | None = None,
    ) -> Session:
        """A new stream.

        Args:
            hints: names for every prompt of the stream.
            retriever: finds further names in what is heard.
            limits: what the stream may ask for; None for the defaults.

        Raises:
            StreamError: all places are taken, or hints beyond the limits.
        """
        session = Session(
            self.config,
            self._boundaries,
            self._detector,
            hints=hints,
            retriever=retriever,
            limits=limits,
        )
        with self._seating:
            for slot, seat in enumerate(self._seats):
                if seat is None:
                    self._seats[slot] = Seat(session)
                    return session
        raise StreamError(
            f"all {self.streams} streams are taken; close one, or make a listener for "
            "more."
        )

    def drop(self, session: Session) -> None:
        """Forget a stream at once, whatever it has not said yet."""
        for slot, seat in self._seated():
            if seat.session is session:
                self._leave(slot, seat)

    def advance(self) -> list[Told]:
        """Take the next chunk of every stream that has one.

        Returns:
            Events, those of a stream in the order of its audio. A stream that was
            closed, or failed, gives its place back with its last event.

        Raises:
            DeviceError: the device failed, now or before. Events that are ready are
                kept for the call after `reset`.
        """
        with self._advancing:
            self._check_device()
            self._detect()
            self._collect()
            self._tick_all()
            self._collect()
            self._finish_all()
            self._collect()
            told, self._told = self._told, []
            return told

    def drain(self) -> Iterator[Told]:
        """Events until more audio is needed."""
        told = self.advance()
        while told or self.pending:
            yield from told
            told = self.advance()

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
            for slot, seat in self._seated():
                with self._alone(slot, seat):
                    self._read(seat)
                begun = seat.piece is not None and not seat.piece.fresh
                if seat.live or seat.ending or begun:
                    error = DeviceError(f"the device was reset ({_describe(cause)}).")
                    self._fail(slot, seat, error)

    def warm_up(self) -> None:
        """Compile every program that streams may need."""
        with self._advancing:
            self._check_device()
            for rows in self._batches():
                nobody = jnp.full(rows, self.streams, jnp.int32)
                limits = jnp.zeros(rows, jnp.int32)
                suffix = self._prompter.pack([], rows)
                shape = (rows, self.config.window)
                audio = Frames(jnp.zeros(shape), jnp.zeros(shape, bool))
                fresh = jnp.zeros(rows, bool)
                arrival = Arrival(nobody, audio, fresh, limits, suffix)
                for width in self.config.widths():
                    self._run_tick(width, arrival)
                    self._run_finish(width, nobody, limits, suffix)

    def _batches(self) -> tuple[int, ...]:
        """Numbers of rows for which programs exist."""
        rows, found = 1, []
        while rows < self._most_rows:
            found.append(rows)
            rows *= 4
        return (*found, self._most_rows)

    def _seated(self) -> list[_Seated]:
        """Who has which slot now."""
        return [(slot, seat) for slot, seat in enumerate(self._seats) if seat]

    def _leave(self, slot: int, seat: Seat) -> None:
        """Give a slot back, unless somebody else has it by now."""
        with self._seating:
            if self._seats[slot] is seat:
                self._seats[slot] = None

    def _fail(self, slot: int, seat: Seat, error: Exception) -> None:
        self._told.append((seat.session, seat.session.fail(error)))
        self._leave(slot, seat)

    @contextlib.contextmanager
    def _alone(self, slot: int, seat: Seat) -> Iterator[None]:
        """Whatever goes wrong within ends this stream and no other."""
        try:
            yield
        except Exception as error:
            self._fail(slot, seat, error)

    def _detect(self) -> None:
        """Find speech in what is new in all streams."""
        seats = {seat.session: (slot, seat) for slot, seat in self._seated()}
        for session, error in detection.detect(seats).items():
            self._fail(*seats[session], error)

    def _collect(self) -> None:
        """Let every stream say what it can before the device is needed."""
        for slot, seat in self._seated():
            with self._alone(slot, seat):
                self._read(seat)
                while not (seat.piece or seat.ending):
                    try:
                        step = seat.session.advance()
                    except StopIteration:
                        self._leave(slot, seat)
                        break
                    if step is None:
                        break
                    if isinstance(step, Piece | Ending):
                        seat.queue(step)
                    else:
                        self._told.append((seat.session, step))

    def _read(self, seat: Seat) -> None:
        """What the device made for a stream, if it has made something."""
        row, seat.done = seat.done, None
        if row is None:
            return
        tokenizer = self._recogniser.tokenizer
        if row.piece is None:
            event = make_final(row, tokenizer, self.config.rates.frame_seconds)
        else:
            event = seat.read_chunk(row, tokenizer, self.config.text_tokens)
        if event is not None:
            self._told.append((seat.session, event))

    def _prepare(self, slot: int, seat: Seat, until: int | None) -> Row | None:
        """The row of a stream's chunk or second pass; None: it failed.

        Args:
            slot: of the stream.
            seat: with a piece or an ending.
            until: sample up to which text is asked for; None for none.
        """
        piece, utterance = seat.piece, seat.ending
        if utterance is None:
            assert piece is not None
            utterance = piece.utterance
        with self._alone(slot, seat):
            hits = seat.session.find_hits(utterance) if utterance.begun else ()
            hints = self._prompter.choose(seat.session.hints, hits)
            limit = 0
            if until is not None:
                seconds = (until - utterance.start) / SAMPLE_RATE
                limit = self._recogniser.budget.count(seconds)
            limit = min(limit, self.config.text_tokens)
            return Row(utterance, hints, limit, None if seat.ending else piece)
        return None

    def _groups(
        self, seated: Sequence[_Seated], until: Callable[[Seat], int | None]
    ) -> Iterator[tuple[list[_Seated], list[Row]]]:
        """Streams that are ready for the device, so many at a time."""
        prepared = [
            (one, row) for one in seated if (row := self._prepare(*one, until(one[1])))
        ]
        for begin in range(0, len(prepared), self._most_rows):
            group = prepared[begin : begin + self._most_rows]
            yield [one for one, _ in group], [row for _, row in group]

    def _pad(self, seated: Sequence[_Seated]) -> Int[np.ndarray, " B"]:
        """Slots filled up to a batch that there is a program for."""
        rows = next(size for size in self._batches() if size >= len(seated))
        padded = np.full(rows, self.streams, np.int32)
        padded[: len(seated)] = [slot for slot, _ in seated]
        return padded

    def _find_width(self, seated: Sequence[_Seated], rows: Sequence[Row]) -> int:
        longest = max(
            seat.length + self._prompter.count(row.hints)
            for (_, seat), row in zip(seated, rows)
        )
        return next(width for width in self.config.widths() if width >= longest)

    def _check_device(self) -> None:
        if self._broken is not None:
            raise DeviceError(
                f"the device failed before ({_describe(self._broken)}) and knows "
                "nothing of its streams any more; call Listener.reset() first."
            ) from self._broken

    @contextlib.contextmanager
    def _on_device(self) -> Iterator[None]:
        """Calls that leave nothing to go on with if they fail."""
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

    def _run_tick(self, width: int, arrival: Arrival):
        with self._on_device():
            self._state, heard, written = self._recogniser.programs.tick(
                self.config, width, self._state, arrival
            )
            return jax.device_get((heard, written))

    def _run_finish(self, width: int, slots, limits, suffix: Labels):
        with self._on_device():
            written = self._recogniser.programs.finish(
                self.config, width, self._state, slots, limits, suffix
            )
            return jax.device_get(written)

    def _tick_all(self) -> None:
        """One chunk of every stream that has one."""

        def until(seat: Seat) -> int | None:
            # The second pass follows the last chunk at once, and writes the same.
            piece = seat.piece
            return piece.until if piece and _asks_for_text(piece) else None

        seated = [one for one in self._seated() if one[1].piece]
        for group, rows in self._groups(seated, until):
            self._tick(group, rows)

    def _tick(self, seated: list[_Seated], rows: list[Row]) -> None:
        padded = self._pad(seated)
        audio = np.zeros((len(padded), self.config.window), np.float32)
        mask = np.zeros(audio.shape, bool)
        fresh, limits = np.zeros(len(padded), bool), np.zeros(len(padded), np.int32)
        for place, row in enumerate(rows):
            piece = row.piece
            assert piece is not None
            span = slice(piece.missing, piece.missing + len(piece.samples))
            audio[place, span], mask[place, span] = piece.samples, True
            fresh[place], limits[place] = piece.fresh, row.limit
        arrival = Arrival(
            jnp.asarray(padded),
            Frames(jnp.asarray(audio), jnp.asarray(mask)),
            jnp.asarray(fresh),
            jnp.asarray(limits),
            self._prompter.pack([row.hints for row in rows], len(padded)),
        )
        heard, written = self._run_tick(self._find_width(seated, rows), arrival)
        self.effort.ticks += 1
        self.effort.chunks += len(rows)
        self._commit(seated, rows, written, heard)

    def _finish_all(self) -> None:
        """The second pass of the utterances that are over."""
        seated = [one for one in self._seated() if one[1].ending]
        for group, rows in self._groups(
            seated, lambda seat: seat.ending.end if seat.ending else None
        ):
            padded = self._pad(group)
            limits = np.zeros(len(padded), np.int32)
            limits[: len(rows)] = [row.limit for row in rows]
            written = self._run_finish(
                self._find_width(group, rows),
                jnp.asarray(padded),
                jnp.asarray(limits),
                self._prompter.pack([row.hints for row in rows], len(padded)),
            )
            self.effort.finals += len(rows)
            self._commit(group, rows, written, None)

    def _commit(self, seated: list[_Seated], rows: list[Row], written, heard) -> None:
        """Note what the device did for all rows, before any of it is read.

        Whatever happens to one stream then, no other one is given a chunk twice.
        """
        self.effort.passes += int(written.passes)
        self.effort.accepted += int(written.accepted[: len(rows)].sum())
        for place, ((_, seat), row) in enumerate(zip(seated, rows)):
            row = dataclasses.replace(
                row,
                written=_take_row(written, place),
                heard=None if heard is None else _take_row(heard, place),
            )
            seat.commit(row)


def _asks_for_text(piece: Piece) -> bool:
    return piece.utterance.begun and not piece.last


def _take_row(struct, place: int):
    """One row of a struct of numpy arrays; what is not by rows stays."""
    return jax.tree.map(lambda leaf: leaf[place] if np.ndim(leaf) else leaf, struct)


def _describe(error: BaseException | None) -> str:
    return f"{type(error).__name__}: {error}" if error else "it was asked to"
