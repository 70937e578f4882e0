"""Metrics of a run: TensorBoard events and a JSONL file with the same flat keys."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import tensorboardX


class MetricWriter:
    """Appends numbers by step under WORKDIR; a resumed run drops what it will redo.

    Attributes:
        path: WORKDIR/metrics.jsonl, one object {"step": …, name: value, …} a line.
    """

    def __init__(self, workdir: str, first_step: int = 0):
        folder = Path(workdir)
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "metrics.jsonl"
        kept = [row for row in read_metrics(workdir) if row["step"] <= first_step]
        lines = "".join(json.dumps(row) + "\n" for row in kept)
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(lines, encoding="utf8")
        temporary.replace(self.path)
        self._file = self.path.open("a", encoding="utf8")
        self._events = tensorboardX.SummaryWriter(
            str(folder / "tensorboard"), purge_step=first_step + 1
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Record the values of one step."""
        row = {"step": step, **{name: float(value) for name, value in values.items()}}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        for name, value in values.items():
            if math.isfinite(value):
                self._events.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush both files."""
        self._file.close()
        self._events.close()


def read_metrics(workdir: str) -> list[dict[str, float]]:
    """All rows of a run's metrics.jsonl; a last line that was cut off is left out."""
    path = Path(workdir) / "metrics.jsonl"
    rows = []
    if path.exists():
        for line in path.read_text(encoding="utf8").splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return rows
