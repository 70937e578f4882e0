"""Latency and stability of streams, from their timed events.

A stream's clock starts when its first sample is due, and its audio is paced in real
time: an event that needed `heard` seconds of audio cannot come before clock = heard.
What it comes later is work, or a queue. All times are seconds, and each stands for a
kind of wait:

    first_partial_delay  until a speaker sees that the machine follows
    partial_lag          from a word said until it stands on the screen for good
    final_delay          from the last word said until the final text
    final_work           the same, without the wait for the endpoint
    tick_delay           from the audio of a partial until the partial

Words are those of `timing.split_words`, so that a Chinese character counts as one; they
are equal if they are written alike (NFKC), case and punctuation included: what a reader
sees change is a change.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from rapidfuzz.distance import LCSseq

from nim4_jax.decode.live.events import Event, Final, Partial, SpeechStarted
from nim4_jax.decode.timing import split_words

PERCENTILES = (50, 95, 99)
RANKS = tuple(range(0, 101, 2))
"""Percentiles from which a distribution can be drawn."""

_DELAYS = (
    "first_partial_delay",
    "partial_lag",
    "final_delay",
    "final_work",
    "tick_delay",
)
_SLACK = 1e-6  # seconds by which a sum of floats may fall short


@dataclasses.dataclass(frozen=True)
class Timed:
    """An event and when it came.

    Attributes:
        event: of a stream.
        clock: seconds of wall clock since the stream's first sample was due.
    """

    event: Event
    clock: float


@dataclasses.dataclass(frozen=True)
class Latency:
    """Measurements of streams, which add up: every field is a sum or a collection.

    Attributes:
        first_partial_delay: an utterance each: clock of its first partial with text −
            start of its final's first word (of the speech where it has none). Without
            such a partial there is none.
        partial_lag: a word of a final each: clock − the word's end, at the first
            partial (or the final) from which on every partial begins with all the
            final's words up to and with this one. Negative where a word was guessed
            before its end.
        final_delay: a final with words each: its clock − the end of its last word.
        final_work: a final each: its clock − its `heard`.
        tick_delay: a partial each: its clock − its `heard`.
        partial_changes: words of partials that the next partial has not kept.
        last_changes: words of last partials that the final has not kept.
        final_words: words of finals.
        stable_violations: partials whose stable front a later partial has changed: a
            broken promise; must be 0.
        final_changes: partials whose stable front the final has changed: the second
            pass may.
        early: events that came before their audio was due; must be 0, else the audio
            was not paced in real time and the delays mean nothing.
        partials: how many.
        finals: how many.
        streams: how many.
        audio_seconds: of all streams.
        busy_seconds: that the machine worked for them.
    """

    first_partial_delay: tuple[float, ...] = ()
    partial_lag: tuple[float, ...] = ()
    final_delay: tuple[float, ...] = ()
    final_work: tuple[float, ...] = ()
    tick_delay: tuple[float, ...] = ()
    partial_changes: int = 0
    last_changes: int = 0
    final_words: int = 0
    stable_violations: int = 0
    final_changes: int = 0
    early: int = 0
    partials: int = 0
    finals: int = 0
    streams: int = 0
    audio_seconds: float = 0.0
    busy_seconds: float = 0.0

    def __add__(self, other: Latency) -> Latency:
        return add_up([self, other])

    @property
    def upwr(self) -> float:
        """Unstable partial word ratio: words shown and taken back, per final word.

        (partial_changes + last_changes) / final_words. A word is taken back if it is
        not in the longest common subsequence of its hypothesis and the next one; each
        time counts, a word that stands wrong for long once. Where no final has a word
        the divisor is 1.

        hypothesis  | next          | taken back
        "a big cat" | "a big cat s" | 0
        "a big cat" | "a bad cat"   | 1: changed
        "a big cat" | "a cat"       | 1: removed
        "cat"       | "a cat"       | 0: moved, but kept

        Source: Shangguan et al., "Analyzing the quality and stability of a streaming
        end-to-end on-device speech recognizer", Interspeech 2020, for the ratio; what
        makes a word unstable is spelt out here.
        """
        return (self.partial_changes + self.last_changes) / max(self.final_words, 1)

    @property
    def partial_upwr(self) -> float:
        """`upwr` without what finals change: the first pass alone."""
        return self.partial_changes / max(self.final_words, 1)

    @property
    def rtf(self) -> float | None:
        """Real-time factor: busy seconds / audio seconds; None without audio."""
        return self.busy_seconds / self.audio_seconds if self.audio_seconds else None

    def summary(self) -> dict[str, Any]:
        """All figures, as JSON takes them.

        Returns:
            For each kind of delay {"count", "p50", "p95", "p99"}, seconds; "quantiles",
            {kind of delay: the percentiles of `RANKS` in ms}, of those that there are;
            and a number for all else; None where there is nothing to take a percentile
            of.
        """
        numbers = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in _DELAYS
        }
        return {
            **{name: summarise(getattr(self, name)) for name in _DELAYS},
            "quantiles": {
                name: np.round(1000 * np.percentile(delays, RANKS)).astype(int).tolist()
                for name in _DELAYS
                if (delays := getattr(self, name))
            },
            "upwr": self.upwr,
            "partial_upwr": self.partial_upwr,
            "rtf": self.rtf,
            **numbers,
        }


def add_up(latencies: Iterable[Latency]) -> Latency:
    """The measurements of many streams, as if their events had been measured as one."""
    parts = list(latencies)
    totals: dict[str, Any] = {}
    for field in dataclasses.fields(Latency):
        values = [getattr(part, field.name) for part in parts]
        if isinstance(field.default, tuple):
            totals[field.name] = tuple(itertools.chain.from_iterable(values))
        else:
            totals[field.name] = type(field.default)(math.fsum(values))
    return Latency(**totals)


def summarise(delays: Sequence[float]) -> dict[str, float | None]:
    """Count and percentiles, linear between the nearest two; None where there is none.

    Args:
        delays: seconds.
    """
    values = [None] * len(PERCENTILES)
    if len(delays):
        values = np.percentile(delays, PERCENTILES).tolist()
    return {
        "count": len(delays),
        **{f"p{rank}": value for rank, value in zip(PERCENTILES, values)},
    }


def late_share(delays: Sequence[float], limit: float) -> float:
    """Share of delays above a limit, 0 … 1; 0 where there is none.

    Args:
        delays: seconds.
        limit: seconds; a delay of just so much is in time.
    """
    return float(np.mean(np.asarray(delays) > limit)) if len(delays) else 0.0


def measure(
    events: Sequence[Timed], audio_seconds: float = 0.0, busy_seconds: float = 0.0
) -> Latency:
    """Measure one stream.

    Utterances without a final, such as a broken stream's last, have no words to be
    measured by: they count in `first_partial_delay`, `tick_delay`, `stable_violations`
    and the counts only.

    Args:
        events: of one stream, in the order in which they came.
        audio_seconds: of the stream.
        busy_seconds: that the machine worked for it; of streams that shared a machine,
            give the whole to one of them, or to each its part.

    Raises:
        ValueError: a clock that is not finite or runs backwards, or an event of an
            utterance that had its final.
    """
    _check_clocks(events)
    utterances: dict[int, list[Timed]] = {}
    for timed in events:
        utterances.setdefault(timed.event.utterance, []).append(timed)
    early = sum(timed.clock < timed.event.heard - _SLACK for timed in events)
    stream = Latency(
        early=early,
        streams=1,
        audio_seconds=audio_seconds,
        busy_seconds=busy_seconds,
    )
    return add_up([stream, *(_measure_utterance(part) for part in utterances.values())])


def _check_clocks(events: Sequence[Timed]) -> None:
    before = -math.inf
    for number, timed in enumerate(events):
        if not math.isfinite(timed.clock) or timed.clock < before:
            raise ValueError(
                f"event {number} has clock {timed.clock}, the one before {before}; "
                "give one stream's events in the order in which they came, with the "
                "seconds since its first sample was due."
            )
        before = timed.clock


def _measure_utterance(events: Sequence[Timed]) -> Latency:
    """One utterance's part of a stream's measurements."""
    started, partials, final, final_clock = None, [], None, 0.0
    for timed in events:
        if final is not None:
            raise ValueError(
                f"utterance {final.utterance} has a {type(timed.event).__name__} after "
                "its Final; give the events of one stream, not of several."
            )
        if isinstance(timed.event, SpeechStarted):
            started = timed.event
        elif isinstance(timed.event, Partial):
            partials.append((timed.event, timed.clock))
        elif isinstance(timed.event, Final):
            final, final_clock = timed.event, timed.clock
    shown = [_split(partial.text) for partial, _ in partials]
    first = _find_first_delay(started, partials, final)
    latency = Latency(
        first_partial_delay=() if first is None else (first,),
        tick_delay=tuple(clock - partial.heard for partial, clock in partials),
        stable_violations=_count_violations([partial for partial, _ in partials]),
        partials=len(partials),
    )
    if final is None:
        return latency
    words = [unicodedata.normalize("NFKC", word.text) for word in final.words]
    words = words or _split(final.text)
    clocks = [*(clock for _, clock in partials), final_clock]
    settled = _find_settled([*shown, words], words)
    return latency + Latency(
        partial_lag=tuple(
            clocks[place] - word.end for place, word in zip(settled, final.words)
        ),
        final_delay=tuple(final_clock - word.end for word in final.words[-1:]),
        final_work=(final_clock - final.heard,),
        partial_changes=sum(map(_count_changes, shown, shown[1:])),
        last_changes=_count_changes(shown[-1], words) if shown else 0,
        final_words=len(words),
        final_changes=sum(
            not final.text.startswith(partial.text[: partial.stable])
            for partial, _ in partials
        ),
        finals=1,
    )


def _split(text: str) -> list[str]:
    """The words of a text as they are compared."""
    return [unicodedata.normalize("NFKC", word) for word, _, _ in split_words(text)]


def _find_first_delay(
    started: SpeechStarted | None,
    partials: Sequence[tuple[Partial, float]],
    final: Final | None,
) -> float | None:
    """Seconds from the start of speech to the first partial with text."""
    clock = next((clock for partial, clock in partials if partial.text.strip()), None)
    if clock is None:
        return None
    if final is not None and final.words:
        return clock - final.words[0].start
    return None if started is None else clock - started.start


def _find_settled(
    hypotheses: Sequence[Sequence[str]], words: Sequence[str]
) -> list[int]:
    """For each word, since which hypothesis all begin with the words up to it.

    Args:
        hypotheses: words of the partials, then those of the final.
        words: those of the final.
    """
    settled = [len(hypotheses) - 1] * len(words)
    kept = len(words)
    for place in range(len(hypotheses) - 1, -1, -1):
        kept = min(kept, _count_shared(hypotheses[place], words))
        settled[:kept] = [place] * kept
    return settled


def _count_shared(one: Sequence[str], other: Sequence[str]) -> int:
    """Words at the front that two texts share."""
    pairs = enumerate(zip(one, other))
    different = (place for place, (left, right) in pairs if left != right)
    return next(different, min(len(one), len(other)))


def _count_changes(words: Sequence[str], following: Sequence[str]) -> int:
    """Words that the next hypothesis has not kept, in order."""
    return len(words) - LCSseq.similarity(words, following)


def _count_violations(partials: Sequence[Partial]) -> int:
    """Partials of an utterance whose stable front some later one has changed."""
    return sum(
        any(
            not later.text.startswith(partial.text[: partial.stable])
            for later in partials[place + 1 :]
        )
        for place, partial in enumerate(partials)
    )
