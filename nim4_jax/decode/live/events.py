"""Events that a stream emits, in the order of its audio.

All times are seconds of the stream's own audio, so events do not depend on when, or in
which packets, the audio came. `heard` is how much of the audio an event needed: what a
listener waits for it beyond that is the machine's doing.
"""

from __future__ import annotations

import dataclasses

from nim4_jax.decode.timing import Word

SPEECH_ENDED = "speech ended"
STREAM_ENDED = "stream ended"
FULL = "full"
REASONS = (SPEECH_ENDED, STREAM_ENDED, FULL)
"""Why an utterance ended; FULL: it reached the longest that a stream has room for."""


@dataclasses.dataclass(frozen=True)
class SpeechStarted:
    """Somebody began to speak.

    Attributes:
        utterance: number of the utterance in the stream, from 0.
        start: where its audio begins, seconds, pre-roll included.
        heard: seconds of audio that were needed to know it.
    """

    utterance: int
    start: float
    heard: float


@dataclasses.dataclass(frozen=True)
class Partial:
    """The text so far; replaces the utterance's last partial.

    Attributes:
        utterance: as in `SpeechStarted`.
        text: whole text of the utterance so far.
        stable: characters at the front that no later partial changes.
        hotwords: names that the prompt held.
        heard: seconds of audio that were needed.
    """

    utterance: int
    text: str
    stable: int
    hotwords: tuple[str, ...]
    heard: float


@dataclasses.dataclass(frozen=True)
class SpeechStopped:
    """The utterance is over; its final text follows.

    Attributes:
        utterance: as in `SpeechStarted`.
        end: where its audio ends, seconds.
        reason: one of REASONS.
        heard: seconds of audio that were needed.
    """

    utterance: int
    end: float
    reason: str
    heard: float


@dataclasses.dataclass(frozen=True)
class Final:
    """The second pass over a whole utterance.

    Attributes:
        utterance: as in `SpeechStarted`.
        text: "" where nothing was said.
        words: with times in the stream and confidences.
        start: where its audio begins, seconds.
        end: where it ends.
        reason: one of REASONS.
        hotwords: names that the prompt held.
        log_prob: of the answer, nats.
        finished: False where the token budget ended the answer.
        heard: seconds of audio that were needed.
    """

    utterance: int
    text: str
    words: tuple[Word, ...]
    start: float
    end: float
    reason: str
    hotwords: tuple[str, ...]
    log_prob: float
    finished: bool
    heard: float


@dataclasses.dataclass(frozen=True)
class Failed:
    """The stream has come to an end because something of its own went wrong.

    It is the last event of its stream; other streams go on. The utterance that was open
    has no final.

    Attributes:
        utterance: as in `SpeechStarted`: the one that was open, or the last.
        error: what went wrong; the exception itself is `Session.failure`.
        heard: seconds of audio that had been judged.
    """

    utterance: int
    error: str
    heard: float


Event = SpeechStarted | Partial | SpeechStopped | Final | Failed
