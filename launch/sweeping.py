"""`nim4 evaluate` for many models, benchmarks, modes and hotwords: its flags."""

from __future__ import annotations

import sys
from typing import Any

import jax
from absl import app, flags
from ml_collections import ConfigDict, config_flags

from nim4_jax import settings
from nim4_jax.configs import evaluate as defaults
from nim4_jax.eval import scoring
from nim4_jax.eval.sweep import runner
from nim4_jax.eval.sweep.runner import SweepConfig
from nim4_jax.retrieval import gate
from nim4_jax.train.multihost import hosts

_LISTS = ("models", "benchmarks", "modes", "hotwords")
_SHARED = (
    "limit",
    "left",
    "phonemes",
    "hint_count",
    "hint_names",
    "hint_seed",
    "seen",
    "find_keywords",
    "near",
)
_SINGLE = ("model", "sets", "chunk_ms", "stream", "hints", "shuffle_audio")


def define_flags() -> None:
    """Those that a sweep has beside the flags of one model's evaluation."""
    config_flags.DEFINE_config_file("config", lock_config=True)
    flags.DEFINE_list(
        "models",
        None,
        "Sweep: workdirs, .safetensors files, bundles or peers (whisper-base, "
        "whisper-tiny.en, pocketsphinx), by commas; NAME=PATH gives a name.",
    )
    flags.DEFINE_list("benchmarks", None, "Sweep: names of benchmarks, or sources.")
    flags.DEFINE_list("modes", None, "Sweep: offline, stream:MS (multiples of 160).")
    flags.DEFINE_list(
        "hotwords",
        None,
        "Sweep: none, said, misleading, both, or list:PATH: a hotword database or a "
        "list of names, which are found in what is heard.",
    )
    flags.DEFINE_enum(
        "near",
        gate.LATTICE,
        gate.WAYS,
        "Sweep: where names of list:PATH are looked for nearly: the lattice of what "
        "was heard, ScaNN's index of a folder, or nowhere.",
    )
    flags.DEFINE_string(
        "shard",
        None,
        "Sweep: I/N, this process's share, where N processes share --out.",
    )


def is_asked(given: flags.FlagValues) -> bool:
    """Whether the flags are those of a sweep."""
    return bool(given.config or given.models)


def read_config(given: flags.FlagValues) -> SweepConfig:
    """The config, with the flags that are given before what stands in it.

    Raises:
        UsageError: flags of the other form are given too.
        ValueError: a key or value of the config that does not fit.
    """
    if mixed := [name for name in _SINGLE if given[name].present]:
        raise app.UsageError(
            f"--{', --'.join(mixed)}: of the evaluation of one model, not of a sweep; "
            "use --models, --benchmarks, --modes and --hotwords."
        )
    config: ConfigDict = given.config or defaults.get_config()
    values: dict[str, Any] = config.to_dict()
    for name in (*_LISTS, *_SHARED):
        if given[name].present:
            values[name] = given[name].value
    return settings.build(SweepConfig, values)


def main(given: flags.FlagValues) -> None:
    """The sweep that the flags ask for; exit code 1 if a cell failed."""
    config = read_config(given)
    if not given.out:
        raise app.UsageError("--out=DIR is needed: the sweep's results go there.")
    if given.shard:
        outcome = scoring.sweep(config, given.out, runner.read_shard(given.shard))
    else:
        with hosts.joined():
            shard = jax.process_index(), jax.process_count()
            outcome = scoring.sweep(config, given.out, shard)
    if outcome.left:
        print(f"{outcome.left} cells are left to other processes: no report yet")
    else:
        print(f"{given.out}/report.md, report.html, report.json")
    for cell in outcome.failed:
        key = f"{cell.key.model}, {cell.key.benchmark}, {cell.key.mode}"
        print(f"failed: {key}, {cell.key.hotwords}: {cell.reason}", file=sys.stderr)
    if outcome.failed:
        sys.exit(1)
