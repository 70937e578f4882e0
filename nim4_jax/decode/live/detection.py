"""Batched voice activity detection with Silero; an error fails its own stream only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from nim4_jax.decode.live.session import Session

_Job = tuple[Session, Any, Any]


def detect(sessions: Iterable[Session]) -> dict[Session, Exception]:
    """Score what is new in the streams: one batch for all that share a detector.

    Returns:
        Streams that could not be scored, and why.
    """
    failed: dict[Session, Exception] = {}
    groups: dict[int, list[_Job]] = {}
    for session in sessions:
        try:
            state, windows = session.find_windows()
        except Exception as error:
            failed[session] = error
            continue
        if len(windows):
            job = session, state, windows
            groups.setdefault(id(session.detector), []).append(job)
    for group in groups.values():
        failed |= _score(group)
    return failed


def _score(group: Sequence[_Job]) -> dict[Session, Exception]:
    sessions, states, windows = zip(*group)
    try:
        scored = sessions[0].detector.score_many(states, windows)
    except Exception as error:
        if len(group) == 1:
            return {sessions[0]: error}
        failed: dict[Session, Exception] = {}
        for job in group:
            failed |= _score([job])
        return failed
    for session, (state, scores) in zip(sessions, scored, strict=True):
        session.take_scores(state, scores)
    return {}
