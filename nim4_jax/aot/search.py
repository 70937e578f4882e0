"""The largest batch of a stage that fits a topology: over meshes and remat."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from absl import logging
from ml_collections import ConfigDict

from nim4_jax import sharding
from nim4_jax.aot import compilation, topologies
from nim4_jax.aot.compilation import Load, Memory, Report
from nim4_jax.aot.topologies import Topology
from nim4_jax.layers import REMATS
from nim4_jax.model_files import loading
from nim4_jax.runs import run_settings

SPARE = 0.97
"""Share of the memory that a predicted batch may take."""

WORTH = 1.1
"""How much larger a batch must promise to be to be compiled."""


def prepare(
    config: ConfigDict, name: str
) -> tuple[run_settings.TrainSettings, Topology]:
    """Settings that need no files, and the topology.

    Raises:
        ValueError: see `run_settings.build_settings` and `topologies.describe`.
    """
    topology = topologies.describe(name)
    if not Path(loading.find_tokenizer(config.tokenizer)).exists():
        logging.info(
            "no %s here: the prompt is laid out with the packaged tokenizer",
            config.tokenizer,
        )
        with config.unlocked():
            config.tokenizer = "nano"
    return run_settings.build_settings(config), topology


def compile_one(
    settings: run_settings.TrainSettings, load: Load, topology: Topology, mesh: Any
) -> Report:
    """The train step, with a line on the log before it is long silent."""
    logging.info(
        "compiling %s for %s, mesh %s, remat %s, %d rows",
        settings.stage,
        topology.name,
        "×".join(str(size) for size in mesh.shape.values()),
        settings.model.remat,
        load.rows,
    )
    report = compilation.compile_step(settings, load, topology, mesh)
    found = "does not fit" if report.memory is None else f"{report.memory.peak:.2f} GiB"
    logging.info("%s, compiled in %.0f s", found, report.compile_seconds)
    return report


def list_candidates(
    settings: run_settings.TrainSettings, topology: Topology
) -> list[tuple[str, Any]]:
    """(remat, mesh) that a search tries: what leaves most room first."""
    count = len(topology.devices)
    shapes = [(1, count, 1), (1, count // 2, 2), (count, 1, 1)]
    if settings.mesh:
        shapes = [settings.mesh]
    made = []
    for remat, shape in itertools.product(reversed(REMATS), shapes):
        made.append((remat, sharding.make_mesh(shape, topology.devices)))
    return made


def search(
    settings: run_settings.TrainSettings,
    load: Load,
    topology: Topology,
    candidates: Sequence[tuple[str, Any]],
) -> Iterator[Report]:
    """For each way of training, the largest batch that the compiler accepts."""
    for remat, mesh in candidates:
        model = dataclasses.replace(settings.model, remat=remat)
        tried = dataclasses.replace(settings, model=model)

        def attempt(rows: int, tried=tried, mesh=mesh) -> Report:
            return compile_one(
                tried, dataclasses.replace(load, rows=rows), topology, mesh
            )

        yield find_largest(attempt, load.rows, sharding.count_batch_shards(mesh))


def find_largest(
    attempt: Callable[[int], Report], rows: int, shards: int, most: int = 5
) -> Report:
    """The report of the largest batch that fits, or the refusal of the smallest.

    Memory grows linearly with the rows, so two reports foretell the largest; a compiler
    that refuses it is asked again for less.

    Args:
        attempt: rows → report.
        rows: to begin with.
        shards: what rows must be multiples of.
        most: compilations.
    """
    reports: dict[int, Report] = {}
    upper: int | None = None
    rows = max(shards, rows // shards * shards)
    for _ in range(most):
        report = reports[rows] = attempt(rows)
        if not report.fits:
            upper = rows if upper is None else min(rows, upper)
        rows = _next_rows(reports, shards, upper)
        known = max((n for n, made in reports.items() if made.fits), default=0)
        if rows < shards or rows in reports or known < rows <= WORTH * known:
            break
    fitting = [number for number, report in reports.items() if report.fits]
    return reports[max(fitting)] if fitting else reports[min(reports)]


def _next_rows(reports: dict[int, Report], shards: int, upper: int | None) -> int:
    """What to try next; 0 where nothing smaller is left."""
    found = [report for _, report in sorted(reports.items()) if report.fits]
    if not found:
        return 0 if upper == shards else shards
    last = found[-1]
    memory = cast(Memory, last.memory)
    # What does not grow with the rows: of one report a lower bound of it, which
    # foretells too few rows and not too many.
    base, rows = memory.parameters + memory.optimizer + memory.program, 0
    if len(found) > 1:
        base, rows = cast(Memory, found[0].memory).peak, found[0].rows
    slope = (memory.peak - base) / (last.rows - rows)
    wanted = last.rows + int((SPARE * memory.available - memory.peak) / slope)
    if upper is not None:
        wanted = min(wanted, (last.rows + upper) // 2)
    return max(wanted // shards * shards, last.rows)


def advise(report: Report) -> str:
    """What to say where nothing fits."""
    reason = report.refusal
    if report.memory is not None:
        memory = report.memory
        reason = f"it takes {memory.peak:.2f} of {memory.available:.2f} GiB."
    return (
        f"{report.rows} rows of {report.seconds:g} s and {report.tokens} tokens do not "
        f"fit {report.topology} with mesh {report.mesh} and remat {report.remat!r}: "
        f"{reason} Give fewer --rows, more --config.micro_batches, "
        "--config.model.remat=full or a larger fsdp size in --mesh; --largest and "
        "--search find what fits."
    )


def format_report(report: Report) -> str:
    """A report for a person."""
    shape = " × ".join(f"{name} {size}" for name, size in report.mesh.items())
    lines = [
        f"{report.program} on {report.topology}: {shape}, remat {report.remat}, "
        f"{report.rows} × ({report.seconds:g} s + {report.tokens} tokens)",
        f"  compiled in {report.compile_seconds:.0f} s with at most "
        f"{report.host_gib:.1f} GiB of host memory",
    ]
    memory = report.memory
    if memory is None:
        return "\n".join([*lines, f"  does not fit: {report.refusal}"])
    lines.append(
        f"  memory a device, GiB: peak {memory.peak:.2f} of {memory.available:.2f}: "
        f"parameters {memory.parameters:.2f}, optimizer {memory.optimizer:.2f}, batch "
        f"{memory.batch:.2f}, activations and gradients {memory.activations:.2f}, "
        f"program {memory.program:.2f}"
    )
    total = sum(report.flops.values())
    parts = ", ".join(
        f"{name} {100 * cost / total:.0f} %" for name, cost in report.flops.items()
    )
    lines.append(f"  {total / 1e12:.1f} Tflop a step by formula: {parts}")
    durations = ", ".join(
        f"{1000 * seconds:.0f} ms at {100 * float(share):.0f} %"
        for share, seconds in report.step_seconds.items()
    )
    lines.append(
        f"  {report.audio_seconds:.0f} s of audio and {report.llm_tokens:.0f} LLM "
        f"tokens a step; a step would take {durations} of the peak"
    )
    lines += [
        f"  {kind}: {one['count']} × , {one['bytes'] / 2**30:.2f} GiB a device"
        for kind, one in report.traffic.items()
    ]
    return "\n".join(lines)
