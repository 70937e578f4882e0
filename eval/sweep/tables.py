"""Tables of a sweep: errors and speed, names, outputs, streams, and what is missing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from nim4_jax.eval.reports.page import Table
from nim4_jax.eval.sweep.cells import DONE, Cell, Key
from nim4_jax.eval.sweep.rates import Contrast, Rate

SYSTEM = ("benchmark", "mode", "model")
"""Columns that name a cell."""

_BLANK = "–"

_Field = tuple[str, str, str]
"""Column, dotted path in a cell's summary, format."""

_NAMES: tuple[_Field, ...] = (
    ("said", "entities.said", "d"),
    ("recall %", "entities.recall_percent", ".2f"),
    ("precision %", "entities.precision_percent", ".2f"),
    ("false insertions", "entities.inserted", "d"),
    ("held out", "entities.held_out.said", "d"),
    ("recall %", "entities.held_out.recall_percent", ".2f"),
    ("outputs with false hints", "entities.hints.outputs", "d"),
    ("hint in it %", "entities.hints.intruded_percent", ".2f"),
)
_WRITTEN: tuple[_Field, ...] = (
    ("outputs", "outputs.outputs", "d"),
    ("empty %", "outputs.empty_percent", ".2f"),
    ("mean units", "outputs.mean_units", ".2f"),
    ("hallucinated %", "outputs.hallucinated_percent", ".2f"),
    ("looped %", "outputs.looped_percent", ".2f"),
)
_SILENT: tuple[_Field, ...] = (
    ("outputs", "outputs.nonspeech.outputs", "d"),
    ("minutes", "outputs.nonspeech.minutes", ".1f"),
    ("non-empty %", "outputs.nonspeech.nonempty_percent", ".2f"),
    ("words a minute", "outputs.nonspeech.words_per_minute", ".2f"),
    ("looped %", "outputs.nonspeech.looped_percent", ".2f"),
)


def tabulate_errors(cells: Sequence[Cell], rates: Sequence[Rate]) -> list[Table]:
    """Benchmarks × models, a table for each mode with its hotwords."""
    models = _unique(cell.key.model for cell in cells)
    by_key = {cell.key: cell for cell in cells}
    main = [rate for rate in rates if rate.kind in ("text", "phonemes")]
    found = {(rate.key, rate.lang, rate.metric): rate for rate in main}
    kinds: dict[str, list[tuple[str, str]]] = {}
    for rate in main:
        kinds.setdefault(rate.key.benchmark, []).append((rate.lang, rate.metric))
    tables = []
    for mode, hotwords in _unique((cell.key.mode, cell.key.hotwords) for cell in cells):
        rows: list[tuple[str, ...]] = []
        for benchmark in _unique(cell.key.benchmark for cell in cells):
            keys = [Key(model, benchmark, mode, hotwords) for model in models]
            here = [by_key.get(key) for key in keys]
            if not any(here):
                continue
            for lang, metric in _unique(kinds.get(benchmark, ())):
                pairs = zip(keys, here)
                shown = (_show(found.get((key, lang, metric)), it) for key, it in pairs)
                rows.append((benchmark, _name_rate(metric, lang), *shown))
            if any(cell and cell.status == DONE for cell in here):
                speeds = map(_show_speed, here)
                rows.append((benchmark, "RTF (RTFx)", *speeds))
            else:
                rows.append((benchmark, "", *(_show(None, it) for it in here)))
        columns = ("benchmark", "measure", *models)
        title = name_way(mode, hotwords)
        tables.append(Table(title, columns, tuple(rows), labels=2))
    return tables


def _show(rate: Rate | None, cell: Cell | None) -> str:
    """The rate with its interval, or why there is none."""
    if cell is None or (rate is None and cell.status == DONE):
        return _BLANK
    if rate is None:
        return cell.status
    return _show_rate(rate)


def _show_speed(cell: Cell | None) -> str:
    """Real-time factor and how many times faster than speech."""
    if cell is None or cell.status != DONE:
        return _BLANK
    factor = cell.summary.get("real_time_factor")
    if not factor:
        return _BLANK
    return f"{factor:.3f} ({1 / factor:.1f})"


