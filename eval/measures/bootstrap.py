"""Bootstrap over utterances: confidence intervals and paired comparisons.

A figure of a set is a ratio of sums over its utterances: errors over reference units,
names found over names said, empty outputs over outputs. Utterances are drawn again with
replacement and the figure is worked out anew: what stays the same in all that is no
accident of which utterances the set happens to hold. For two runs the same utterances
are drawn, and it is their difference that is worked out.

Source: Bisani and Ney, "Bootstrap estimates for confidence intervals in ASR performance
evaluation", ICASSP 2004.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float, Int

RESAMPLES = 10_000
CONFIDENCE = 0.95

_BLOCK = 4_000_000  # counts held at once


@dataclasses.dataclass(frozen=True)
class Difference:
    """A figure of two runs, a and b, in percent.

    Attributes:
        a: 100 · sum of counts / sum of units of run a.
        b: the same of run b.
        low: lower end of the interval of b − a.
        high: upper end.
        p: of the hypothesis that a and b are equal, two-sided: twice the share of
            resamples on the wrong side of 0, those at 0 being on both sides.
        utterances: of which the figures are made.
    """

    a: float
    b: float
    low: float
    high: float
    p: float
    utterances: int

    @property
    def change(self) -> float:
        """b − a, percentage points."""
        return self.b - self.a

    @property
    def relative(self) -> float | None:
        """(b − a) / a in percent; None where a is 0 and b is not."""
        if self.change == 0.0:
            return 0.0
        return 100.0 * self.change / self.a if self.a else None

    @property
    def shown(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.low > 0.0 or self.high < 0.0


def compare(
    a: Int[np.ndarray, "N 2"],
    b: Int[np.ndarray, "N 2"],
    *,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Difference:
    """Compare two runs over the same N utterances.

    compare(b, a) draws the same utterances as compare(a, b): only the sign turns.

    Args:
        a: counts and units of each utterance: (errors, reference units), or (found,
            said), or (1 if empty, 1). Where a sum of units is 0, 1 stands for it.
        b: the same utterances, in the same order, of the other run.
        resamples: number of draws.
        confidence: share of the resamples that the interval holds.
        seed: of the draws.

    Raises:
        ValueError: different or no utterances, negative numbers, no resample, or a
            confidence out of range.
    """
    a, b = np.asarray(a, np.int64), np.asarray(b, np.int64)
    if a.shape != b.shape or a.ndim != 2 or a.shape[1] != 2 or not len(a):
        raise ValueError(
            f"got counts of shapes {a.shape} and {b.shape}; expected [N, 2] twice, for "
            "the same N ≥ 1 utterances."
        )
    both = np.concatenate([a, b], axis=1)
    _check(both, resamples, confidence)
    rates = _rate(both.sum(axis=0)[None].astype(float))[0]
    figures = _resample(both, resamples, np.random.default_rng(seed))
    drawn = figures[:, 1] - figures[:, 0]
    low, high = _find_ends(drawn, confidence)
    below, above = (np.count_nonzero(side) for side in (drawn <= 0, drawn >= 0))
    p = min(1.0, 2.0 * (int(min(below, above)) + 1) / (resamples + 1))
    return Difference(
        a=float(rates[0]),
        b=float(rates[1]),
        low=low,
        high=high,
        p=p,
        utterances=len(a),
    )


def interval(
    counts: Int[np.ndarray, "N 2"],
    *,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> tuple[float, float]:
    """The interval of one run's figure.

    Args:
        counts: counts and units of each of N utterances, as `compare` takes them.
        resamples: number of draws.
        confidence: share of the resamples that the interval holds.
        seed: of the draws.

    Returns:
        Its lower and upper end, percent.

    Raises:
        ValueError: no utterances, negative numbers, no resample, or a confidence out of
            range.
    """
    counts = np.asarray(counts, np.int64)
    if counts.ndim != 2 or counts.shape[1] != 2 or not len(counts):
        raise ValueError(
            f"got counts of shape {counts.shape}; expected [N, 2] for N ≥ 1 utterances."
        )
    _check(counts, resamples, confidence)
    drawn = _resample(counts, resamples, np.random.default_rng(seed))[:, 0]
    low, high = _find_ends(drawn, confidence)
    return low, high


def _check(counts: Int[np.ndarray, "N C"], resamples: int, confidence: float) -> None:
    """Raise ValueError for numbers that mean nothing."""
    if counts.min() < 0 or resamples < 1 or not 0.0 < confidence < 1.0:
        raise ValueError(
            f"got counts from {counts.min()}, {resamples} resamples and confidence "
            f"{confidence}; expected counts ≥ 0, at least one resample and a "
            "confidence between 0 and 1."
        )


def _find_ends(
    drawn: Float[np.ndarray, " R"], confidence: float
) -> tuple[float, float]:
    """Between which the middle share of the resamples lies."""
    tail = 50.0 * (1.0 - confidence)
    low, high = np.percentile(drawn, [tail, 100.0 - tail])
    return float(low), float(high)


def _resample(
    rows: Int[np.ndarray, "N C"], resamples: int, rng: np.random.Generator
) -> Float[np.ndarray, "R F"]:
    """The figures of every resample, percent; `rows` has two columns a figure.

    Utterances with equal counts are drawn as one: how often N draws take one of a group
    of n is multinomial with n / N.
    """
    _, first, number = np.unique(rows, axis=0, return_index=True, return_counts=True)
    # In the order of the set, which is the same for (a, b) and (b, a).
    order = np.argsort(first)
    # Floats multiply faster, and are exact up to 2⁵³.
    kinds, shares = rows[first[order]].astype(float), number[order] / len(rows)
    block = max(1, _BLOCK // len(kinds))
    drawn = []
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        drawn.append(_rate(rng.multinomial(len(rows), shares, size) @ kinds))
    return np.concatenate(drawn)


def _rate(sums: Float[np.ndarray, "R C"]) -> Float[np.ndarray, "R F"]:
    """Percent of each figure, from its counts and its units."""
    return 100.0 * sums[:, 0::2] / np.maximum(sums[:, 1::2], 1)
