"""`nim4 train --compile_only`: a stage's step for a topology that is not here.

python launch/train.py --config=configs/stage4.py:2b3 --compile_only \
    --topology=v5e:4x4 [--mesh=1,16,1] [--search] [--out=report.json]
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterator

from absl import flags
from ml_collections import ConfigDict

from nim4_jax import sharding, whole_file
from nim4_jax.aot import compilation, search, streaming, topologies
from nim4_jax.aot.compilation import Load, Report
from nim4_jax.aot.topologies import Topology
from nim4_jax.rl.objective import Grpo
from nim4_jax.runs import meshes, run_settings


def define_flags() -> None:
    """What to compile, and for which devices."""
    flags.DEFINE_bool(
        "compile_only",
        False,
        "Compile the step for --topology and report; no training.",
    )
    flags.DEFINE_string("topology", "v5e:4x4", "Devices, as v5e:4x4, v5p-8 or h100.")
    flags.DEFINE_list("mesh", [], "data,fsdp,tensor in place of config.mesh.")
    flags.DEFINE_integer("rows", 64, "Utterances of a step.", lower_bound=1)
    flags.DEFINE_float("seconds", 15.0, "Audio of each.", lower_bound=0.1)
    flags.DEFINE_integer("tokens", 256, "Transcript of each.", lower_bound=1)
    flags.DEFINE_bool("largest", False, "Find the largest batch that fits, too.")
    flags.DEFINE_bool("search", False, "Find it for each remat and some meshes.")
    flags.DEFINE_integer(
        "streams",
        0,
        "Compile a streaming tick of so many, and twice so many.",
        lower_bound=0,
    )
    flags.DEFINE_string("out", "", "File for the report, JSON.")


def main(config: ConfigDict) -> None:
    """Compile what the flags say, print a report, and save it.

    Raises:
        ValueError: a mesh, topology or batch that cannot be; for a batch that does not
            fit, with the compiler's words and what would.
    """
    given = flags.FLAGS
    topologies.stay_off_accelerators()
    if given.mesh:
        with config.unlocked():
            config.mesh = tuple(map(int, given.mesh))
    settings, topology = search.prepare(config, given.topology)
    load = Load(given.rows, given.seconds, given.tokens)
    reports = list(_compile_all(settings, load, topology))
    for report in reports:
        print(search.format_report(report))
    if given.streams:
        print(f"  {streaming.count_streams(*reports)} streams would fit by memory")
    if given.out:
        rows = [compilation.to_json(report) for report in reports]
        whole_file.write_text(given.out, json.dumps(rows, indent=1) + "\n")
    if not any(report.fits for report in reports):
        raise ValueError(search.advise(reports[0]))


def _compile_all(
    settings: run_settings.TrainSettings, load: Load, topology: Topology
) -> Iterator[Report]:
    """What the flags ask for."""
    given = flags.FLAGS
    if given.streams:
        for streams in (given.streams, 2 * given.streams):
            yield streaming.compile_tick(
                settings.model, settings.recipe.loss.prompt, streams, topology
            )
        return
    if given.search:
        yield from search.search(
            settings, load, topology, search.list_candidates(settings, topology)
        )
        return
    mesh = meshes.choose(settings.mesh, settings.meshes, topology.devices)

    @functools.cache
    def attempt(rows: int) -> Report:
        sized = dataclasses.replace(load, rows=rows)
        return search.compile_one(settings, sized, topology, mesh)

    first = attempt(load.rows)
    yield first
    if isinstance(settings.recipe.loss, Grpo):
        yield compilation.compile_rollout(settings, load, topology, mesh)
    if given.largest:
        shards = sharding.count_batch_shards(mesh)
        largest = search.find_largest(attempt, load.rows, shards)
        if largest is not first:
            yield largest
