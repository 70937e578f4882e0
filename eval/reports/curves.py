"""Curves of what runs have recorded, as one PNG: losses of stages, metrics of seeds."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

from nim4_jax.train.metrics import read_metrics

matplotlib.use("Agg")
from matplotlib import pyplot

_LABELS = {
    "train/ctc": "CTC, nats per 40 ms frame",
    "train/cross_entropy": "cross-entropy, nats per token",
}
_SHOWN = 20  # names of metrics in a message

Points = list[tuple[float, float]]
"""(step, value), in order."""


def _smooth(values: Sequence[float], share: float = 0.7) -> list[float]:
    """Exponential moving average."""
    kept, out = values[0], []
    for value in values:
        kept = share * kept + (1.0 - share) * value
        out.append(kept)
    return out


def _find_points(rows: Sequence[dict[str, float]], key: str) -> Points:
    """The finite values of a metric; a picture has no place for the others."""
    points = ((row["step"], row[key]) for row in rows if key in row)
    return [(step, value) for step, value in points if math.isfinite(value)]


def _draw(axis: Any, points: Points, color: str, label: str | None = None) -> None:
    """One curve, raw and smoothed."""
    steps, values = zip(*points)
    axis.plot(steps, values, color=color, alpha=0.3, linewidth=1)
    axis.plot(steps, _smooth(values), color=color, linewidth=2, label=label)


def _open_panels(count: int) -> tuple[Any, Sequence[Any]]:
    """A figure with panels side by side."""
    figure, axes = pyplot.subplots(1, count, figsize=(4.2 * count, 3.2), squeeze=False)
    for axis in axes[0]:
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
    return figure, axes[0]


def _save(figure: Any, out: str) -> str:
    figure.tight_layout()
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=120, format="png")
    pyplot.close(figure)
    return out


def plot_losses(workdir: str, stages: list[str], out: str) -> str:
    """One panel per stage: its loss over steps, raw and smoothed.

    Args:
        workdir: folder of a pipeline.
        stages: names of its stages' folders.
        out: PNG to write.

    Returns:
        `out`.

    Raises:
        ValueError: none of the stages has recorded a loss.
    """
    panels = []
    for stage in stages:
        rows = read_metrics(os.path.join(workdir, stage))
        for key, label in _LABELS.items():
            if points := _find_points(rows, key):
                panels.append((stage, label, points))
    if not panels:
        raise ValueError(f"no losses recorded under {workdir} for stages {stages}.")
    figure, axes = _open_panels(len(panels))
    for axis, (stage, label, points) in zip(axes, panels):
        _draw(axis, points, "#1f4e79")
        axis.set_title(stage)
        axis.set_ylabel(label)
        axis.set_ylim(bottom=0)
    return _save(figure, out)


def plot_metrics(runs: Sequence[str], metrics: Sequence[str], out: str) -> str:
    """One panel per metric over steps, raw and smoothed; one line per run.

    Args:
        runs: workdirs with a metrics.jsonl, such as the seeds of one experiment; a run
            without a metric has no line in its panel.
        metrics: names as metrics.jsonl has them: "train/reward", "train/kl".
        out: PNG to write.

    Returns:
        `out`.

    Raises:
        ValueError: a run that has recorded nothing, or a metric that no run has.
    """
    if not runs or not metrics:
        raise ValueError(
            f"got runs {list(runs)} and metrics {list(metrics)}; give one or more each."
        )
    recorded = [read_metrics(run) for run in runs]
    for run, rows in zip(runs, recorded):
        if not rows:
            raise ValueError(
                f"{run} holds no metrics.jsonl, or an empty one; give a run's workdir."
            )
    known = sorted({key for rows in recorded for row in rows for key in row} - {"step"})
    figure, axes = _open_panels(len(metrics))
    colors = pyplot.get_cmap("tab10").colors  # pyright: ignore[reportAttributeAccessIssue]
    for axis, metric in zip(axes, metrics):
        lines = [_find_points(rows, metric) for rows in recorded]
        if not any(lines):
            pyplot.close(figure)
            raise ValueError(
                f"no run has recorded a finite {metric!r}; they have: "
                f"{', '.join(known[:_SHOWN])}{', …' if len(known) > _SHOWN else ''}"
            )
        for number, (label, points) in enumerate(zip(_name_runs(runs), lines)):
            if points:
                _draw(axis, points, colors[number % len(colors)], label)
        axis.set_title(metric)
        if len(runs) > 1:
            axis.legend(fontsize="small")
    return _save(figure, out)


def _name_runs(runs: Sequence[str]) -> list[str]:
    """Names of runs for a legend: without the folders that all share."""
    paths = [os.path.abspath(run) for run in runs]
    if len(set(paths)) == 1:
        return [os.path.basename(path) for path in paths]
    shared = os.path.commonpath(paths)
    return [os.path.relpath(path, shared) for path in paths]
