"""Results of an evaluation as a table: JSON, Markdown, and one line per utterance."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nim4_jax import whole_file
from nim4_jax.eval.evaluation import SetResult, Utterance
from nim4_jax.eval.measures import entities, error_rates, normalisers, outputs
from nim4_jax.eval.measures.error_rates import Counts

Report = dict[str, Any]

_COLUMNS = (
    "set",
    "language",
    "utterances",
    "audio s",
    "metric",
    "error %",
    "S",
    "D",
    "I",
    "units",
    "RTF",
    "RTFx",
)
_KINDS = {
    "text": "{}",
    "raw": "{}, raw",
    "unbiased": "U-{}",
    "biased": "B-{}",
    "phonemes": "PER",
    "shuffled": "{}",
}
"""Kinds of scores, and what their metric is called after the language's own."""

_MAIN = ("text", "phonemes", "shuffled")
"""Those with rows of their own in the first table; others have columns of `_WAYS`."""

_WAYS = ("set", "language", "metric", "normaliser", "error %", "raw %", "U- %", "B- %")

_NAMED = 5
"""Skipped files that the tables name, for each reason; report.json has more."""

_DELAYS = ("first_partial_delay", "partial_lag", "final_delay")


def build(model: str, results: Sequence[SetResult]) -> Report:
    """The report of several sets, JSON-able.

    Returns:
        {"model", "sets": [{"set", "utterances", "audio_seconds", "processing_seconds",
        "real_time_factor", "rtfx" (its inverse), "normaliser", "skipped": {reason:
        count}, "skipped_lines": {reason: "file:line: reason: detail" of up to 1,000},
        "scores": {kind: {"languages": {lang: row}, "mean_percent": mean over the
        languages in which something was said, None where nothing was}}}]}
        with the kinds "text", "raw" (punctuation and case count), "unbiased" (U-WER,
        outside of names), "biased" (B-WER, in names), "phonemes" and "shuffled", where
        they were scored; a row has metric, percent, substitutions, deletions,
        insertions, reference (units), utterances, audio_seconds. Where text
        was scored a set also has "outputs", as `outputs.summarise` makes it; where
        names were said or hinted at, "entities", as `entities.summarise` does.
    """
    sets = []
    for result in results:
        scores = {}
        for kind in _KINDS:
            scored = _summarise(result.utterances, kind)
            if scored is not None:
                scores[kind] = scored
        part = {
            "set": result.name,
            "utterances": len(result.utterances),
            "audio_seconds": round(result.audio_seconds, 3),
            "processing_seconds": round(result.processing_seconds, 3),
            "real_time_factor": round(result.real_time_factor, 5),
            "rtfx": round(result.inverse_real_time_factor, 2),
            "normaliser": result.normaliser,
            "skipped": result.skipped,
            "skipped_lines": result.skip_lines,
            "scores": scores,
        }
        judged = [row.entities for row in result.utterances if row.entities]
        for name, summary in (
            ("outputs", outputs.summarise(result.utterances)),
            ("entities", entities.summarise(judged, result.hints)),
        ):
            if summary is not None:
                part[name] = summary
        sets.append(part)
    return {"model": model, "sets": sets}


def _summarise(rows: Sequence[Utterance], kind: str) -> Report | None:
    """One kind of score by language, and the mean over the languages."""
    languages = {}
    for lang, metric in error_rates.METRICS.items():
        mine = [row for row in rows if row.lang == lang]
        counted = [(row, getattr(row, kind)) for row in mine]
        counted = [(row, counts) for row, counts in counted if counts is not None]
        if not counted:
            continue
        total = error_rates.add_up(counts for _, counts in counted)
        languages[lang] = {
            "metric": _KINDS[kind].format(metric),
            "percent": round(total.percent, 3),
            **dataclasses.asdict(total),
            "utterances": len(counted),
            "audio_seconds": round(sum(row.seconds for row, _ in counted), 3),
        }
    if not languages:
        return None
    # Where nothing was said there is no rate, however much was written.
    rates = [row["percent"] for row in languages.values() if row["reference"]]
    mean = round(sum(rates) / len(rates), 3) if rates else None
    return {"languages": languages, "mean_percent": mean}


def to_markdown(report: Report) -> str:
    """The tables that a person reads; skipped utterances are listed below them."""
    lines = [
        _join_cells(_COLUMNS),
        "| --- | --- |" + " ---: |" * 2 + " --- |" + " ---: |" * (len(_COLUMNS) - 5),
    ]
    for part in report["sets"]:
        for kind in _MAIN:
            if kind in part["scores"]:
                lines.extend(_table_rows(part, kind, part["scores"][kind]))
    ways = [row for part in report["sets"] for row in _list_ways(part)]
    if ways:
        lines += ["", _join_cells(_WAYS), "|" + " --- |" * 4 + " ---: |" * 4, *ways]
    for name, table in (("outputs", outputs), ("entities", entities)):
        having = [part for part in report["sets"] if name in part]
        if having:
            lines += ["", _join_cells(table.COLUMNS)]
            lines.append("| --- |" + " ---: |" * (len(table.COLUMNS) - 1))
        lines.extend(
            _join_cells(table.list_cells(part["set"], part[name])) for part in having
        )
    if "streaming" in report:
        lines += ["", *_describe_streams(report["streaming"])]
    for part in report["sets"]:
        for reason, count in sorted(part["skipped"].items()):
            lines.append(f"\n{part['set']}: skipped {count}, {reason}")
            named = part["skipped_lines"].get(reason, [])
            lines += [f"- {line}" for line in named[:_NAMED]]
            if len(named) > _NAMED:
                lines.append("- …, see report.json")
    return "\n".join(lines) + "\n"


