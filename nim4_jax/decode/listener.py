"""Many streams of audio, one recogniser: packets in, events out.

    listener = Listener(recogniser, streams=16)
    stream = listener.open()
    stream.feed(samples)
    for session, event in listener.advance(): …

`advance` takes at most one chunk of each stream through the device, all in one batch.
What a stream says depends on its own audio alone: not on its packets, nor on when
`advance` is called, nor on the other streams.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from nim4_jax.decode import timing
from nim4_jax.decode.endpoint import BlankDetector, EndpointConfig, Silero
from nim4_jax.decode.events import Event, Final, Partial
from nim4_jax.decode.programs import Arrival
from nim4_jax.decode.recogniser import Recogniser
from nim4_jax.decode.session import Ending, Piece, Session, StreamError, Utterance
from nim4_jax.decode.stream_config import StreamConfig
from nim4_jax.features import SAMPLE_RATE
from nim4_jax.retrieval import hints as retrieval_hints
from nim4_jax.retrieval.hotwords import HotwordRetriever
from nim4_jax.text import prompt
from nim4_jax.types import Frames, Labels

Told = tuple[Session, Event]


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


@dataclasses.dataclass
class _Seat:
    """A slot of the device's state that a session has.

    Attributes:
        session: who has it.
        piece: its next chunk, not yet taken.
        ending: its utterance that waits for the second pass.
        length: tokens of the text so far.
        told: text and stable part of the last partial.
    """

    session: Session
    piece: Piece | None = None
    ending: Utterance | None = None
    length: int = 0
    told: tuple[str, int] = ("", 0)


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
    ):
        """Make room for the streams; programs are compiled when first needed.

        Args:
            recogniser: a model that writes.
            streams: most streams at once.
            config: sizes; None for the defaults.
            boundaries: when speech begins and ends; None for the defaults.
            detector: of speech; None for Silero.

        Raises:
            ValueError: the model does not write, or the prompt has no room.
        """
        recogniser.check_writes()
        self.config = config or StreamConfig.of(rates=recogniser.programs.rates)
        self.effort = Effort()
        self._recogniser = recogniser
        self._boundaries = boundaries or EndpointConfig()
        self._detector = detector or Silero()
        self._window = self.config.window
        self._bare = len(prompt.encode_suffix(recogniser.tokenizer))
        if self._bare > self.config.suffix_tokens:
            raise ValueError(
                f"suffix_tokens={self.config.suffix_tokens} hold no prompt: it has "
                f"{self._bare} tokens without hotwords."
            )
        self._fit = functools.lru_cache(4096)(self._encode_hints)
        self._seats: list[_Seat | None] = [None] * streams
        self._state = recogniser.programs.start(self.config, streams)

    @property
    def streams(self) -> int:
        """Most streams at once."""
        return len(self._seats)

    @property
    def pending(self) -> bool:
        """Whether audio that has come waits for `advance`."""
        return any(seat and (seat.piece or seat.ending) for seat in self._seats)

    def open(
        self,
        *,
        hints: Sequence[str] = (),
        retriever: HotwordRetriever | None = None,
    ) -> Session:
        """A new stream.

        Args:
            hints: names for every prompt of the stream.
            retriever: finds further names in what is heard.

        Raises:
            StreamError: all places are taken.
        """
        for slot, seat in enumerate(self._seats):
            if seat is None:
                session = Session(
                    self.config,
                    self._boundaries,
                    self._detector,
                    hints=tuple(hints),
                    retriever=retriever,
                )
                self._seats[slot] = _Seat(session)
                return session
        raise StreamError(
            f"all {self.streams} streams are taken; close one, or make a listener for "
            "more."
        )

    def drop(self, session: Session) -> None:
        """Forget a stream at once, whatever it has not said yet."""
        for slot, seat in enumerate(self._seats):
            if seat is not None and seat.session is session:
                self._seats[slot] = None

    def advance(self) -> list[Told]:
        """Take the next chunk of every stream that has one.

        Returns:
            Events, those of a stream in the order of its audio. A stream that was
            closed gives its place back with its last event.
        """
        told: list[Told] = []
        self._collect(told)
        slots = [slot for slot, seat in enumerate(self._seats) if seat and seat.piece]
        if slots:
            self._tick(slots, told)
            self._collect(told)
        slots = [slot for slot, seat in enumerate(self._seats) if seat and seat.ending]
        if slots:
            self._finish(slots, told)
            self._collect(told)
        return told

    def drain(self) -> Iterator[Told]:
        """Events until more audio is needed."""
        told = self.advance()
        while told or self.pending:
            yield from told
            told = self.advance()

    def warm_up(self) -> None:
        """Compile every program that streams may need."""
        for rows in self._batches():
            nobody = jnp.full(rows, self.streams, jnp.int32)
            limits = jnp.zeros(rows, jnp.int32)
            suffix = self._pack([()] * rows)
            audio = Frames(
                jnp.zeros((rows, self._window)), jnp.zeros((rows, self._window), bool)
            )
            arrival = Arrival(nobody, audio, jnp.zeros(rows, bool), limits, suffix)
            for width in self.config.widths():
                self._run_tick(width, arrival)
                self._run_finish(width, nobody, limits, suffix)

    def _batches(self) -> tuple[int, ...]:
        """Numbers of rows for which programs exist."""
        rows, found = 1, []
        while rows < self.streams:
            found.append(rows)
            rows *= 4
        return (*found, self.streams)

    def _collect(self, told: list[Told]) -> None:
        """Let every stream say what it can before the device is needed."""
        for slot, seat in enumerate(self._seats):
            while seat and seat.piece is None and seat.ending is None:
                try:
                    step = seat.session.advance()
                except StopIteration:
                    self._seats[slot] = None
                    break
                if step is None:
                    break
                if isinstance(step, Piece):
                    seat.piece = step
                    if step.fresh:
                        seat.length, seat.told = 0, ("", 0)
                elif isinstance(step, Ending):
                    seat.ending = step.utterance
                else:
                    told.append((seat.session, step))

    def _choose_hints(self, seat: _Seat, utterance: Utterance) -> tuple[str, ...]:
        """Names for the prompt: the stream's own, then those that were heard."""
        names = tuple(name.strip() for name in seat.session.hints if name.strip())
        if utterance.hits:
            found = retrieval_hints.select_hints(
                utterance.hits,
                self._recogniser.tokenizer,
                budget=self.config.suffix_tokens - self._bare,
            )
            names = tuple(dict.fromkeys((*names, *found)))
        return self._fit(names)

    def _encode_hints(self, names: tuple[str, ...]) -> tuple[str, ...]:
        return prompt.fit_hints(
            self._recogniser.tokenizer, names, self.config.suffix_tokens
        )

    def _pack(self, hints: Sequence[Sequence[str]]) -> Labels:
        size = self.config.suffix_tokens
        packed = prompt.pack_suffixes(self._recogniser.tokenizer, hints, size)
        return Labels(*packed)

    def _pad(self, slots: Sequence[int]) -> Int[np.ndarray, " B"]:
        """Slots filled up to a batch that there is a program for."""
        rows = next(size for size in self._batches() if size >= len(slots))
        padded = np.full(rows, self.streams, np.int32)
        padded[: len(slots)] = slots
        return padded

    def _find_width(self, seats: Sequence[_Seat], suffix: Labels) -> int:
        asked = np.asarray(suffix.mask).sum(axis=1)
        longest = max(seat.length + asked[row] for row, seat in enumerate(seats))
        return next(width for width in self.config.widths() if width >= longest)

    def _count_tokens(self, utterance: Utterance, until: int) -> int:
        """Tokens that a text up to a sample of the stream may have."""
        seconds = (until - utterance.start) / SAMPLE_RATE
        count = self._recogniser.budget.count(seconds)
        return min(count, self.config.text_tokens)

    def _run_tick(self, width: int, arrival: Arrival):
        self._state, heard, written = self._recogniser.programs.tick(
            self.config, width, self._state, arrival
        )
        return jax.device_get((heard, written))

    def _run_finish(self, width: int, slots, limits, suffix: Labels):
        written = self._recogniser.programs.finish(
            self.config, width, self._state, slots, limits, suffix
        )
        return jax.device_get(written)

    def _tick(self, slots: list[int], told: list[Told]) -> None:
        """One chunk of each of these slots."""
        seats = [seat for slot in slots if (seat := self._seats[slot])]
        padded = self._pad(slots)
        audio = np.zeros((len(padded), self._window), np.float32)
        mask = np.zeros(audio.shape, bool)
        fresh, limits = np.zeros(len(padded), bool), np.zeros(len(padded), np.int32)
        hints: list[tuple[str, ...]] = [()] * len(padded)
        for row, seat in enumerate(seats):
            piece = seat.piece
            assert piece is not None
            place = slice(piece.missing, piece.missing + len(piece.samples))
            audio[row, place] = piece.samples
            mask[row, place] = True
            fresh[row] = piece.fresh
            hints[row] = self._choose_hints(seat, piece.utterance)
            # The second pass follows the last chunk at once, and writes the same.
            if piece.utterance.begun and not piece.last:
                limits[row] = self._count_tokens(piece.utterance, piece.until)
        suffix = self._pack(hints)
        arrival = Arrival(
            jnp.asarray(padded),
            Frames(jnp.asarray(audio), jnp.asarray(mask)),
            jnp.asarray(fresh),
            jnp.asarray(limits),
            suffix,
        )
        width = self._find_width(seats, suffix)
        heard, written = self._run_tick(width, arrival)
        self.effort.ticks += 1
        self.effort.chunks += len(seats)
        self.effort.passes += int(written.passes)
        self.effort.accepted += int(written.accepted[: len(seats)].sum())
        for row, seat in enumerate(seats):
            piece, seat.piece = seat.piece, None
            assert piece is not None
            seat.length = int(written.length[row])
            valid = heard.mask[row]
            (frames,) = np.nonzero(heard.starts[row] & valid)
            seat.session.take(
                piece,
                heard.log_probs[row][valid],
                heard.ids[row][frames].astype(np.uint8),
                frames,
                full=seat.length >= self.config.text_tokens,
            )
            if limits[row]:
                self._tell_partial(
                    seat,
                    piece,
                    written.tokens[row],
                    int(written.stable[row]),
                    hints[row],
                    told,
                )

    def _tell_partial(self, seat: _Seat, piece: Piece, tokens, kept, hints, told):
        text = self._read(tokens[: seat.length])
        front = self._read(tokens[:kept]).rstrip("\ufffd")
        same = (a == b for a, b in zip(front, text))
        stable = sum(itertools.takewhile(bool, same))
        if (text, stable) == seat.told:
            return
        seat.told = (text, stable)
        number, heard = piece.utterance.number, piece.heard / SAMPLE_RATE
        told.append((seat.session, Partial(number, text, stable, hints, heard)))

    def _read(self, tokens: Int[np.ndarray, " L"]) -> str:
        return self._recogniser.tokenizer.decode(tokens.tolist()).strip()

    def _finish(self, slots: list[int], told: list[Told]) -> None:
        """The second pass of the utterances that are over."""
        seats = [seat for slot in slots if (seat := self._seats[slot])]
        padded = self._pad(slots)
        limits = np.zeros(len(padded), np.int32)
        hints: list[tuple[str, ...]] = [()] * len(padded)
        for row, seat in enumerate(seats):
            assert seat.ending is not None and seat.ending.end is not None
            limits[row] = self._count_tokens(seat.ending, seat.ending.end)
            hints[row] = self._choose_hints(seat, seat.ending)
        suffix = self._pack(hints)
        width = self._find_width(seats, suffix)
        written = self._run_finish(
            width, jnp.asarray(padded), jnp.asarray(limits), suffix
        )
        self.effort.finals += len(seats)
        self.effort.passes += int(written.passes)
        self.effort.accepted += int(written.accepted[: len(seats)].sum())
        for row, seat in enumerate(seats):
            utterance, seat.ending = seat.ending, None
            assert utterance is not None
            text = self._read(written.tokens[row][: written.length[row]])
            score, ended = float(written.log_prob[row]), bool(written.finished[row])
            final = self._make_final(utterance, text, score, ended, hints[row])
            told.append((seat.session, final))

    def _make_final(
        self,
        utterance: Utterance,
        text: str,
        log_prob: float,
        finished: bool,
        hints: tuple[str, ...],
    ) -> Final:
        assert utterance.end is not None
        start, end = utterance.start / SAMPLE_RATE, utterance.end / SAMPLE_RATE
        log_probs = np.concatenate(utterance.log_probs)
        words = timing.time_words(
            text, log_probs, end - start, self.config.rates.frame_seconds
        )
        return Final(
            utterance=utterance.number,
            text=text,
            words=tuple(
                dataclasses.replace(
                    word, start=word.start + start, end=word.end + start
                )
                for word in words
            ),
            start=start,
            end=end,
            reason=utterance.reason,
            hotwords=hints,
            log_prob=log_prob,
            finished=finished,
            heard=utterance.known / SAMPLE_RATE,
        )
