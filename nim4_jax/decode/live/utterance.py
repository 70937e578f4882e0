"""An utterance in progress, and the chunks of it that go to the device."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float

from nim4_jax.retrieval.hotwords import StreamState as Hearing


@dataclasses.dataclass
class Utterance:
    """An utterance in progress.

    Attributes:
        number: in its stream, from 0.
        start: first sample, in the stream.
        end: one past the last; None while it goes on.
        reason: why it ended, one of `events.REASONS`.
        known: samples of the stream that were needed to know the end.
        begun: whether somebody is known to speak.
        log_probs: phoneme posteriors of each chunk's real frames.
        hearing: what the hotword search has heard.
    """

    number: int
    start: int
    end: int | None = None
    reason: str = ""
    known: int = 0
    begun: bool = True
    log_probs: list[np.ndarray] = dataclasses.field(default_factory=list)
    hearing: Hearing = dataclasses.field(default_factory=Hearing)

    @property
    def chunks(self) -> int:
        """How many the device has taken."""
        return len(self.log_probs)

    def finish(self, end: int, reason: str, known: int) -> None:
        """It ends there."""
        self.end, self.reason, self.known = end, reason, known


@dataclasses.dataclass(frozen=True)
class Piece:
    """A chunk of an utterance, and the samples that its frames see around it.

    Attributes:
        utterance: to which it belongs.
        missing: samples of a window of the device before the utterance's first.
        samples: float32, the window's next, at most as many as it has left.
        until: one past the chunk's last sample, in the stream.
        heard: samples of the stream that were needed.
        last: whether the utterance is known to end with it.
    """

    utterance: Utterance
    missing: int
    samples: Float[np.ndarray, " S"]
    until: int
    heard: int
    last: bool

    @property
    def fresh(self) -> bool:
        """Whether it begins the utterance."""
        return self.utterance.chunks == 0


@dataclasses.dataclass(frozen=True)
class Ending:
    """An utterance of which the device has every piece."""

    utterance: Utterance
