"""Metrics of a run: TensorBoard events and a JSONL file with the same flat keys."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import math
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import tensorboardX
from absl import logging
from etils import epath

from nim4_jax import line_file, whole_file
from nim4_jax.train.multihost import consensus

_FILE, _EVENTS = "metrics.jsonl", "tensorboard"
_COPY_SECONDS = 60.0
_REST = 20.0
"""Least time between two copies, in units of what the last one took."""


class MetricWriter:
    """Appends numbers by step under WORKDIR; a resumed run drops what it will redo.

    Of several hosts, only host 0 writes. Nothing can be appended to a file in an object
    store: there, files grow in a local folder and are copied whole, every minute or
    less often where they are large, and at the end. Training does not wait for copies
    on the way; one that fails is warned of, and the next one has all of it.

    Attributes:
        path: WORKDIR/metrics.jsonl, one object {"step": …, name: value, …} a line.
    """

    def __init__(self, workdir: str, first_step: int = 0):
        self.path = epath.Path(workdir) / _FILE
        self._active = consensus.leads()
        if not self._active:
            return
        self._mirror: _Mirror | None = None
        folder = Path(workdir)
        if "://" in os.fspath(workdir):
            self._scratch = tempfile.TemporaryDirectory()
            folder = Path(self._scratch.name)
            self._mirror = _Mirror(folder, epath.Path(workdir))
        folder.mkdir(parents=True, exist_ok=True)
        kept = [row for row in read_metrics(workdir) if row["step"] <= first_step]
        lines = "".join(json.dumps(row) + "\n" for row in kept)
        whole_file.write_text(folder / _FILE, lines)
        self._file = (folder / _FILE).open("a", encoding="utf8")
        self._events = tensorboardX.SummaryWriter(
            str(folder / _EVENTS), purge_step=first_step + 1
        )

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
        if self._mirror is not None and self._mirror.is_due():
            self._events.flush()
            self._mirror.begin()

    def close(self) -> None:
        """Flush both files.

        Raises:
            OSError: they could not be copied to the object store.
        """
        if not self._active:
            return
        self._file.close()
        self._events.close()
        if self._mirror is not None:
            self._mirror.finish()


class _Mirror:
    """Copies a growing local folder to an object store, in a thread beside the run."""

    def __init__(self, local: Path, remote: epath.Path):
        self._local, self._remote = local, remote
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "metrics")
        self._running: concurrent.futures.Future[None] | None = None
        self._next = time.monotonic() + _COPY_SECONDS

    def is_due(self) -> bool:
        """Whether to begin another copy; not while one goes on."""
        going_on = self._running is not None and not self._running.done()
        return not going_on and time.monotonic() >= self._next

    def begin(self) -> None:
        """Copy what is there now; what is appended meanwhile comes with the next."""
        self._running = self._thread.submit(self._try_copy)

    def finish(self) -> None:
        """Wait for the copy that goes on, and bring over all of it.

        Raises:
            OSError: it could not be copied.
        """
        self._thread.shutdown(wait=True)
        self._copy()

    def _try_copy(self) -> None:
        began = time.monotonic()
        try:
            self._copy()
        except Exception as error:  # of whatever client the store has
            logging.warning(
                "metrics could not be copied to %s; they are whole in %s and will be "
                "copied again: %s",
                self._remote,
                self._local,
                error,
            )
        took = time.monotonic() - began
        self._next = time.monotonic() + max(_COPY_SECONDS, _REST * took)

    def _copy(self) -> None:
        events = self._remote / _EVENTS
        events.mkdir(parents=True, exist_ok=True)
        epath.Path(self._local / _FILE).copy(self._remote / _FILE, overwrite=True)
        for path in (self._local / _EVENTS).iterdir():
            epath.Path(path).copy(events / path.name, overwrite=True)


def read_metrics(workdir: str) -> list[dict[str, float]]:
    """All rows of a run's metrics.jsonl; a last line that was cut off is left out."""
    path = epath.Path(workdir) / _FILE
    rows = []
    with contextlib.suppress(ValueError, FileNotFoundError):
        for _, row in line_file.read_json(path):
            rows.append(row)
    return rows