def name_way(mode: str, hotwords: str) -> str:
    """A mode with its hotwords, if there are some."""
    return mode if hotwords == "none" else f"{mode}, {hotwords}"


def tabulate_missing(cells: Sequence[Cell]) -> list[Table]:
    """Cells that are not done, with their reasons; like ones together."""
    gathered: dict[tuple[str, ...], list[str]] = {}
    for cell in cells:
        if cell.status != DONE:
            key = cell.key
            place = (cell.status, cell.reason, key.benchmark, key.model)
            gathered.setdefault(place, []).append(name_way(key.mode, key.hotwords))
    # First models with the same modes, then benchmarks with the same models.
    by_modes: dict[tuple[str, ...], list[str]] = {}
    for (*place, model), ways in gathered.items():
        by_modes.setdefault((*place, "; ".join(ways)), []).append(model)
    merged: dict[tuple[str, ...], list[str]] = {}
    for (status, reason, benchmark, ways), models in by_modes.items():
        place = (", ".join(models), ways, status, reason)
        merged.setdefault(place, []).append(benchmark)
    if not merged:
        return []
    rows = tuple((", ".join(names), *place) for place, names in merged.items())
    columns = ("benchmarks", "models", "modes", "status", "reason")
    return [Table("Not measured", columns, rows, labels=5)]


def tabulate_contrasts(
    contrasts: Sequence[Contrast], left_out: Sequence[str]
) -> list[Table]:
    """A table for each model against the base; what never differs is left out."""
    tables = []
    for model in _unique(each.key.model for each in contrasts):
        mine = [each for each in contrasts if each.key.model == model]
        told = [each for each in mine if _differs(each)]
        alike = len(mine) - len(told)
        note = f"{alike} further measures have no difference in any resample."
        columns = ("benchmark", "mode", "measure", "b is", "n", "a → b %")
        columns += ("b − a (95 %)", "p (Holm)")
        title = f"b = {model} against a = {mine[0].base.model}"
        rows = tuple(map(_list_contrast, told))
        tables.append(Table(title, columns, rows, labels=4, note=note if alike else ""))
    if left_out:
        rows = tuple((reason,) for reason in left_out)
        tables.append(Table("Not compared", ("what, and why",), rows))
    return tables


def _differs(contrast: Contrast) -> bool:
    it = contrast.line.difference
    return bool(it.change or it.low or it.high)


def _list_contrast(contrast: Contrast) -> tuple[str, ...]:
    line, it, key = contrast.line, contrast.line.difference, contrast.key
    measure = line.measure
    if line.lang != "all":
        measure = _name_rate(measure, line.lang)
    return (
        key.benchmark,
        name_way(key.mode, key.hotwords),
        measure,
        contrast.verdict.replace(" ", "\u00a0"),
        str(it.utterances),
        f"{it.a:.2f}\u00a0→\u00a0{it.b:.2f}",
        f"{it.change:+.2f} ({it.low:+.2f}\u00a0…\u00a0{it.high:+.2f})",
        f"{it.p:.4f}\u00a0({contrast.p_holm:.4f})",
    )


def tabulate_names(cells: Sequence[Cell], rates: Sequence[Rate]) -> list[Table]:
    """How many of the names said were written, and errors in them and outside."""
    named = [cell for cell in cells if "entities" in cell.summary]
    biased = {rate.key for rate in rates if rate.kind == "biased" and rate.percent}
    both = [
        rate
        for rate in rates
        if rate.key in biased and rate.kind in ("unbiased", "biased")
    ]
    return [
        *_tabulate_fields("Names written", named, _NAMES),
        *_tabulate_rates("Errors outside of names and in them", both),
    ]


