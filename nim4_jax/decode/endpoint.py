"""Endpointing: the starts and ends of utterances, from a detector's probabilities.

A detector gives each frame of audio a probability of speech; `judge` turns these into
boundaries. All states are explicit values, so one detector serves any number of
streams, and what came in which packet changes nothing.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float

from nim4_jax.decode.silero import WINDOW
from nim4_jax.features import SAMPLE_RATE

BREATH = 4 * WINDOW
"""Samples below the release that are a pause, if not the end."""

START = "start"
END = "end"


@dataclasses.dataclass(frozen=True)
class EndpointConfig:
    """Thresholds and durations of endpointing.

    Attributes:
        threshold: probability at which speech may begin.
        release: probability below which it may end, ≤ threshold.
        min_speech: s of speech that begin an utterance; shorter bursts are no speech.
        end_silence: s without speech that end an utterance.
        pre_roll: s of audio kept before the first frame of speech.

    Raises:
        ValueError: a probability outside 0 … 1, a release above the threshold, or a
            duration that is negative or not finite (end_silence: not above 0).
    """

    threshold: float = 0.5
    release: float = 0.35
    min_speech: float = 0.1
    end_silence: float = 0.6
    pre_roll: float = 0.3

    def __post_init__(self):
        if not 0.0 < self.release <= self.threshold <= 1.0:
            raise ValueError(
                f"release {self.release} and threshold {self.threshold} do not fit; "
                "expected 0 < release ≤ threshold ≤ 1."
            )
        for name in ("min_speech", "end_silence", "pre_roll"):
            seconds = getattr(self, name)
            if not 0.0 <= seconds < math.inf:
                raise ValueError(f"{name} is {seconds}; expected seconds ≥ 0.")
        if not _to_samples(self.end_silence):
            raise ValueError(
                f"end_silence is {self.end_silence} s; utterances would end within "
                "words. Give some tenths of a second."
            )


@dataclasses.dataclass(frozen=True)
class Boundary:
    """The beginning or the end of an utterance.

    Attributes:
        kind: START or END.
        at: sample of the stream: the utterance's first (pre-roll included), or one past
            its last.
        known: samples of the stream that had been judged when this was known.
    """

    kind: str
    at: int
    known: int


@dataclasses.dataclass(frozen=True)
class EndpointState:
    """Endpointing state of a stream; the default is that before its audio.

    Attributes:
        position: samples judged.
        floor: where the last utterance ended; none begins before.
        speaking: whether an utterance goes on.
        first: where the burst that may become an utterance begins, if loud > 0.
        loud: samples of that burst at or above the threshold.
        soft: samples of it between release and threshold.
        quiet: samples below release since the last at or above the threshold.
    """

    position: int = 0
    floor: int = 0
    speaking: bool = False
    first: int = 0
    loud: int = 0
    soft: int = 0
    quiet: int = 0


def judge(
    config: EndpointConfig, state: EndpointState, probability: float, frame: int
) -> tuple[EndpointState, Boundary | None]:
    """Advance by one frame.

    |               | p < release     | between         | p ≥ threshold          |
    | ------------- | --------------- | --------------- | ---------------------- |
    | nobody speaks | burst forgotten | burst waits, at | burst grows: START at  |
    |               |                 | most min_speech | min_speech of these    |
    | speaking      | silence grows:  | neither         | silence starts anew    |
    |               | END at          |                 |                        |
    |               | end_silence     |                 |                        |

    Durations are rounded up to whole frames. START is at the burst's first frame less
    the pre-roll, but not before the last utterance's end, and is known at most
    2 · min_speech and a frame after that first frame begins. END is at the position:
    the silence that shows it belongs to the utterance, so that audio which was encoded
    is never taken back.

    Args:
        config: when speech begins and ends.
        state: of the stream before the frame.
        probability: that somebody speaks in the frame.
        frame: its samples.

    Returns:
        State after the frame; the boundary that became known with it.

    Raises:
        ValueError: a probability outside 0 … 1 or an empty frame.
    """
    if not 0.0 <= probability <= 1.0 or frame < 1:
        raise ValueError(
            f"frame of {frame} samples at {state.position} has speech probability "
            f"{probability}; expected at least 1 sample and a number in 0 … 1."
        )
    if state.speaking:
        return _await_end(config, state, probability, frame)
    return _await_start(config, state, probability, frame)


def _await_end(config, state, probability, frame):
    # For every frame of every stream: dataclasses.replace takes ten times longer.
    position, quiet = state.position + frame, state.quiet
    if probability >= config.threshold:
        quiet = 0
    elif probability < config.release:
        quiet += frame
        if quiet >= _to_samples(config.end_silence):
            ended = EndpointState(position, floor=position)
            return ended, Boundary(END, position, position)
    # While somebody speaks no burst is remembered.
    return EndpointState(position, state.floor, speaking=True, quiet=quiet), None


def _await_start(config, state, probability, frame):
    position = state.position + frame
    needed = _to_samples(config.min_speech)
    idle = EndpointState(position, state.floor)
    if probability < config.release:
        return idle, None
    if probability < config.threshold:
        soft = state.soft + frame
        if not state.loud or soft >= needed:
            return idle, None
        return dataclasses.replace(state, position=position, soft=soft), None
    first = state.first if state.loud else state.position
    loud = state.loud + frame
    if loud < needed:
        grown = dataclasses.replace(state, position=position, first=first, loud=loud)
        return grown, None
    begin = max(first - _to_samples(config.pre_roll), state.floor)
    spoken = EndpointState(position, state.floor, speaking=True)
    return spoken, Boundary(START, begin, position)


def break_off(state: EndpointState, end: int) -> EndpointState:
    """The state behind an utterance that ended although somebody may speak on.

    Who speaks on begins the next utterance right there; what is left of a word or is
    silence does not.

    Args:
        state: of the stream, judged up to that end or further.
        end: where it was broken off; no utterance begins before.
    """
    spoken = state.speaking and state.quiet < BREATH
    # A burst of one sample: it begins at the end, but is no speech by itself.
    return EndpointState(state.position, end, first=end, loud=int(spoken))


def find_earliest(config: EndpointConfig, state: EndpointState) -> int:
    """The sample before which no START can come any more; audio before it may go.

    It never decreases from frame to frame.
    """
    if state.speaking:
        return state.position
    first = state.first if state.loud else state.position
    return max(first - _to_samples(config.pre_roll), state.floor)


def _to_samples(seconds: float) -> int:
    return round(seconds * SAMPLE_RATE)


class Detector(Protocol):
    """Gives windows of audio a probability of speech; keeps nothing between calls.

    `Silero` is one.
    """

    frame: int

    def start(self) -> Any: ...

    def score(
        self, state: Any, windows: Float[np.ndarray, "N S"]
    ) -> tuple[Any, Float[np.ndarray, " N"]]: ...


@dataclasses.dataclass(frozen=True)
class BlankState:
    """State of the CTC blank detector for a stream.

    Attributes:
        recent: float32, 1 − p(blank) of the frames that still count.
    """

    recent: np.ndarray


class BlankDetector:
    """Speech probability from the phoneme head's posteriors, with no other model.

    Rule: p(speech)[u] = max over v in (u − hold, u] of 1 − p(blank)[v]. CTC posteriors
    are peaks with blanks between; the maximum makes each last for `hold`.
    A head that never heard noise in training takes noise and music for speech: Silero
    does not.

    Attributes:
        frame: samples of an encoder frame.
        hold: frames that a peak lasts, its own included.
    """

    def __init__(self, hold: float = 0.24, frame: int = 640):
        """A detector whose peaks last `hold` seconds, rounded to frames.

        Raises:
            ValueError: less than a frame, or not finite.
        """
        seconds = frame / SAMPLE_RATE
        if not seconds <= hold < math.inf:
            raise ValueError(
                f"hold is {hold} s; expected at least a frame, {seconds} s."
            )
        self.frame, self.hold = frame, round(hold / seconds)

    def start(self) -> BlankState:
        """State of a stream before its first frame."""
        return BlankState(np.zeros(self.hold - 1, np.float32))

    def score(
        self, state: BlankState, log_probs: Float[np.ndarray, "U P"]
    ) -> tuple[BlankState, Float[np.ndarray, " U"]]:
        """Speech probabilities of the stream's next frames, any number of them.

        Args:
            state: of the stream; not changed.
            log_probs: posteriors in nats, class 0 is blank.

        Returns:
            State after them; float32 [U] probabilities.

        Raises:
            ValueError: another shape, or blanks that are no log probability.
        """
        log_probs = np.asarray(log_probs)
        if log_probs.ndim != 2 or log_probs.shape[1] < 1:
            raise ValueError(
                f"posteriors of shape {log_probs.shape}; expected [frames, phonemes]."
            )
        blank = log_probs[:, 0].astype(np.float32)
        if not (blank <= 1e-3).all():  # false for NaN; rounding may pass 0
            raise ValueError(
                f"log p(blank) goes up to {blank.max()}; expected log probabilities "
                "≤ 0 nats: apply log_softmax to the phoneme head's logits."
            )
        peaks = np.concatenate([state.recent, -np.expm1(np.minimum(blank, 0.0))])
        if not len(blank):
            return state, blank
        held = np.lib.stride_tricks.sliding_window_view(peaks, self.hold).max(axis=1)
        return BlankState(peaks[len(peaks) - self.hold + 1 :].copy()), held
