"""Statistics of outputs: empty ones, length, hallucinations, loops.

Where nobody speaks all that is written is too much: so there the words a minute are
told. An utterance is without speech if its reference is empty once it is normalised.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nim4_jax.eval.evaluation import Utterance
from nim4_jax.eval.measures import error_rates

COLUMNS = (
    "set",
    "outputs",
    "non-empty %",
    "empty %",
    "mean units",
    "hallucinated %",
    "looped %",
    "without speech",
    "non-empty %",
    "words a minute",
    "looped %",
)


def summarise(rows: Sequence[Utterance]) -> dict[str, Any] | None:
    """Outputs of a set, and the same by language.

    Args:
        rows: of one set; those whose text was not scored do not count.

    Returns:
        {"outputs", "empty", "empty_percent", "nonempty_percent", "mean_units",
        "hallucinated", "hallucinated_percent", "looped", "looped_percent", "languages":
        {lang: the same}}; None where no text was scored. Units are words or characters;
        an output is empty if not even punctuation is there; for the others see
        `metrics.is_hallucinated` and `metrics.is_looped`. Where some audio is without
        speech also "nonspeech": {"outputs", "minutes", "nonempty_percent", "words",
        "words_per_minute", "looped_percent"} of that.
    """
    total = _count(rows)
    if total is None:
        return None
    languages = {}
    for lang in error_rates.METRICS:
        counted = _count([row for row in rows if row.lang == lang])
        if counted is not None:
            languages[lang] = counted
    summary = {**total, "languages": languages}
    silent = [row for row in rows if row.text is not None and not row.text.reference]
    if silent:
        summary["nonspeech"] = _count_nonspeech(silent)
    return summary


def _count_nonspeech(rows: Sequence[Utterance]) -> dict[str, Any]:
    """The figures of utterances in which nobody speaks."""
    minutes = sum(row.seconds for row in rows) / 60.0
    words = sum(row.text.output for row in rows if row.text is not None)
    written = sum(not is_empty(row.hypothesis) for row in rows)
    looped = sum(row.looped for row in rows)
    return {
        "outputs": len(rows),
        "minutes": round(minutes, 3),
        "nonempty_percent": round(100 * written / len(rows), 3),
        "words": words,
        "words_per_minute": round(words / max(minutes, 1e-9), 3),
        "looped_percent": round(100 * looped / len(rows), 3),
    }


def _count(rows: Sequence[Utterance]) -> dict[str, Any] | None:
    """The figures of some utterances."""
    scored = [row for row in rows if row.text is not None]
    if not scored:
        return None
    number = len(scored)
    counts = [row.text for row in scored if row.text is not None]
    empty = sum(is_empty(row.hypothesis) for row in scored)
    hallucinated = sum(map(error_rates.is_hallucinated, counts))
    units = sum(count.output for count in counts)
    looped = sum(row.looped for row in scored)
    return {
        "outputs": number,
        "empty": empty,
        "empty_percent": round(100 * empty / number, 3),
        "nonempty_percent": round(100 * (number - empty) / number, 3),
        "mean_units": round(units / number, 3),
        "hallucinated": hallucinated,
        "hallucinated_percent": round(100 * hallucinated / number, 3),
        "looped": looped,
        "looped_percent": round(100 * looped / number, 3),
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
        f"{summary['looped_percent']:.2f}",
        *_show_nonspeech(summary.get("nonspeech")),
    )


def _show_nonspeech(counted: dict[str, Any] | None) -> tuple[object, ...]:
    """The last columns, blank where all audio is speech."""
    if counted is None:
        return ("",) * 4
    return (
        counted["outputs"],
        f"{counted['nonempty_percent']:.2f}",
        f"{counted['words_per_minute']:.2f}",
        f"{counted['looped_percent']:.2f}",
    )
