"""Train a list of stages, each from the last; skips what is finished.

python launch/pipeline.py --config=configs/pipeline.py:nano --workdir=runs/nano
"""

from __future__ import annotations

import importlib
import json
import os
import time
from pathlib import Path
from typing import Any

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from nim4_jax.launch import runtime, train
from nim4_jax.train import checkpoint


def define_flags() -> None:
    """The command's flags."""
    flags.DEFINE_string(
        "workdir", None, "Folder; each stage gets a folder of its name inside."
    )
    config_flags.DEFINE_config_file("config", lock_config=True)


TIMES = "times.json"


def stage_config(entry: Any, size: str, previous: str | None) -> ConfigDict:
    """The config of one stage: its file, its overrides, and where it starts from.

    Args:
        entry: ConfigDict of stage (file name in configs/), init_from, and overrides
            (pairs of a dotted key and its value).
        size: size of the model.
        previous: workdir of the stage before; it wins over `init_from`.

    Raises:
        ValueError: an unknown stage or an override of an unknown key.
    """
    try:
        module = importlib.import_module(f"nim4_jax.configs.{entry.stage}")
    except ModuleNotFoundError as error:
        raise ValueError(
            f"no stage {entry.stage!r}: no such file in configs/."
        ) from error
    config = module.get_config(size)
    config.lock()
    for key, value in entry.overrides:
        *folders, leaf = key.split(".")
        place = config
        try:
            for folder in folders:
                place = place[folder]
            place[leaf] = value
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"override {key} of {entry.stage}: {error}") from error
    origins = [entry.init_from, previous]
    config.init_from = ",".join(origin for origin in origins if origin)
    return config


def run(config: Any, workdir: str) -> dict[str, float]:
    """Train what is not finished yet.

    Args:
        config: what `configs/pipeline.py` makes, a ConfigDict.
        workdir: folder of the stages' folders.

    Returns:
        Seconds spent in each stage, over all runs of this pipeline.
    """
    seconds = read_times(workdir)
    previous = None
    for entry in config.stages:
        place = os.path.join(workdir, entry.name)
        made = stage_config(entry, config.size, previous)
        previous = place
        done = checkpoint.latest_step(place)
        if done is not None and done >= int(made.steps):
            logging.info("%s: finished at step %d, skipped", entry.name, done)
            continue
        began = time.perf_counter()
        try:
            train.run(made, place)
        finally:
            spent = time.perf_counter() - began
            seconds[entry.name] = seconds.get(entry.name, 0.0) + spent
            _write_times(workdir, seconds)
    return seconds


def read_times(workdir: str) -> dict[str, float]:
    """Seconds that each stage of a pipeline has taken so far."""
    path = Path(workdir, TIMES)
    return json.loads(path.read_text(encoding="utf8")) if path.exists() else {}


def _write_times(workdir: str, seconds: dict[str, float]) -> None:
    path = Path(workdir, TIMES)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(seconds, indent=1) + "\n", encoding="utf8")
    temporary.replace(path)


def main(_) -> None:
    """Entry point of `launch/pipeline.py` and `nim4 pipeline`."""
    if not flags.FLAGS.workdir:
        raise app.UsageError("--workdir=DIR is needed: the stages' folders go there.")
    run(flags.FLAGS.config, flags.FLAGS.workdir)


if __name__ == "__main__":
    runtime.launch(main, define_flags)
