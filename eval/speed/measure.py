"""Timing two ways of doing the same work, side by side, and showing the result."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax

Work = Callable[[], Any]
"""Does the whole work and waits for it."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One figure: medians of ours and of the peer.

    Attributes:
        figure: snake_case name that ends in the unit.
        unit: of `ours` and `peer`; less is better.
        ours: our median.
        peer: the peer's median, None where there is none.
        peer_name: who it is, "none" where there is none.
        ratio: peer / ours; more than 1 means that we are better.
        runs: timed runs of each.
    """

    figure: str
    unit: str
    ours: float
    peer: float | None
    peer_name: str
    ratio: float | None
    runs: int


def need(module: str) -> ModuleType:
    """Import a peer's package.

    Raises:
        ValueError: it is not installed; names the extra that holds it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(
            f"the peer {module} is not installed ({error}); "
            "pip install -e '.[peers]' brings the peers."
        ) from error


def compare(
    figure: str,
    unit: str,
    ours: Work,
    peer: Work,
    *,
    peer_name: str,
    runs: int,
    scale: float = 1e3,
) -> Row:
    """Medians of interleaved runs, after two runs of each to warm up.

    Args:
        figure: name.
        unit: of seconds · `scale`.
        ours: our work.
        peer: the same work by the peer.
        peer_name: package and what is called.
        runs: timed runs of each.
        scale: from seconds of one run to the unit.
    """
    times: dict[Work, list[float]] = {ours: [], peer: []}
    for work in (ours, peer) * 2:
        work()
    for turn in range(runs):
        # Whoever comes first finds the caches cold: take turns.
        for work in (ours, peer) if turn % 2 == 0 else (peer, ours):
            began = time.perf_counter()
            work()
            times[work].append(time.perf_counter() - began)
    medians = [statistics.median(times[work]) * scale for work in (ours, peer)]
    return Row(
        figure=figure,
        unit=unit,
        ours=medians[0],
        peer=medians[1],
        peer_name=peer_name,
        ratio=medians[1] / medians[0],
        runs=runs,
    )


def describe_machine(threads: int) -> dict[str, Any]:
    """What the figures depend on, and how busy the machine was."""
    return {
        "processor": _find_processor(),
        "cores": os.cpu_count(),
        "threads": threads,
        "device": jax.devices()[0].device_kind,
        "load_average": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "jax": jax.__version__,
    }


def _find_processor() -> str:
    """The processor's name, as Linux gives it, else the architecture."""
    try:
        with open("/proc/cpuinfo", encoding="utf8") as file:
            names = [line for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0].split(":", 1)[1].strip() if names else platform.machine()


def format_json(name: str, rows: list[Row], threads: int) -> str:
    """One JSON object on one line."""
    report = {
        "bench": name,
        "machine": describe_machine(threads),
        "rows": [dataclasses.asdict(row) for row in rows],
    }
    return json.dumps(report)


def format_table(rows: list[Row]) -> str:
    """A Markdown table."""
    lines = [
        "| figure | ours | peer | ratio | runs |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        peer = f"{row.peer:.3g} {row.unit} ({row.peer_name})" if row.peer else "none"
        ratio = f"{row.ratio:.2f}" if row.ratio else ""
        cells = (row.figure, f"{row.ours:.3g} {row.unit}", peer, ratio, str(row.runs))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def limit_cores(threads: int) -> int:
    """Keep this process on that many cores; what it may use of them.

    JAX and its peers size their thread pools by the cores they may use.
    """
    if not hasattr(os, "sched_setaffinity"):
        return min(threads, os.cpu_count() or 1)
    cores = sorted(os.sched_getaffinity(0))[:threads]
    os.sched_setaffinity(0, cores)
    return len(cores)
