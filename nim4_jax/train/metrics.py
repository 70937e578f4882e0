"""Metrics of a run: TensorBoard events and a JSONL file with the same flat keys."""

from __future__ import annotations

import contextlib
import json
import math
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import tensorboardX
from etils import epath

from nim4_jax import line_file, whole_file
from nim4_jax.train import consensus

_FILE, _EVENTS = "metrics.jsonl", "tensorboard"
_COPY_SECONDS = 60.0


class MetricWriter:
    """Appends numbers by step under WORKDIR; a resumed run drops what it will redo.

    Of several hosts, only host 0 writes. Nothing can be appended to a file in an object
    store: there, files grow in a local folder and are copied whole, every minute and at
    the end.

    Attributes:
        path: WORKDIR/metrics.jsonl, one object {"step": …, name: value, …} a line.
    """

    def __init__(self, workdir: str, first_step: int = 0):
        self.path = epath.Path(workdir) / _FILE
        self._active = consensus.leads()
        if not self._active:
            return
        self._remote: epath.Path | None = None
        folder = Path(workdir)
        if "://" in os.fspath(workdir):
            self._scratch = tempfile.TemporaryDirectory()
            self._remote, folder = epath.Path(workdir), Path(self._scratch.name)
        folder.mkdir(parents=True, exist_ok=True)
        kept = [row for row in read_metrics(workdir) if row["step"] <= first_step]
        lines = "".join(json.dumps(row) + "\n" for row in kept)
        self._local = folder / _FILE
        whole_file.write_text(self._local, lines)
        self._file = self._local.open("a", encoding="utf8")
        self._events = tensorboardX.SummaryWriter(
            str(folder / _EVENTS), purge_step=first_step + 1
        )
        self._copied = time.monotonic()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Record the values of one step."""
        if not self._active:
            return
        row = {"step": step, **{name: float(value) for name, value in values.items()}}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        for name, value in values.items():
            if math.isfinite(value):
                self._events.add_scalar(name, value, step)
        if time.monotonic() - self._copied > _COPY_SECONDS:
            self._events.flush()
            self._copy()

    def close(self) -> None:
        """Flush both files."""
        if not self._active:
            return
        self._file.close()
        self._events.close()
        self._copy()

    def _copy(self) -> None:
        """Bring both files to where they belong, if that is not here."""
        self._copied = time.monotonic()
        if self._remote is None:
            return
        events = self._remote / _EVENTS
        events.mkdir(parents=True, exist_ok=True)
        epath.Path(self._local).copy(self._remote / _FILE, overwrite=True)
        for path in (self._local.parent / _EVENTS).iterdir():
            epath.Path(path).copy(events / path.name, overwrite=True)


def read_metrics(workdir: str) -> list[dict[str, float]]:
    """All rows of a run's metrics.jsonl; a last line that was cut off is left out."""
    path = epath.Path(workdir) / _FILE
    rows = []
    with contextlib.suppress(ValueError, FileNotFoundError):
        for _, row in line_file.read_json(path):
            rows.append(row)
    return rows
