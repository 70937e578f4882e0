"""The slot of a stream in the device state, and events made from device results."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np

from nim4_jax.decode import timing
from nim4_jax.decode.live.events import Final, Partial
from nim4_jax.decode.live.session import Session
from nim4_jax.decode.live.utterance import Ending, Piece, Utterance
from nim4_jax.features import SAMPLE_RATE
from nim4_jax.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
    """A row of a batch, while the device has it and until the host has read it.

    Attributes:
        utterance: whose row it is.
        hints: names in its prompt.
        limit: tokens that the text may have; 0: no text was asked for.
        piece: the chunk; None for a second pass.
        kept: tokens of a second pass that calls before this one wrote.
        log_prob: of these, nats.
        heard: the row's `Heard`, numpy; None for a second pass.
        written: the row's `Written`, numpy.
    """

    utterance: Utterance
    hints: tuple[str, ...]
    limit: int
    piece: Piece | None = None
    kept: int = 0
    log_prob: float = 0.0
    heard: Any = None
    written: Any = None

    @property
    def complete(self) -> bool:
        """Whether the device has no more to write, or was asked for no text."""
        return bool(self.written.finished) or int(self.written.length) >= self.limit

    def go_on(self) -> Row:
        """The same second pass behind what was written so far."""
        return dataclasses.replace(
            self,
            kept=int(self.written.length),
            log_prob=self.log_prob + float(self.written.log_prob),
            written=None,
        )


@dataclasses.dataclass(eq=False)
class Slot:
    """A slot of the device's state that a session has.

    Attributes:
        session: who has it.
        piece: its next chunk, not yet taken.
        ending: its utterance that waits for the second pass.
        unfinished: the row of that pass, if it has begun.
        done: what the device made of either, not yet read.
        live: whether the device holds an utterance that is not over.
        length: tokens of the text so far.
        last_partial: text and stable part of the last partial.
    """

    session: Session
    piece: Piece | None = None
    ending: Utterance | None = None
    unfinished: Row | None = None
    done: Row | None = None
    live: bool = False
    length: int = 0
    last_partial: tuple[str, int] = ("", 0)

    @property
    def waits(self) -> bool:
        """Whether the device or the host has something to do for it."""
        return bool(self.piece or self.ending or self.done or self.session.paused)

    def queue(self, work: Piece | Ending) -> None:
        """Something for the device."""
        if isinstance(work, Ending):
            self.ending = work.utterance
            return
        self.piece = work
        if work.fresh:
            self.length, self.last_partial = 0, ("", 0)

    def commit(self, row: Row) -> None:
        """The device has done what was asked for."""
        self.length = int(row.written.length)
        self.live = row.piece is not None
        if row.piece is None and not row.complete:
            self.unfinished = row.go_on()
            return
        self.done, self.piece, self.ending, self.unfinished = row, None, None, None

    def read_chunk(
        self, row: Row, tokenizer: Tokenizer, text_tokens: int
    ) -> Partial | None:
        """Give the session its chunk; the new partial, if there is one."""
        piece, heard = row.piece, row.heard
        assert piece is not None
        (frames,) = np.nonzero(heard.starts & heard.mask)
        self.session.take(
            piece,
            heard.log_probs[heard.mask],
            heard.ids[frames].astype(np.uint8),
            frames,
            full=self.length >= text_tokens,
        )
        if not row.limit:
            return None
        tokens, kept = row.written.tokens, int(row.written.stable)
        text = _read(tokenizer, tokens[: self.length])
        front = _read(tokenizer, tokens[:kept]).rstrip("\ufffd")
        same = (a == b for a, b in zip(front, text))
        stable = sum(itertools.takewhile(bool, same))
        if (text, stable) == self.last_partial:
            return None
        self.last_partial = (text, stable)
        number, needed = piece.utterance.number, piece.heard / SAMPLE_RATE
        return Partial(number, text, stable, row.hints, needed)


def make_final(row: Row, tokenizer: Tokenizer, frame_seconds: float) -> Final:
    """What the second pass wrote, with times."""
    utterance, written = row.utterance, row.written
    assert utterance.end is not None
    start, end = utterance.start / SAMPLE_RATE, utterance.end / SAMPLE_RATE
    text = _read(tokenizer, written.tokens[: written.length])
    log_probs = np.concatenate(utterance.log_probs)
    words = timing.time_words(text, log_probs, end - start, frame_seconds)
    return Final(
        utterance=utterance.number,
        text=text,
        words=tuple(
            dataclasses.replace(word, start=word.start + start, end=word.end + start)
            for word in words
        ),
        start=start,
        end=end,
        reason=utterance.reason,
        hotwords=row.hints,
        log_prob=row.log_prob + float(written.log_prob),
        finished=bool(written.finished),
        heard=utterance.known / SAMPLE_RATE,
    )


def _read(tokenizer: Tokenizer, tokens: np.ndarray) -> str:
    return tokenizer.decode(tokens.tolist()).strip()
