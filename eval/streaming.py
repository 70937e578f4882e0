"""Recordings recognised as streams, for accuracy figures."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import jax
import numpy as np

from nim4_jax.decode import subtitles
from nim4_jax.decode.hotwords import Prompted
from nim4_jax.decode.live.events import Event, Failed, Final
from nim4_jax.decode.live.listener import Listener
from nim4_jax.decode.live.session import Session, StreamError
from nim4_jax.decode.recogniser import BatchRecogniser, Transcript
from nim4_jax.eval.measures import latency
from nim4_jax.eval.measures.latency import Latency, Timed
from nim4_jax.features import SAMPLE_RATE
from nim4_jax.retrieval.hotwords import HotwordRetriever
from nim4_jax.text.tokenizer import Tokenizer
from nim4_jax.types import Frames


def transcribe(
    listener: Listener,
    audios: Sequence[np.ndarray],
    hints: Sequence[Sequence[str]] | None = None,
    retriever: HotwordRetriever | None = None,
) -> list[list[Event]]:
    """Every recording as a stream of its own, closed at its end.

    As many are heard at once as the listener has places; which does not change what is
    told of each.

    Args:
        listener: with at least one place that nobody has.
        audios: float32 [S] each, 16 kHz.
        hints: names for the prompts of each; None for none.
        retriever: finds further names in what is heard.

    Returns:
        Events of each recording, in the order of its audio.

    Raises:
        StreamError: other streams have all places, or a recording is no audio.
        RuntimeError: a stream failed; figures without it would be others'.
    """
    told: list[list[Event]] = [[] for _ in audios]
    numbers: dict[Session, int] = {}
    try:
        for number, audio in enumerate(audios):
            session = _wait_for_place(listener, numbers, told)
            session.hints = tuple(hints[number]) if hints else ()
            session.retriever = retriever
            numbers[session] = number
            session.feed(audio)
            session.close()
        for session, event in listener.drain():
            _note(numbers, told, session, event)
    finally:
        for session in numbers:
            listener.drop(session)
    return told


def _wait_for_place(
    listener: Listener, numbers: dict[Session, int], told: list[list[Event]]
) -> Session:
    """Advance the streams until one has ended, and open another."""
    while True:
        try:
            return listener.open()
        except StreamError:
            news = listener.advance()
            if not news and not listener.pending:
                raise
            for session, event in news:
                _note(numbers, told, session, event)


def _note(
    numbers: dict[Session, int],
    told: list[list[Event]],
    session: Session,
    event: Event,
) -> None:
    if isinstance(event, Failed):
        raise RuntimeError(
            f"the stream failed at {event.heard:.2f} s: {event.error}."
        ) from session.failure
    if session in numbers:
        told[numbers[session]].append(event)


def join_finals(events: Iterable[Event]) -> str:
    """The text of a whole stream: its finals in a row."""
    return subtitles.join_texts(
        event.text for event in events if isinstance(event, Final)
    )


@dataclasses.dataclass
class StreamedRecogniser:
    """A recogniser for evaluations that hears every recording as a stream.

    Attributes:
        recogniser: the model.
        listener: of it, with no stream open.
        latency: of all streams so far, on the clock of their audio: what their own
            machine adds is not in it.
        retriever: finds names in what is heard; None for none.
    """

    recogniser: BatchRecogniser
    listener: Listener
    latency: Latency = dataclasses.field(default_factory=Latency)
    retriever: HotwordRetriever | None = None

    @property
    def writes(self) -> bool:
        """Whether there is an LLM: a listener needs one."""
        return True

    @property
    def tokenizer(self) -> Tokenizer:
        """Of the LLM."""
        return self.recogniser.tokenizer

    def check_writes(self) -> None:
        """It does: else there were no listener."""

    def hear_phonemes(self, audio: Frames) -> list[tuple[int, ...]]:
        """As the recogniser hears them, without cutting utterances."""
        return self.recogniser.hear_phonemes(audio)

    def transcribe(
        self,
        audio: Frames,
        *,
        hints: Sequence[Sequence[str]] | None = None,
        timings: bool = True,
    ) -> list[Transcript]:
        """The finals of each row in one transcript, as `BatchRecogniser.transcribe`."""
        values, mask = jax.device_get((audio.values, audio.mask))
        rows = [row[valid] for row, valid in zip(values, mask)]
        made = []
        events = transcribe(self.listener, rows, hints, self.retriever)
        for row, told in zip(rows, events):
            timed = [Timed(event, event.heard) for event in told]
            seconds = len(row) / SAMPLE_RATE
            if len(row):  # others fill a batch up
                self.latency += latency.measure(timed, audio_seconds=seconds)
            finals = [event for event in told if isinstance(event, Final)]
            words = [word for final in finals for word in final.words]
            transcript = Transcript(
                text=join_finals(finals),
                tokens=(),
                log_prob=sum(final.log_prob for final in finals),
                finished=all(final.finished for final in finals),
                words=tuple(words) if timings else (),
                phonemes=(),
                duration=seconds,
            )
            if self.retriever is not None:
                found = dict.fromkeys(n for final in finals for n in final.hotwords)
                transcript = Prompted(**vars(transcript), hints=tuple(found))
            made.append(transcript)
        return made
