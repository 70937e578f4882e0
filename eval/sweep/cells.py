"""One result of a sweep: a model, a benchmark, a mode and its hotwords.

A cell is a folder, `OUT/cells/MODEL--BENCHMARK--MODE--HOTWORDS`, that appears whole or
not at all: cell.json says what was measured, hyps.jsonl holds the utterances as
`report.list_rows` makes them.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nim4_jax import line_file, whole_file

Row = dict[str, Any]

DONE, ABSENT, UNFIT, FAILED = "done", "absent", "unfit", "failed"
"""Measured; its data are not there; the model cannot do it; it broke."""

STATUSES = (DONE, ABSENT, UNFIT, FAILED)


@dataclasses.dataclass(frozen=True)
class Key:
    """Which cell of the product.

    Attributes:
        model: name of the model or peer.
        benchmark: name of the benchmark.
        mode: "offline" or "stream:MS", chunks of so many ms.
        hotwords: "none", or what names the prompts hold.
    """

    model: str
    benchmark: str
    mode: str
    hotwords: str = "none"

    @property
    def folder(self) -> str:
        """A file name that says all four."""
        parts = dataclasses.astuple(self)
        return "--".join(re.sub(r"[^\w.=+-]+", "_", part) for part in parts)


@dataclasses.dataclass(frozen=True)
class Cell:
    """A finished cell.

    Attributes:
        key: which.
        status: one of STATUSES.
        reason: why it is not done, "" if it is.
        fingerprint: of all that the result depends on; another one is measured anew.
        summary: a set's part of `report.build`; with "streaming", `Latency.summary`,
            where recordings were streamed. {} where nothing was measured.
        rows: the utterances, as `report.list_rows` makes them.
    """

    key: Key
    status: str
    reason: str = ""
    fingerprint: str = ""
    summary: dict[str, Any] = dataclasses.field(default_factory=dict)
    rows: Sequence[Row] = ()


def write(folder: str, cell: Cell) -> None:
    """Store a cell; an older one of the same key is replaced.

    Raises:
        OSError: no room: what stood there before still does.
    """
    target = Path(folder, "cells", cell.key.folder)
    partial = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    # What a killed process has left, too: no two measure one cell.
    for left in target.parent.glob(f".{target.name}.*.tmp"):
        shutil.rmtree(left, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        facts = {
            **dataclasses.asdict(cell.key),
            "status": cell.status,
            "reason": cell.reason,
            "fingerprint": cell.fingerprint,
            "summary": cell.summary,
            "rows": len(cell.rows),
        }
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in cell.rows)
        (partial / "hyps.jsonl").write_bytes(whole_file.encode("".join(lines)))
        text = json.dumps(facts, ensure_ascii=False, indent=1) + "\n"
        (partial / "cell.json").write_bytes(whole_file.encode(text))
        shutil.rmtree(target, ignore_errors=True)
        os.replace(partial, target)
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def read(folder: str, key: Key) -> Cell | None:
    """The stored cell; None where there is none, or only a damaged one."""
    try:
        return read_folder(Path(folder, "cells", key.folder))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def read_folder(path: Path) -> Cell:
    """A cell from its folder.

    Raises:
        OSError: a file is missing.
        ValueError: a file is damaged.
    """
    facts = json.loads((path / "cell.json").read_text(encoding="utf8"))
    rows = tuple(row for _, row in line_file.read_json(path / "hyps.jsonl"))
    if len(rows) != facts["rows"] or facts["status"] not in STATUSES:
        raise ValueError(
            f"{path} holds {len(rows)} utterances of {facts['rows']} with the status "
            f"{facts['status']!r}: it is damaged; delete it, and run the sweep again."
        )
    key = Key(*(facts[field.name] for field in dataclasses.fields(Key)))
    return Cell(
        key,
        facts["status"],
        facts["reason"],
        facts["fingerprint"],
        facts["summary"],
        rows,
    )