def tabulate_outputs(cells: Sequence[Cell], rates: Sequence[Rate]) -> list[Table]:
    """What was written at all, and where nobody speaks; errors of raw texts."""
    having = [cell for cell in cells if "outputs" in cell.summary]
    silent = [cell for cell in having if "nonspeech" in cell.summary["outputs"]]
    return [
        *_tabulate_fields("What is written", having, _WRITTEN),
        *_tabulate_fields("Where nobody speaks", silent, _SILENT),
        *_tabulate_rates("Raw errors", [it for it in rates if it.kind == "raw"]),
    ]


def _tabulate_rates(title: str, rates: Sequence[Rate]) -> list[Table]:
    """A column a model, a row all else."""
    models = _unique(rate.key.model for rate in rates)
    found: dict[tuple[str, ...], dict[str, str]] = {}
    for rate in rates:
        way = name_way(rate.key.mode, rate.key.hotwords)
        row = (rate.key.benchmark, way, _name_rate(rate.metric, rate.lang))
        found.setdefault(row, {})[rate.key.model] = _show_rate(rate)
    rows = (
        (*row, *(shown.get(model, _BLANK) for model in models))
        for row, shown in found.items()
    )
    columns = ("benchmark", "mode", "measure", *models)
    return [Table(title, columns, tuple(rows), labels=3)] if found else []


def _name_rate(metric: str, lang: str) -> str:
    return f"{metric} ({lang})"


def _show_rate(rate: Rate) -> str:
    if rate.percent is None:
        return f"nothing said, {rate.counts.errors} written"
    # No line ends within the brackets.
    return f"{rate.percent:.2f} ({rate.low:.2f}\u00a0…\u00a0{rate.high:.2f})"


def _tabulate_fields(
    title: str, cells: Sequence[Cell], fields: Sequence[_Field]
) -> list[Table]:
    """A row a cell; a column that no cell has a value for is left out."""
    found = [
        (field, [_find(cell.summary, field[1]) for cell in cells]) for field in fields
    ]
    found = [(field, values) for field, values in found if set(values) != {None}]
    if not cells or not found:
        return []
    rows = []
    for place, cell in enumerate(cells):
        shown = (
            _BLANK if values[place] is None else format(values[place], form)
            for (_, _, form), values in found
        )
        rows.append((*name(cell.key), *shown))
    columns = (*SYSTEM, *(field[0] for field, _ in found))
    return [Table(title, columns, tuple(rows), labels=len(SYSTEM))]


def _find(summary: dict[str, Any], path: str) -> Any:
    """A value deep in a summary; None where there is none."""
    value: Any = summary
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def tabulate_streams(cells: Sequence[Cell]) -> list[Table]:
    """Delays and revisions of cells that were streamed."""
    rows = []
    for cell in cells:
        measured = cell.summary.get("streaming")
        if measured:
            rows.append(
                (
                    *name(cell.key),
                    str(measured["streams"]),
                    *(
                        _show_delays(measured[delay])
                        for delay in (
                            "first_partial_delay",
                            "partial_lag",
                            "final_delay",
                        )
                    ),
                    f"{100 * measured['partial_upwr']:.1f}",
                    f"{100 * measured['upwr']:.1f}",
                    str(measured["stable_violations"]),
                )
            )
    if not rows:
        return []
    columns = (
        *SYSTEM,
        "streams",
        "first partial, s",
        "word settled, s",
        "final, s",
        "words revised %",
        "with the final's %",
        "broken promises",
    )
    note = (
        "Delays: median (95th percentile). First partial: after the start of the first "
        "word. Word settled: after its end, until it stands for good. Final: after the "
        "end of the last word. Words revised: shown and taken back, per final word."
    )
    return [Table("Latency and revision", columns, tuple(rows), labels=3, note=note)]


def _show_delays(delays: dict[str, Any]) -> str:
    if delays["p50"] is None:
        return _BLANK
    return f"{delays['p50']:.2f}\u00a0({delays['p95']:.2f})"


def name(key: Key) -> tuple[str, str, str]:
    """The cells of a table that name a cell, as SYSTEM has them."""
    return key.benchmark, name_way(key.mode, key.hotwords), key.model


def _unique(values: Iterable[Any]) -> list[Any]:
    """Each once, in order."""
    return list(dict.fromkeys(values))
