"""Loss curves of a pipeline's stages as one PNG."""

from __future__ import annotations

import os
from pathlib import Path

import matplotlib

from nim4_jax.train.metrics import read_metrics

matplotlib.use("Agg")
from matplotlib import pyplot

_LABELS = {
    "train/ctc": "CTC, nats per 40 ms frame",
    "train/cross_entropy": "cross-entropy, nats per token",
}


def _smooth(values: list[float], share: float = 0.7) -> list[float]:
    """Exponential moving average."""
    kept, out = values[0], []
    for value in values:
        kept = share * kept + (1.0 - share) * value
        out.append(kept)
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
            points = [(row["step"], row[key]) for row in rows if key in row]
            if points:
                panels.append((stage, label, points))
    if not panels:
        raise ValueError(f"no losses recorded under {workdir} for stages {stages}.")
    figure, axes = pyplot.subplots(
        1, len(panels), figsize=(4.2 * len(panels), 3.2), squeeze=False
    )
    for axis, (stage, label, points) in zip(axes[0], panels):
        steps, values = zip(*points)
        axis.plot(steps, values, color="#b0c4de", linewidth=1)
        axis.plot(steps, _smooth(list(values)), color="#1f4e79", linewidth=2)
        axis.set_title(stage)
        axis.set_xlabel("step")
        axis.set_ylabel(label)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    figure.tight_layout()
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=120)
    pyplot.close(figure)
    return out
