"""CKA over stage 1 and the encoders that its followers used, as one PNG."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

from nim4_jax.train.callbacks import read_states
from nim4_jax.train.checkpoints import checkpoint
from nim4_jax.train.metrics import read_metrics
from nim4_jax.train.releases import store
from nim4_jax.train.releases.publisher import CKA
from nim4_jax.train.releases.store import Release
from nim4_jax.train.releases.subscriber import Subscriber

matplotlib.use("Agg")
from matplotlib import pyplot

Points = list[tuple[int, float]]
Segments = list[tuple[int, int, int]]
_LIVE, _RULE, _FINAL = "#1f4e79", "#c0504d", "#4f8f4f"


def read_cka(workdir: str) -> Points:
    """(step, CKA with the reference of then) of each comparison of a stage-1 run."""
    rows = read_metrics(workdir)
    return [(int(row["step"]), row[CKA]) for row in rows if CKA in row]


def read_segments(workdir: str) -> Segments:
    """(first step, end, step of the encoder) of each encoder that a run trained on.

    Raises:
        ValueError: the run followed no releases.
    """
    last = checkpoint.latest_step(workdir)
    meta = {} if last is None else checkpoint.load_meta(workdir, last)
    history: list[dict[str, Any]] = (
        read_states(meta).get(Subscriber.name, {}).get("history", [])
    )
    if last is None or not history:
        raise ValueError(
            f"{workdir} has no checkpoint of a run that followed encoder releases; "
            "name the workdir of one with config.follow.folder."
        )
    ends = [*(segment["step"] for segment in history[1:]), last]
    return [
        (segment["step"], end, segment["release"]["step"])
        for segment, end in zip(history, ends)
    ]


def plot_releases(
    leader: str, followers: Sequence[str], folder: str, threshold: float, out: str
) -> str:
    """Above, CKA over the steps of stage 1; below, encoders over the followers' steps.

    Args:
        leader: workdir of stage 1.
        followers: workdirs of the runs that followed it.
        folder: where it published.
        threshold: below it a release was published.
        out: PNG to write.

    Returns:
        `out`.

    Raises:
        ValueError: nothing was compared, or a follower followed nothing.
    """
    points, listed = read_cka(leader), store.read_index(folder)
    if not points and not listed:
        raise ValueError(
            f"{leader} has compared no encoder and {folder} lists none; train stage 1 "
            "with config.publish.folder."
        )
    panels = [(workdir, read_segments(workdir)) for workdir in followers]
    figure, axes = pyplot.subplots(
        1 + len(panels), 1, figsize=(7.5, 3.2 + 1.9 * len(panels)), squeeze=False
    )
    _draw_cka(axes[0][0], points, listed, threshold)
    axes[0][0].set_title(os.path.basename(leader.rstrip("/")))
    for axis, (workdir, segments) in zip(axes[1:, 0], panels):
        _draw_segments(axis, segments)
        axis.set_title(os.path.basename(workdir.rstrip("/")))
    figure.tight_layout()
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=120)
    pyplot.close(figure)
    return out


def _draw_cka(
    axis: Any, points: Points, listed: Sequence[Release], threshold: float
) -> None:
    """CKA, the threshold, and a vertical line at each release."""
    if points:
        axis.plot(*zip(*points), color=_LIVE, linewidth=2, marker="o", markersize=3)
    axis.axhline(threshold, color=_RULE, linestyle="--", label=f"CKA {threshold}")
    named = set()
    for release in listed:
        name = "final release" if release.final else "release"
        axis.axvline(
            release.step,
            color=_FINAL if release.final else _RULE,
            linewidth=1,
            label=None if name in named else name,
        )
        named.add(name)
    axis.set_xlabel("step of stage 1")
    axis.set_ylabel("CKA with the last release")
    axis.grid(alpha=0.3)
    axis.legend(loc="best", fontsize="small")


def _draw_segments(axis: Any, segments: Segments) -> None:
    """The encoder in use over a follower's steps, by the step of stage 1 it is from."""
    for first, end, encoder in segments:
        axis.plot([first, end], [encoder, encoder], color=_LIVE, linewidth=4)
        axis.annotate(
            str(encoder), (first, encoder), (2, 4), textcoords="offset points"
        )
        if first:
            axis.axvline(first, color=_RULE, linewidth=1)
    axis.margins(y=0.35)
    axis.set_xlabel("step")
    axis.set_ylabel("encoder of step")
    axis.grid(alpha=0.3)
