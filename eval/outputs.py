"""What a model writes at all: empty outputs, their length, and hallucinations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nim4_jax.eval import metrics
from nim4_jax.eval.evaluation import Utterance

COLUMNS = ("set", "outputs", "non-empty %", "empty %", "mean units", "hallucinated %")


def summarise(rows: Sequence[Utterance]) -> dict[str, Any] | None:
    """Outputs of a set, and the same by language.

    Args:
        rows: of one set; those whose text was not scored do not count.

    Returns:
        {"outputs", "empty", "empty_percent", "nonempty_percent", "mean_units",
        "hallucinated", "hallucinated_percent", "languages": {lang: the same}}; None
        where no text was scored. Units are words or characters; an output is empty if
        not even punctuation is there; for "hallucinated" see `metrics.is_hallucinated`.
    """
    total = _count(rows)
    if total is None:
        return None
    languages = {}
    for lang in metrics.METRICS:
        counted = _count([row for row in rows if row.lang == lang])
        if counted is not None:
            languages[lang] = counted
    return {**total, "languages": languages}


def _count(rows: Sequence[Utterance]) -> dict[str, Any] | None:
    """The figures of some utterances."""
    scored = [row for row in rows if row.text is not None]
    if not scored:
        return None
    number = len(scored)
    counts = [row.text for row in scored if row.text is not None]
    empty = sum(is_empty(row.hypothesis) for row in scored)
    hallucinated = sum(map(metrics.is_hallucinated, counts))
    units = sum(count.output for count in counts)
    return {
        "outputs": number,
        "empty": empty,
        "empty_percent": round(100 * empty / number, 3),
        "nonempty_percent": round(100 * (number - empty) / number, 3),
        "mean_units": round(units / number, 3),
        "hallucinated": hallucinated,
        "hallucinated_percent": round(100 * hallucinated / number, 3),
    }


def is_empty(hypothesis: str | None) -> bool:
    """Whether nothing was written, not even punctuation."""
    return not (hypothesis or "").strip()


def list_cells(name: str, summary: dict[str, Any]) -> tuple[object, ...]:
    """A set's row of the table with `COLUMNS`."""
    return (
        name,
        summary["outputs"],
        f"{summary['nonempty_percent']:.2f}",
        f"{summary['empty_percent']:.2f}",
        f"{summary['mean_units']:.2f}",
        f"{summary['hallucinated_percent']:.2f}",
    )