def _describe_streams(measured: Report) -> list[str]:
    """How steady partials were, and how much audio passed before each was known."""
    cells = (
        str(measured["streams"]),
        str(measured["finals"]),
        f"{100 * measured['partial_upwr']:.1f}",
        f"{100 * measured['upwr']:.1f}",
        str(measured["stable_violations"]),
        *(_print_delay(measured[name]["p50"]) for name in _DELAYS),
    )
    head = (
        "streams",
        "finals",
        "words revised %",
        "with the final's %",
        "broken promises",
        *(f"{name.replace('_', ' ')} p50 s" for name in _DELAYS),
    )
    return [
        _join_cells(head),
        "|" + " ---: |" * len(head),
        _join_cells(cells),
    ]


def _print_delay(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:.2f}"


def _table_rows(part: Report, kind: str, scored: Report) -> list[str]:
    """Rows of one set and one kind of score."""
    mark = ", shuffled audio" if kind == "shuffled" else ""
    rows = []
    for lang, row in scored["languages"].items():
        cells = (
            part["set"],
            lang,
            row["utterances"],
            f"{row['audio_seconds']:.1f}",
            row["metric"] + mark,
            f"{row['percent']:.2f}" if row["reference"] else "",
            row["substitutions"],
            row["deletions"],
            row["insertions"],
            row["reference"],
            f"{part['real_time_factor']:.3f}",
            f"{part['rtfx']:.1f}",
        )
        rows.append(_join_cells(cells))
    if len(scored["languages"]) > 1 and scored["mean_percent"] is not None:
        names = "/".join(
            sorted({row["metric"] for row in scored["languages"].values()})
        )
        cells = (part["set"], "mean", "", "", names + mark)
        cells += (f"**{scored['mean_percent']:.2f}**", "", "", "", "", "", "")
        rows.append(_join_cells(cells))
    return rows


def _list_ways(part: Report) -> list[str]:
    """A set's error after normalisation, as it is written, and in names or outside."""
    scores = part["scores"]
    if "raw" not in scores:
        return []
    rows = []
    for lang, row in scores["text"]["languages"].items():
        counted = (
            scores.get(kind, {}).get("languages", {}).get(lang, {"reference": 0})
            for kind in ("text", "raw", "unbiased", "biased")
        )
        percents = (
            f"{one['percent']:.2f}" if one["reference"] else "" for one in counted
        )
        cells = (part["set"], lang, row["metric"], part["normaliser"], *percents)
        rows.append(_join_cells(cells))
    return rows


def _join_cells(cells: Sequence[object]) -> str:
    """A table row; a selection such as lang=en|zh must not end its cell."""
    return "| " + " | ".join(str(cell).replace("|", r"\|") for cell in cells) + " |"


def write(folder: str, report: Report, results: Sequence[SetResult]) -> None:
    """Write report.json, report.md and hyps.jsonl, each whole or not at all."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    text = json.dumps(report, ensure_ascii=False, indent=1) + "\n"
    whole_file.write_text(Path(folder, "report.json"), text)
    whole_file.write_text(Path(folder, "report.md"), to_markdown(report))
    lines = [json.dumps(row, ensure_ascii=False) for row in list_rows(results)]
    whole_file.write_text(Path(folder, "hyps.jsonl"), "\n".join(lines) + "\n")


def list_rows(results: Sequence[SetResult]) -> list[Report]:
    """The utterances of all sets as hyps.jsonl has them, one object each."""
    return [
        {"set": result.name, **_describe(row, result.normaliser)}
        for result in results
        for row in result.utterances
    ]


def _describe(row: Utterance, normaliser: str) -> Report:
    """An utterance as one JSON line, with the texts that were compared."""
    described: Report = {
        "id": row.name,
        "lang": row.lang,
        "seconds": round(row.seconds, 3),
        "reference": row.reference,
    }
    if row.hypothesis is not None:
        described |= {
            "hypothesis": row.hypothesis,
            "log_prob": round(row.log_prob or 0.0, 4),
            "scored_reference": normalisers.normalise(
                row.reference, row.lang, normaliser
            ),
            "scored_hypothesis": normalisers.normalise(
                row.hypothesis, row.lang, normaliser
            ),
        }
        if row.looped:
            described["looped"] = True
    for kind in _KINDS:
        counts: Counts | None = getattr(row, kind)
        if counts is not None:
            described[kind] = dataclasses.asdict(counts)
    if row.entities is not None:
        named = dataclasses.asdict(row.entities).items()
        described |= {key: names for key, names in named if names}
    return described
