"""Simulated phoneme hypotheses at a chosen phoneme error rate.

Names that nobody has recorded can so be looked for by the thousand. Phonemes are taken
for what sounds alike, lost, or made up, and the posteriors still hold a trace of what
was said, as those of a real head do. The constants were measured on the shipped
stage-1 model and the bundled commands, in chunks of 640 ms.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from nim4_jax.retrieval import hypothesis
from nim4_jax.text import articulation, phonemes

_SUBSTITUTED, _DELETED, _INSERTED = 0.78, 0.14, 0.08
"""Shares of the three errors."""
_HELD = 0.2  # probability that a phoneme lasts for two frames
_PAUSE = 1.6  # mean number of blank frames after it
# Nats below the best class:
_LOST = 3.2  # mean of what was said, where something else was heard
_DOUBT = 4.3  # half of the mean of the next class, where a phoneme was heard rightly
_QUIET = 4.0  # a third of the mean of the next class, where there is nothing
_APART = 2.0  # half of the mean from each further class to the one before
_RIVALS = 3
_FLOOR = -14.0
_BLANK = 0


def simulate(
    spoken: Sequence[int], error_rate: float, rng: np.random.Generator
) -> hypothesis.Hypothesis:
    """One hearing of a phoneme sequence.

    Args:
        spoken: ids in 1 … P − 1.
        error_rate: expected edits per phoneme, 0 … 1.
        rng: of all that is drawn.

    Raises:
        ValueError: a rate out of range.
    """
    if not 0.0 <= error_rate <= 1.0:
        raise ValueError(f"phoneme error rate {error_rate} must lie in 0 … 1.")
    frames = [_score(_BLANK, 1, _FLOOR, rng)]
    for said in spoken:
        draw = rng.random() / error_rate if error_rate else np.inf
        if draw < _SUBSTITUTED:
            taken = _confuse(said, rng)
            _emit(frames, taken, said, -rng.exponential(_LOST), rng)
        elif draw < _SUBSTITUTED + _DELETED:
            _emit(frames, _BLANK, said, -rng.exponential(_LOST), rng)
        else:
            _emit(frames, said, _BLANK, -rng.gamma(2.0, _DOUBT), rng)
        if _SUBSTITUTED + _DELETED <= draw < 1.0:
            _emit(frames, _confuse(said, rng), _BLANK, -rng.exponential(_LOST), rng)
        _pause(frames, said, rng)
    return hypothesis.Hypothesis.read(np.stack(frames))


@functools.cache
def _cumulated() -> np.ndarray:
    return np.cumsum(articulation.confusions().astype(np.float64), axis=1)


def _confuse(phoneme: int, rng: np.random.Generator) -> int:
    """What a phoneme is taken for."""
    row = _cumulated()[phoneme]
    return int(np.searchsorted(row, rng.random() * row[-1], side="right"))


def _emit(
    frames: list[np.ndarray],
    best: int,
    second: int,
    distance: float,
    rng: np.random.Generator,
) -> None:
    """A frame or two won by `best`, with `second` that far below."""
    if frames and best != _BLANK and np.argmax(frames[-1]) == best:
        frames.append(_score(_BLANK, best, -rng.gamma(2.0, _DOUBT), rng))
    for _ in range(1 + (rng.random() < _HELD)):
        frames.append(_score(best, second, distance, rng))


def _pause(frames: list[np.ndarray], said: int, rng: np.random.Generator) -> None:
    """Blank frames behind a phoneme, none perhaps."""
    for _ in range(rng.poisson(_PAUSE)):
        rival = _confuse(said, rng)
        frames.append(_score(_BLANK, rival, -rng.gamma(3.0, _QUIET), rng))


def _score(
    best: int, second: int, distance: float, rng: np.random.Generator
) -> np.ndarray:
    """Log posteriors of a frame, float32 [P]."""
    scores = np.full(len(phonemes.INVENTORY), _FLOOR)
    heard = best != _BLANK
    below = -rng.gamma(2.0, _DOUBT) if heard else distance - rng.gamma(2.0, _APART)
    for _ in range(_RIVALS):
        rival = _confuse(best if heard else second, rng)
        scores[rival] = max(scores[rival], below)
        below -= rng.gamma(2.0, _APART)
    scores[second] = distance
    scores[best] = 0.0
    return (scores - np.log(np.exp(scores).sum())).astype(np.float32)
