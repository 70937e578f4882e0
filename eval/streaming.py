"""Recordings heard as streams: what is said of each, for figures of accuracy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from nim4_jax.decode import subtitles
from nim4_jax.decode.events import Event, Final
from nim4_jax.decode.listener import Listener
from nim4_jax.decode.session import Session, StreamError


def transcribe(listener: Listener, audios: Sequence[np.ndarray]) -> list[list[Event]]:
    """Every recording as a stream of its own, closed at its end.

    As many are heard at once as the listener has places; which does not change what is
    told of each.

    Args:
        listener: with at least one place that nobody has.
        audios: float32 [S] each, 16 kHz.

    Returns:
        Events of each recording, in the order of its audio.

    Raises:
        StreamError: other streams have all places, or a recording is no audio.
    """
    told: list[list[Event]] = [[] for _ in audios]
    numbers: dict[Session, int] = {}
    try:
        for number, audio in enumerate(audios):
            session = _wait_for_place(listener, numbers, told)
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
    if session in numbers:
        told[numbers[session]].append(event)


def join_finals(events: Iterable[Event]) -> str:
    """The text of a whole stream: its finals in a row."""
    return subtitles.join_texts(
        event.text for event in events if isinstance(event, Final)
    )
