"""Plots of a sweep as SVG files, each only where its data are there.

Models differ by colour (of different lightness too) and by mark, modes by line.
"""

from __future__ import annotations

import dataclasses
import io
import itertools
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from nim4_jax.eval.measures import bootstrap
from nim4_jax.eval.measures.latency import RANKS
from nim4_jax.eval.reports.page import Picture
from nim4_jax.eval.sweep import tables
from nim4_jax.eval.sweep.cells import DONE, Cell, Key
from nim4_jax.eval.sweep.rates import Rate

# Okabe and Ito's, in an order that grey tells apart, too.
_COLORS = ("#000000", "#d55e00", "#56b4e9", "#009e73", "#cc79a7", "#0072b2", "#e69f00")
_MARKS = "osD^vP*X"  # one more, so that both together rarely repeat
_LINES = ("-", "--", ":", "-.")
_STYLE = {
    "font.size": 9,
    "axes.grid": True,
    "grid.alpha": 0.35,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "nim4",  # the same ids, so the same bytes, each time
    "text.parse_math": False,
}
_MOST_PANELS, _MOST_DOTS = 3, 60  # of a picture and of a panel
_CUT = 120.0  # %, where axes of errors end: a few far beyond would squeeze all others
_LONGEST = 44  # letters of a name
_NOISY = re.compile(r"(.+)-(-?\d+)db", re.IGNORECASE)
_DELAYS = {
    "first_partial_delay": "first partial after\nthe first word's start, s",
    "partial_lag": "word settled after\nits end, s",
    "final_delay": "final text after\nthe last word's end, s",
}

Way = tuple[str, str]
"""A mode and hotwords."""


def draw(cells: Sequence[Cell], rates: Sequence[Rate]) -> dict[str, list[Picture]]:
    """All plots, by what they belong to: "errors", "noise", "latency", "hotwords"."""
    models = list(dict.fromkeys(cell.key.model for cell in cells))
    done = [cell for cell in cells if cell.status == DONE]
    rates = [
        rate
        for rate in rates
        if rate.kind in ("text", "phonemes") and rate.percent is not None
    ]
    with matplotlib.rc_context(_STYLE):
        return {
            "errors": _draw_errors(models, rates),
            "noise": _draw_noise(models, rates),
            "latency": _draw_latency(models, done),
            "hotwords": _draw_recall(models, done),
        }


