"""The worst utterances of a sweep's cells, reference and hypothesis aligned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rapidfuzz.distance import Levenshtein

from nim4_jax.eval.measures.error_rates import Counts
from nim4_jax.eval.reports.page import Alignment, Listing, Pair
from nim4_jax.eval.sweep import tables
from nim4_jax.eval.sweep.cells import DONE, Cell
from nim4_jax.text import normalise

WORST = 5
"""Utterances that are listed of a cell."""
_UNITS = 120  # shown of an utterance


def list_worst(cells: Sequence[Cell]) -> tuple[Listing, ...]:
    """Utterances with most errors of each cell that has any.

    The first mode and hotwords of each model and benchmark are open, others closed.
    """
    listings, seen = [], set()
    for cell in cells:
        if cell.status != DONE or not (worst := find_worst(cell.rows)):
            continue
        key = cell.key
        aligned = tuple(map(_align_row, worst))
        shown = (key.model, key.benchmark) not in seen
        seen.add((key.model, key.benchmark))
        title = ", ".join(tables.name(key))
        listings.append(Listing(title, aligned, shown))
    return tuple(listings)


def find_worst(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with most errors first; of as many errors, those first in the set."""
    wrong = [row for row in rows if "text" in row and _count(row).errors]
    return sorted(wrong, key=lambda row: -_count(row).errors)[:WORST]


def _count(row: dict[str, Any]) -> Counts:
    return Counts(**row["text"])


def _align_row(row: dict[str, Any]) -> Alignment:
    pairs = align(row["scored_reference"], row["scored_hypothesis"], row["lang"])
    counts = _count(row)
    title = (
        f"{row['id']} ({row['lang']}, {row['seconds']:.1f} s): {counts.errors} errors "
        f"in {counts.reference}: {counts.substitutions} substituted, "
        f"{counts.deletions} deleted, {counts.insertions} inserted"
    )
    return Alignment(title, tuple(pairs[:_UNITS]), max(len(pairs) - _UNITS, 0))


def align(reference: str, hypothesis: str, lang: str) -> list[Pair]:
    """Pairs of units with the least edits.

    Args:
        reference: normalised.
        hypothesis: normalised.
        lang: "en" aligns words, "zh" characters, "mixed" both.
    """
    said, written = (_split(text, lang) for text in (reference, hypothesis))
    pairs = []
    for step in Levenshtein.opcodes(said, written):
        tag = step.tag
        ones = said[step.src_start : step.src_end]
        others = written[step.dest_start : step.dest_end]
        if tag in ("equal", "replace"):
            pairs += zip(ones, others, strict=True)
        pairs += [(unit, "") for unit in ones] if tag == "delete" else []
        pairs += [("", unit) for unit in others] if tag == "insert" else []
    return pairs


def _split(text: str, lang: str) -> list[str]:
    """Units as `metrics.score_text` counts them."""
    if lang == "zh":
        return list("".join(text.split()))
    return normalise.split_units(text, lang) if lang == "mixed" else text.split()
