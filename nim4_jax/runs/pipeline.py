"""The pipeline of stages: each starts from the last, some train together."""

from __future__ import annotations

import importlib
import itertools
import json
import os
from pathlib import Path
from typing import Any

import jax
from absl import logging
from ml_collections import ConfigDict

from nim4_jax import whole_file
from nim4_jax.runs import asynchronous, cka_curve
from nim4_jax.runs.restart import Restart
from nim4_jax.train.multihost import consensus
from nim4_jax.train.multihost.preemption import Preemption

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


def run(
    config: Any,
    workdir: str,
    *,
    stop: Preemption | None = None,
    allowed: Restart | None = None,
) -> dict[str, float]:
    """Train what is not finished yet.

    Args:
        config: what `configs/pipeline.py` makes, a ConfigDict.
        workdir: folder of the stages' folders.
        stop: hears signals that ask the training to end; None where nobody listens.
        allowed: what is allowed where a stage is resumed; None for nothing special.

    Returns:
        Seconds spent in each stage, over all runs of this pipeline.

    Raises:
        ValueError: an unknown stage, key or mode.
        ChildProcessError: a stage of a group that trained in parallel failed.
        Interrupted: a signal asked for it; the stage in training is saved.
    """
    seconds = read_times(workdir)

    def clock(name: str, spent: float) -> None:
        seconds[name] = seconds.get(name, 0.0) + spent
        _write_times(workdir, seconds)

    terms = asynchronous.Terms(clock, stop or Preemption(), allowed or Restart())
    previous = None
    for name, entries in itertools.groupby(
        enumerate(config.stages), lambda pair: pair[1].get("group", "") or pair[0]
    ):
        members = _make_members([e for _, e in entries], config.size, previous, workdir)
        previous = members[-1].workdir
        unfinished = [member for member in members if not member.is_finished()]
        for member in members:
            if member not in unfinished:
                logging.info(
                    "%s: finished at step %d, skipped", member.name, member.done()
                )
        if len(members) == 1:
            asynchronous.train_sequentially(unfinished, terms)
        elif unfinished:
            _train_group(config, members, workdir, str(name), terms)
    return seconds


def _make_members(
    entries: list[Any], size: str, previous: str | None, workdir: str
) -> list[asynchronous.Member]:
    """The stages of a group, or one alone.

    The first one starts from the stage before the group, and so does its first
    follower, which gets the encoder from the releases; each other from the last.
    """
    members = []
    for number, entry in enumerate(entries):
        place = os.path.join(workdir, entry.name)
        made = stage_config(entry, size, previous)
        members.append(asynchronous.Member(entry.name, made, place))
        if number > 0:
            previous = place
    return members


def _train_group(
    config: Any,
    members: list[asynchronous.Member],
    workdir: str,
    name: str,
    terms: asynchronous.Terms,
) -> None:
    """Train stage 1 and its followers, then draw what they exchanged."""
    folder = asynchronous.link(members)
    mode = config.get("mode", "sequential")
    if mode != "sequential" and jax.process_count() > 1:
        raise ValueError(
            f"config.mode={mode!r} is for one process, here are {jax.process_count()}; "
            "train each stage by a job of its own: nim4 job --asynchronous."
        )
    if mode == "parallel":
        asynchronous.train_in_parallel(members, terms)
    elif mode == "interleaved":
        place = os.path.join(workdir, members[0].name)
        asynchronous.train_interleaved(members, folder, int(config.slice), place, terms)
    elif mode == "sequential":
        asynchronous.train_sequentially(members, terms)
    else:
        raise ValueError(
            f"config.mode={mode!r} is unknown; use parallel, interleaved or sequential."
        )
    if not consensus.leads():
        return
    leader, *followers = members
    publish = leader.config.publish
    assert publish is not None  # `group.link` has checked it
    picture = cka_curve.plot_releases(
        leader.workdir,
        [follower.workdir for follower in followers],
        folder,
        float(publish.threshold),
        os.path.join(workdir, f"{name}.png"),
    )
    logging.info("CKA and the encoders in use: %s", picture)


def read_times(workdir: str) -> dict[str, float]:
    """Seconds that each stage of a pipeline has taken so far."""
    path = Path(workdir, TIMES)
    return json.loads(path.read_text(encoding="utf8")) if path.exists() else {}


def _write_times(workdir: str, seconds: dict[str, float]) -> None:
    if not consensus.leads():
        return
    path = Path(workdir, TIMES)
    path.parent.mkdir(parents=True, exist_ok=True)
    whole_file.write_text(path, json.dumps(seconds, indent=1) + "\n")
