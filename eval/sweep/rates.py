"""Error rates of a sweep's cells with intervals, and models against each other."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from nim4_jax.eval.measures import bootstrap, error_rates
from nim4_jax.eval.measures.error_rates import Counts
from nim4_jax.eval.reports import comparison
from nim4_jax.eval.sweep.cells import DONE, Cell, Key

KINDS = {
    "text": "{}",
    "phonemes": "PER",
    "raw": "raw {}",
    "unbiased": "U-{}",
    "biased": "B-{}",
}
"""Kinds of scores of `report.build`, and what their metric is called."""
LEVEL = 0.05
"""A difference is shown if its p after Holm's correction is at most so much."""


@dataclasses.dataclass(frozen=True)
class Rate:
    """An error rate of a cell.

    Attributes:
        key: the cell.
        kind: of KINDS.
        lang: "en", "zh" or "mixed".
        metric: "WER", "CER", "MER" or "PER", with a prefix for the kind.
        counts: edits of all utterances.
        utterances: how many.
        low: lower end of the 95 % interval, percent.
        high: upper end.
    """

    key: Key
    kind: str
    lang: str
    metric: str
    counts: Counts
    utterances: int
    low: float
    high: float

    @property
    def percent(self) -> float | None:
        """None where nothing was said: there is no rate, however much was written."""
        return self.counts.percent if self.counts.reference else None


def measure(cell: Cell) -> list[Rate]:
    """Rates of each kind by language; none of a cell that is not done."""
    rates = []
    for kind, form in KINDS.items():
        for lang, metric in error_rates.METRICS.items():
            scored = [
                Counts(**row[kind])
                for row in cell.rows
                if row["lang"] == lang and kind in row
            ]
            if not scored:
                continue
            tallies = np.array([(each.errors, each.reference) for each in scored])
            low, high = bootstrap.interval(tallies)
            total = error_rates.add_up(scored)
            name = form.format(metric)
            number = len(scored)
            rates.append(Rate(cell.key, kind, lang, name, total, number, low, high))
    return rates


@dataclasses.dataclass(frozen=True)
class Contrast:
    """One measure of one benchmark for two models.

    Attributes:
        base: key of run a.
        key: of run b.
        line: the difference.
        p_holm: its p, corrected for the number of contrasts.
    """

    base: Key
    key: Key
    line: comparison.Line
    p_holm: float

    @property
    def verdict(self) -> str:
        """Of run b, after the correction."""
        if self.p_holm <= LEVEL and self.line.difference.shown:
            return self.line.verdict
        return "uncertain" if self.line.difference.shown else "not shown"


def contrast(cells: Sequence[Cell], base: str) -> tuple[list[Contrast], list[str]]:
    """Every model against one, on the same benchmark, mode and hotwords.

    Holm's correction takes all contrasts that are returned as one family.

    Args:
        cells: of a sweep; those not done are passed over.
        base: name of the model that is run a.

    Returns:
        Contrasts, in the order of the cells; and why some cells could not be compared.
    """
    done = {cell.key: cell for cell in cells if cell.status == DONE}
    found, reasons = [], []
    for key, cell in done.items():
        before = dataclasses.replace(key, model=base)
        if key.model == base or before not in done:
            continue
        try:
            compared = comparison.compare(done[before].rows, cell.rows)
        except ValueError as error:
            reasons.append(f"{key.model} on {key.benchmark}, {key.mode}: {error}")
            continue
        found.extend((before, key, line) for line in compared.lines)
        if lacking := compared.only_a + compared.only_b:
            reasons.append(
                f"{key.model} on {key.benchmark}, {key.mode}, {key.hotwords}: "
                f"{lacking} utterances that only one of the two has are left out"
            )
    corrected = correct([line.difference.p for _, _, line in found])
    made = [Contrast(a, b, c, p) for (a, b, c), p in zip(found, corrected)]
    return made, reasons


def correct(values: Sequence[float]) -> list[float]:
    """p values, corrected by Holm's method for their number.

    The k-th smallest of n is multiplied by n − k + 1, then none may be smaller than one
    before it, and none above 1.

    Source: Holm, "A simple sequentially rejective multiple test procedure",
    Scandinavian Journal of Statistics, 1979.
    """
    p = np.asarray(values, float)
    order = np.argsort(p, kind="stable")
    scaled = p[order] * np.arange(len(p), 0, -1)
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return corrected.tolist()
