"""Output of the phoneme head for one recording: greedy phonemes and posteriors."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float, Int

_BLANK = 0  # class of the CTC head for "no phoneme"


@dataclasses.dataclass(frozen=True)
class Hypothesis:
    """What was heard of U frames, N phonemes.

    Attributes:
        phonemes: uint8 ids, greedy.
        frames: at which each begins.
        log_probs: natural log of the class posteriors of each frame, float32.
        frame_seconds: from one frame to the next.
    """

    phonemes: Int[np.ndarray, " N"]
    frames: Int[np.ndarray, " N"]
    log_probs: Float[np.ndarray, "U P"]
    frame_seconds: float = 0.04

    @classmethod
    def read(
        cls, log_probs: Float[np.ndarray, "U P"], frame_seconds: float = 0.04
    ) -> Hypothesis:
        """The greedy hypothesis of some posteriors."""
        best = np.argmax(log_probs, axis=1)
        before = np.append(_BLANK, best[:-1])
        places = np.flatnonzero((best != _BLANK) & (best != before))
        return cls(best[places].astype(np.uint8), places, log_probs, frame_seconds)

    @property
    def times(self) -> Float[np.ndarray, "N 2"]:
        """Start and end of each phoneme's first frame, seconds."""
        return np.stack([self.frames, self.frames + 1], axis=1) * self.frame_seconds
