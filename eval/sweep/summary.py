"""The report of a sweep: report.md, report.html and report.json, made from its cells.

The same cells give the same bytes: draws are seeded, and nothing of the day is in it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nim4_jax import whole_file
from nim4_jax.eval.reports import page
from nim4_jax.eval.reports.page import Picture, Section
from nim4_jax.eval.sweep import listing, plots, rates, tables
from nim4_jax.eval.sweep.cells import DONE, STATUSES, Cell
from nim4_jax.eval.sweep.rates import Contrast, Rate

_ORDER = ("benchmark", "hotwords", "mode", "model")

TITLE = "Speech recognition: evaluation sweep"

_ERRORS = (
    "Error in percent (95 % interval, utterances drawn again with replacement). WER: "
    "words, CER: Chinese characters, MER: both, PER: phonemes. RTF: processing time "
    "over audio time; RTFx: its inverse, × faster than speech."
)
_CONTRASTS = (
    "The paired bootstrap: the same utterances are drawn for both models. With many "
    "comparisons some differ by luck alone, so p is also corrected for their number "
    f"({{}}) by Holm's method; a verdict needs a corrected p ≤ {rates.LEVEL}. "
    "“uncertain”: shown by its own interval, but not after the correction; “not "
    "shown”: not even by that."
)
_NAMES = (
    "Recall: names written of those said; precision: names said of those written; "
    "false insertions: names of the set, or hints, that are written and were not said. "
    "U: errors outside of names, B: in names. A benchmark without names is not listed."
)
_OUTPUTS = (
    "Empty: nothing is written, not even punctuation. Hallucinated: much longer than "
    "what was said, and something else. Looped: an output that repeats itself. Raw "
    "errors: punctuation and case count."
)
_WORST = (
    f"Up to {listing.WORST} utterances of each cell with most errors, normalised "
    "as they were scored: the reference above, the hypothesis below. What is folded is "
    "not printed."
)


def write(folder: str, cells: Sequence[Cell], *, base: str = "") -> None:
    """Write report.md, report.html and report.json, each whole or not at all.

    Args:
        folder: of the files; is made if it is not there.
        cells: of the sweep; models, benchmarks and modes are shown in the order in
            which they come.
        base: model that the others are compared with; "" for the first.

    Raises:
        ValueError: no cell, two cells of one key, or no cell of the base.
    """
    models = list(dict.fromkeys(cell.key.model for cell in cells))
    if not models or len({cell.key for cell in cells}) < len(cells):
        raise ValueError(
            f"got {len(cells)} cells, {len({cell.key for cell in cells})} of them "
            "different; expected one or more, each once."
        )
    if base and base not in models:
        raise ValueError(f"no cell of the base {base!r}; there are {models}.")
    cells = arrange(cells)
    measured = [rate for cell in cells for rate in rates.measure(cell)]
    contrasts, left_out = rates.contrast(cells, base or models[0])
    pictures = plots.draw(cells, measured)
    sections = list_sections(cells, measured, contrasts, left_out, pictures)
    Path(folder).mkdir(parents=True, exist_ok=True)
    facts = to_json(cells, measured, contrasts, left_out)
    text = json.dumps(facts, ensure_ascii=False, indent=1) + "\n"
    whole_file.write_text(Path(folder, "report.json"), text)
    whole_file.write_text(Path(folder, "report.md"), page.to_markdown(TITLE, sections))
    whole_file.write_text(Path(folder, "report.html"), page.to_html(TITLE, sections))


def arrange(cells: Sequence[Cell]) -> list[Cell]:
    """By benchmark, then hotwords, mode, model: each in the order of its first cell."""
    orders = [
        list(dict.fromkeys(getattr(cell.key, part) for cell in cells))
        for part in _ORDER
    ]

    def rank(cell: Cell) -> list[int]:
        return [
            order.index(getattr(cell.key, part)) for part, order in zip(_ORDER, orders)
        ]

    return sorted(cells, key=rank)


def list_sections(
    cells: Sequence[Cell],
    rates: Sequence[Rate],
    contrasts: Sequence[Contrast],
    left_out: Sequence[str],
    plots: dict[str, list[Picture]],
) -> list[Section]:
    """The page; sections without anything in them are left out."""
    done = [cell for cell in cells if cell.status == DONE]
    counts = (sum(cell.status == status for cell in cells) for status in STATUSES)
    numbers = ", ".join(f"{n} {status}" for status, n in zip(STATUSES, counts) if n)
    summary = Section(
        "Errors and speed",
        f"{len(cells)} cells: {numbers}. {_ERRORS}",
        (
            *tables.tabulate_errors(cells, rates),
            *tables.tabulate_missing(cells),
        ),
        (*plots["errors"], *plots["noise"]),
    )
    note = _CONTRASTS.format(len(contrasts))
    optional = [
        Section(
            "Models compared",
            note,
            tuple(tables.tabulate_contrasts(contrasts, left_out)),
        ),
        Section(
            "Names",
            _NAMES,
            tuple(tables.tabulate_names(done, rates)),
            tuple(plots["hotwords"]),
        ),
        Section("Outputs", _OUTPUTS, tuple(tables.tabulate_outputs(done, rates))),
        Section(
            "Streams",
            "",
            tuple(tables.tabulate_streams(done)),
            tuple(plots["latency"]),
        ),
        Section("Worst utterances", _WORST, (), (), listing.list_worst(done)),
    ]
    filled = [it for it in optional if it.tables or it.pictures or it.listings]
    return [summary, *filled]


def to_json(
    cells: Sequence[Cell],
    rates: Sequence[Rate],
    contrasts: Sequence[Contrast],
    left_out: Sequence[str],
) -> dict[str, Any]:
    """All numbers of the report for programs; percent where they are rates."""
    return {
        "cells": [
            {
                **dataclasses.asdict(cell.key),
                "status": cell.status,
                "reason": cell.reason,
                "summary": cell.summary,
                "errors": [
                    {
                        "kind": rate.kind,
                        "language": rate.lang,
                        "metric": rate.metric,
                        "percent": rate.percent,
                        "low": rate.low,
                        "high": rate.high,
                        **dataclasses.asdict(rate.counts),
                        "utterances": rate.utterances,
                    }
                    for rate in rates
                    if rate.key == cell.key
                ],
            }
            for cell in cells
        ],
        "comparisons": [
            {
                **dataclasses.asdict(each.key),
                "base": each.base.model,
                "language": each.line.lang,
                "measure": each.line.measure,
                "more_is_better": each.line.more_is_better,
                **dataclasses.asdict(each.line.difference),
                "change": each.line.difference.change,
                "p_holm": each.p_holm,
                "verdict": each.verdict,
            }
            for each in contrasts
        ],
        "not_compared": list(left_out),
    }