def _draw_errors(models: list[str], rates: Sequence[Rate]) -> list[Picture]:
    """Dots with intervals: a panel a mode, a row a benchmark and language."""
    pictures = []
    ways = _unique(_way(rate.key) for rate in rates)
    bare = [way for way in ways if way[1] == "none"]
    told = [way for way in ways if way not in bare]
    for some in (*_split(bare, _MOST_PANELS), *_split(told, _MOST_PANELS)):
        mine = [rate for rate in rates if _way(rate.key) in some]
        every = _unique((rate.key.benchmark, rate.lang, rate.metric) for rate in mine)
        for places in _split(every, max(_MOST_DOTS // len(models), 4)):
            pictures.append(_draw_dots(models, mine, some, places))
    return pictures


def _draw_dots(
    models: list[str], rates: Sequence[Rate], ways: Sequence[Way], places: list
) -> Picture:
    """One picture of `_draw_errors`."""
    height = 1.4 + len(places) * (0.16 * len(models) + 0.14)
    figure, axes = _open(1, len(ways), 3.0, height, sharex=True, sharey=True)
    for axis, way in zip(axes[0], ways):
        for rate in rates:
            place = (rate.key.benchmark, rate.lang, rate.metric)
            if _way(rate.key) == way and place in places:
                number = models.index(rate.key.model)
                shift = 0.8 * ((number + 0.5) / len(models) - 0.5)
                row = places.index(place) + shift
                _draw_points(axis, [row], [rate], number, rate.key.model, flip=True)
        axis.set_title(_name_way(way), fontsize=9)
        axis.set_xlabel("error, %")
        axis.grid(visible=False, axis="y")
        for edge in range(1, len(places)):
            axis.axhline(edge - 0.5, color="#bbbbbb", linewidth=0.6)
    _start_at_zero(axes[0][0], "x")
    axes[0][0].set_yticks(range(len(places)), [_name_place(it) for it in places])
    axes[0][0].set_ylim(len(places) - 0.5, -0.5)
    _add_legend(figure, axes)
    return _save(figure, "Error by benchmark and model; bars: 95 % intervals")


def _draw_points(
    axis: Any,
    places: Sequence[float],
    rates: Sequence[Any],
    number: int,
    label: str,
    *,
    flip: bool = False,
    line: str = "",
) -> None:
    """Rates with their intervals at places of the other axis."""
    values = np.array([rate.percent for rate in rates])
    # A resampled interval need not hold the rate itself.
    below = np.maximum(values - [rate.low for rate in rates], 0)
    above = np.maximum([rate.high for rate in rates] - values, 0)
    bars = {"xerr" if flip else "yerr": [below, above]}
    pair = (values, places) if flip else (places, values)
    axis.errorbar(
        *pair,
        **bars,
        label=_shorten(label),
        color=_COLORS[number % len(_COLORS)],
        marker=_MARKS[number % len(_MARKS)],
        linestyle=line,
        markersize=4.5,
        linewidth=1.2,
        capsize=2.5,
    )
    for place, value in zip(places, values):
        if value > _CUT:
            axis.annotate(
                f"{value:.0f} →" if flip else f"{value:.0f} ↑",
                (_CUT, place) if flip else (place, _CUT),
                (0, 0) if flip else (0, -9 * number),
                textcoords="offset points",
                ha="right" if flip else "center",
                va="center" if flip else "top",
                color=_COLORS[number % len(_COLORS)],
                fontsize=7,
            )


def split_noise(benchmark: str) -> tuple[str, int] | None:
    """The clean benchmark and the SNR in dB of a noisy one: "commands-10db"."""
    found = _NOISY.fullmatch(benchmark)
    return (found[1], int(found[2])) if found else None


def _draw_noise(models: list[str], rates: Sequence[Rate]) -> list[Picture]:
    """Error against SNR: a picture a benchmark, a row a language, a panel a mode."""
    stems = _unique(
        noisy[0] for rate in rates if (noisy := split_noise(rate.key.benchmark))
    )
    pictures = []
    for stem in stems:
        noisy = [
            (found[1], rate)
            for rate in rates
            if (found := split_noise(rate.key.benchmark)) and found[0] == stem
        ]
        noisy.sort(key=lambda point: point[0])
        levels = _unique(level for level, _ in noisy)
        top = levels[-1] + 5
        clean = [(top, rate) for rate in rates if rate.key.benchmark == stem]
        ticks = [(level, str(level)) for level in levels]
        ticks += [(top, "clean")] if clean else []
        title = f"Error against noise, {_shorten(stem)}; bars: 95 % intervals"
        for ways in _split(_unique(_way(rate.key) for _, rate in noisy), _MOST_PANELS):
            points = [it for it in (*noisy, *clean) if _way(it[1].key) in ways]
            pictures.append(_draw_lines(title, models, points, ticks, "SNR, dB"))
    return pictures


def _draw_lines(
    title: str,
    models: list[str],
    points: Sequence[tuple[float, Rate]],
    ticks: Sequence[tuple[float, str]],
    xlabel: str,
) -> Picture:
    """Rates over a quantity: a row a language and metric, a panel a mode."""
    kinds = _unique((rate.lang, rate.metric) for _, rate in points)
    ways = _unique(_way(rate.key) for _, rate in points)
    figure, axes = _open(len(kinds), len(ways), 3.0, 2.4 * len(kinds), sharey="row")
    for row, (lang, metric) in zip(axes, kinds):
        row[0].set_ylabel(f"{metric} ({lang}), %")
        for axis, way in zip(row, ways):
            for number, model in enumerate(models):
                mine = [
                    (place, rate)
                    for place, rate in points
                    if (rate.lang, rate.metric) == (lang, metric)
                    and (rate.key.model, _way(rate.key)) == (model, way)
                ]
                if mine:
                    places, values = zip(*mine)
                    _draw_points(axis, places, values, number, model, line="-")
            axis.set_xticks(*zip(*ticks))
            axis.margins(x=0.1)
        _start_at_zero(row[0], "y")
    for axis, way in zip(axes[0], ways):
        axis.set_title(_name_way(way), fontsize=9)
    for axis in axes[-1]:
        axis.set_xlabel(xlabel)
    _add_legend(figure, axes)
    return _save(figure, title)


def _draw_latency(models: list[str], done: Sequence[Cell]) -> list[Picture]:
    """Share of delays below each value: a picture a benchmark, a panel a delay."""
    streamed = [
        cell for cell in done if cell.summary.get("streaming", {}).get("quantiles")
    ]
    ways = _unique(_way(cell.key) for cell in streamed)
    pictures = []
    for benchmark in _unique(cell.key.benchmark for cell in streamed):
        figure, axes = _open(1, len(_DELAYS), 2.9, 2.9, sharey=True)
        for axis, (name, label) in zip(axes[0], _DELAYS.items()):
            ends = []
            for cell in streamed:
                known = cell.summary["streaming"]["quantiles"].get(name)
                if cell.key.benchmark != benchmark or not known:
                    continue
                values = [value / 1000 for value in known]
                number = models.index(cell.key.model)
                axis.plot(
                    values,
                    RANKS,
                    label=_shorten(f"{cell.key.model}, {_name_way(_way(cell.key))}"),
                    color=_COLORS[number % len(_COLORS)],
                    linestyle=_LINES[ways.index(_way(cell.key)) % len(_LINES)],
                )
                # The last few would squeeze all others.
                ends.append((values[1], values[-2]))
            if ends:
                lows, highs = zip(*ends)
                room = 0.05 * (max(highs) - min(lows)) or 0.1
                axis.set_xlim(min(lows) - room, max(highs) + room)
            axis.set_xlabel(label)
            axis.locator_params(axis="x", nbins=5)
        axes[0][0].set_ylabel("share below, %")
        axes[0][0].set_ylim(0, 100)
        _add_legend(figure, axes)
        pictures.append(_save(figure, f"Delays of streams, {_shorten(benchmark)}"))
    return pictures


@dataclasses.dataclass(frozen=True)
class _Recall:
    """Entity recall of a cell with its interval, percent."""

    percent: float
    low: float
    high: float

    @classmethod
    def of(cls, cell: Cell) -> _Recall:
        """Names found over names said; there must be some."""
        counts = np.array(
            [
                (len(row.get("found", ())), len(row["said"]))
                for row in cell.rows
                if row.get("said")
            ]
        )
        found, said = counts.sum(axis=0)
        return cls(100.0 * found / said, *bootstrap.interval(counts))


def _draw_recall(models: list[str], done: Sequence[Cell]) -> list[Picture]:
    """Recall against the size of the hotword list: a picture a benchmark."""
    sizes = {
        cell.key: size
        for cell in done
        if (size := find_list_size(cell)) is not None
        and any(row.get("said") for row in cell.rows)
    }
    pictures = []
    for benchmark in _unique(key.benchmark for key, size in sizes.items() if size):
        listed = [key for key, size in sizes.items() if size]
        modes = _unique(key.mode for key in listed if key.benchmark == benchmark)
        for some in _split(modes, _MOST_PANELS):
            mine = [
                cell
                for cell in done
                if cell.key in sizes
                and cell.key.benchmark == benchmark
                and cell.key.mode in some
            ]
            pictures.append(_draw_sizes(benchmark, models, mine, some, sizes))
    return pictures


def _draw_sizes(
    benchmark: str,
    models: list[str],
    cells: Sequence[Cell],
    modes: Sequence[str],
    sizes: dict[Key, int],
) -> Picture:
    """One picture of `_draw_recall`: a panel a mode."""
    cells = sorted(cells, key=lambda cell: sizes[cell.key])
    order = _unique(sizes[cell.key] for cell in cells)
    figure, axes = _open(1, len(modes), 3.2, 2.9, sharey=True)
    for axis, mode in zip(axes[0], modes):
        for number, model in enumerate(models):
            mine = [c for c in cells if (c.key.model, c.key.mode) == (model, mode)]
            if mine:
                places = [order.index(sizes[cell.key]) for cell in mine]
                recalls = list(map(_Recall.of, mine))
                _draw_points(axis, places, recalls, number, model, line="-")
        names = [f"{size:,}" if size else "no list" for size in order]
        axis.set_xticks(range(len(order)), names)
        axis.set_xlabel("names in the hotword list")
        axis.set_title(mode, fontsize=9)
    axes[0][0].set_ylim(-2, 104)
    axes[0][0].set_ylabel("entity recall, %")
    _add_legend(figure, axes)
    title = f"Recall against the size of the list, {_shorten(benchmark)}"
    return _save(figure, f"{title}; bars: 95 % intervals")


def find_list_size(cell: Cell) -> int | None:
    """Names in the hotword list of a cell, 0 without a list, None where unknown."""
    if cell.key.hotwords == "none":
        return 0
    return cell.summary.get("hotword_list", {}).get("names")


def _open(
    rows: int, columns: int, width: float, height: float, **shared: Any
) -> tuple[Figure, Any]:
    """A figure with panels; `width` of a panel and `height` of all, inches."""
    figure = Figure(figsize=(1.6 + width * columns, height + 0.6), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **shared)


def _start_at_zero(axis: Any, side: str) -> None:
    """Limits that hold 0, the whole of a mark at 0, and all points up to _CUT."""
    get, put = getattr(axis, f"get_{side}lim"), getattr(axis, f"set_{side}lim")
    top = min(max(get()[1], 1.0), _CUT)
    put(-0.03 * top, top)


def _add_legend(figure: Figure, axes: Any) -> None:
    """One legend for all panels, below them."""
    entries: dict[str, Any] = {}
    for axis in axes.flat:
        for handle, label in zip(*axis.get_legend_handles_labels()):
            entries.setdefault(label, handle)
    room = max(1, int(figure.get_figwidth() / 0.085))
    columns = max(1, room // (max(map(len, entries)) + 8))
    figure.legend(
        list(entries.values()),
        list(entries),
        loc="outside lower center",
        ncols=min(columns, len(entries)),
        frameon=False,
    )


def _save(figure: Figure, title: str) -> Picture:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return Picture(title, buffer.getvalue())


def _way(key: Key) -> Way:
    return key.mode, key.hotwords


def _name_way(way: Way) -> str:
    return _shorten(tables.name_way(*way))


def _name_place(place: tuple[str, str, str]) -> str:
    benchmark, lang, metric = place
    return f"{_shorten(benchmark)}\n{metric}, {lang}"


def _shorten(name: str) -> str:
    """The name, or its ends; what the font lacks is a question mark."""
    plain = "".join(letter if ord(letter) < 0x250 else "?" for letter in name)
    half = _LONGEST // 2
    return plain if len(plain) <= _LONGEST else f"{plain[:half]}…{plain[-half:]}"


def _split(values: list[Any], most: int) -> list[list[Any]]:
    """At most so many at a time, about as many each time."""
    count = math.ceil(len(values) / most)
    edges = [len(values) * number // max(count, 1) for number in range(count + 1)]
    return [values[first:last] for first, last in itertools.pairwise(edges)]


def _unique(values: Iterable[Any]) -> list[Any]:
    """Each once, in order."""
    return list(dict.fromkeys(values))
