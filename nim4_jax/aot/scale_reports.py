"""Compile reports of full-size stages, each made in its own process and cached."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import logging

from nim4_jax.aot import compilation
from nim4_jax.aot.compilation import Report


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What is to be compiled.

    Attributes:
        stages: numbers, and "stream" for the streaming tick.
        topologies: names of devices, as v5e-16.
        size: of the model.
        rows: utterances of a step.
        largest: stages whose largest batch is found, too.
        compiles: whether reports that are missing are made.
    """

    stages: Sequence[str]
    topologies: Sequence[str]
    size: str = "2b3"
    rows: int = 64
    largest: Sequence[str] = ()
    compiles: bool = True


def compile_all(folder: Path, wanted: Wanted) -> dict[tuple[str, str], list[Report]]:
    """(stage, topology) → reports of its programs; an empty list where it failed."""
    folder.mkdir(parents=True, exist_ok=True)
    return {
        (stage, topology): [
            report
            for largest in (False, True)[: 1 + (stage in wanted.largest)]
            for report in _find_reports(folder, wanted, stage, topology, largest)
        ]
        for topology, stage in itertools.product(wanted.topologies, wanted.stages)
    }


def _find_reports(
    folder: Path, wanted: Wanted, stage: str, topology: str, largest: bool
) -> list[Report]:
    """What was saved, or is compiled now; of `largest` only the largest batch."""
    name = f"{wanted.size}-{stage}-{topology}-{wanted.rows}"
    path = folder / f"{name}{'-largest' if largest else ''}.json"
    if wanted.compiles and not path.exists():
        _compile(wanted, stage, topology, largest, path)
    if not path.exists():
        return []
    reports = [compilation.from_json(row) for row in json.loads(path.read_text("utf8"))]
    return [one for one in reports if one.rows > wanted.rows] if largest else reports


def _compile(
    wanted: Wanted, stage: str, topology: str, largest: bool, path: Path
) -> None:
    streams = stage == "stream"
    config = "4" if streams else stage
    command = [
        *(sys.executable, "-m", "nim4_jax.launch.cli", "train", "--compile_only"),
        f"--config=configs/stage{config}.py:{wanted.size}",
        f"--topology={topology}",
        f"--rows={wanted.rows}",
        f"--out={path}",
        *(["--streams=32"] if streams else []),
        *(["--largest"] if largest else []),
    ]
    # Only the GPU compiler looks at it; the process itself stays on the CPU.
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, env=environment, check=False)
    if not path.exists():
        logging.error("stage %s for %s: exit code %d", stage, topology, done.returncode)
