"""Training of one stage, from its config to the last checkpoint."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from typing import Any

import jax
from absl import logging
from etils import epath
from ml_collections import ConfigDict

from nim4_jax import accelerators, sharding, whole_file
from nim4_jax.data.pipeline import iterators, text_pipeline
from nim4_jax.data.pipeline.config import DataConfig
from nim4_jax.data.pipeline.iterators import TrainIterator
from nim4_jax.data.pipeline.text_pipeline import TextConfig
from nim4_jax.data.sources.skips import SkipReport
from nim4_jax.models.asr import Asr
from nim4_jax.rl import alarm
from nim4_jax.rl.objective import Grpo
from nim4_jax.rl.worker import RolloutWorker
from nim4_jax.runs import (
    batch_rows,
    callbacks,
    initial_state,
    lock,
    meshes,
    restart,
    run_settings,
)
from nim4_jax.runs.restart import Restart
from nim4_jax.train import loop, optim
from nim4_jax.train.callbacks import Callback, restore
from nim4_jax.train.checkpoints import checkpoint
from nim4_jax.train.flops import FlopCounter
from nim4_jax.train.metrics import MetricWriter
from nim4_jax.train.multihost import consensus, hosts
from nim4_jax.train.multihost.preemption import Preemption
from nim4_jax.train.multihost.watchdog import Watchdog
from nim4_jax.train.profiler import ProfileWindow
from nim4_jax.train.releases.subscriber import Subscriber
from nim4_jax.train.speed import Capacity, Speedometer
from nim4_jax.train.state import TrainState
from nim4_jax.train.step import make_train_step


def run(
    config: ConfigDict,
    workdir: str,
    until: int | None = None,
    *,
    stop: Preemption | None = None,
    allowed: Restart | None = None,
    profile: str = "",
) -> None:
    """Train the stage that `config` describes, from where `workdir` left off.

    Args:
        config: what a file of configs/ makes.
        workdir: folder of checkpoints and metrics.
        until: stop after this step, to be resumed later; None for the last one.
        stop: hears signals that ask the run to end; None where nobody listens.
        allowed: what is allowed where the run is resumed; None for nothing special.
        profile: "FIRST:LAST", steps to trace into WORKDIR/profile; "" for none.

    Raises:
        Interrupted: a signal asked for it.
        ValueError: settings that cannot work, or a workdir of another run, or one that
            another process trains in.
        OSError: a checkpoint could not be written.
    """
    settings = run_settings.build_settings(config)
    done = checkpoint.latest_step(workdir)
    if until is not None and done is not None and done >= until:
        return
    devices, _ = sharding.split_devices(settings.rollout_devices)
    mesh = meshes.choose(settings.mesh, settings.meshes, devices)
    hosts.check_mesh(mesh)
    callbacks.check_sources(settings)
    with lock.held(workdir), jax.set_mesh(mesh):
        _run(
            settings,
            config,
            workdir,
            until,
            stop or Preemption(),
            allowed or Restart(),
            profile,
        )


def _run(
    settings: run_settings.TrainSettings,
    config: ConfigDict,
    workdir: str,
    until: int | None,
    stop: Preemption,
    allowed: Restart,
    window: str,
) -> None:
    launched = time.perf_counter()
    profile = ProfileWindow(window, str(epath.Path(workdir) / "profile"))
    watchdog = Watchdog(settings.timeout_minutes)

    def sleep(seconds: float) -> None:
        watchdog.touch()
        stop.sleep(seconds)

    subscriber = callbacks.make_subscriber(settings, sleep)
    run = _open(settings, config, workdir, allowed)
    settings, recipe, data = run.settings, run.settings.recipe, run.data
    state = _make_state(run, subscriber)
    acting = _make_callbacks(run, subscriber, state)
    _log_sizes(settings, state)
    writer = MetricWriter(workdir, int(state.step))
    end = recipe.steps if until is None else until
    loop_config = loop.LoopConfig(
        recipe.steps,
        meta=run.meta,
        until=until,
        log_every=settings.log_every,
        label=settings.stage,
        ahead=_make_blanks(data, run.prepare, end),
    )
    hooks = loop.Hooks(
        callbacks=acting,
        check=alarm.choose_check(
            recipe.loss, settings.model.policy, settings.skip_limit
        ),
        prepare=run.prepare,
        count_skips=lambda: data.report.total,
        stop=stop.requested,
        mark=watchdog.mark,
        speed=Speedometer(_measure_capacity(settings), launched),
        profile=profile,
    )
    with contextlib.ExitStack() as at_end:
        at_end.enter_context(stop.deferred())
        at_end.enter_context(watchdog)
        at_end.callback(_report_skips, data.report, workdir)
        at_end.callback(profile.close)
        for opened in (data, writer, run.checkpoints):
            at_end.callback(opened.close)
        step = make_train_step(run.model, recipe, run.tx)
        loop.train(state, step, data, run.checkpoints, writer, loop_config, hooks)


@dataclasses.dataclass(frozen=True)
class _Run:
    """A run whose data and checkpoints are open.

    Attributes:
        settings: with the rows of each bucket.
        config: that they are made of.
        workdir: its folder.
        allowed: what is allowed where the run is resumed.
        model: of the settings.
        prepare: what is done with each batch before a step.
        checkpoints: of the workdir.
        data: this host's share of the batches.
        tx: optimizer.
        meta: facts for each checkpoint.
        fresh: whether the workdir held no checkpoint.
    """

    settings: run_settings.TrainSettings
    config: ConfigDict
    workdir: str
    allowed: Restart
    model: Asr
    prepare: loop.Prepare
    checkpoints: checkpoint.Checkpoints
    data: Any
    tx: Any
    meta: dict[str, Any]
    fresh: bool


def _open(
    settings: run_settings.TrainSettings,
    config: ConfigDict,
    workdir: str,
    allowed: Restart,
) -> _Run:
    """Open checkpoints and data; all hosts agree on the data.

    Raises:
        ValueError: rows that no mesh can split, or hosts with other data.
    """
    checkpoints = _open_checkpoints(workdir, settings, allowed)
    fresh = checkpoints.latest_step() is None
    keeps = not (fresh or allowed.force_config)
    saved = checkpoints.read_meta() if keeps else None
    settings = batch_rows.settle(settings, sharding.current_mesh(), saved)
    recipe, model = settings.recipe, Asr(settings.model)
    prepare = _choose_prepare(settings, model)
    data = _open_data(settings.data)
    # Another manifest would be another order, or other shapes, on each host.
    hosts.agree({"data": data.get_state()}, f"data of {workdir}")
    batch_rows.log_epoch(settings, data)
    return _Run(
        settings,
        config,
        workdir,
        allowed,
        model,
        prepare,
        checkpoints,
        data,
        optim.make_optimizer(recipe.optimizer, recipe.rules, recipe.steps),
        run_settings.describe(settings, config),
        fresh,
    )


def _make_state(run: _Run, subscriber: Subscriber | None) -> TrainState:
    """A state to begin with, or the one of the last checkpoint.

    Raises:
        ValueError: a checkpoint of another run.
    """
    settings, allowed = run.settings, run.allowed
    if run.fresh:
        encoder = subscriber.first_encoder() if subscriber else {}
        return initial_state.begin(
            run.model, settings, run.data, run.tx, encoder, run.workdir
        )
    saved = run.checkpoints.read_meta()
    allowed.check(saved, run.config)
    state = initial_state.restore(
        run.checkpoints,
        run.model,
        settings,
        run.data,
        run.tx,
        other_data=allowed.force_config,
    )
    recipe = settings.recipe
    restart.tell_rate(saved, recipe.optimizer, recipe.steps, int(state.step))
    return state


def _make_callbacks(
    run: _Run, subscriber: Subscriber | None, state: TrainState
) -> list[Callback]:
    """Who acts between two steps, with what they had decided before."""
    made = callbacks.make_others(
        run.settings, run.meta, run.workdir, state.params if run.fresh else None
    )
    if subscriber is not None:
        callbacks.check_frozen(run.settings, state.params)
        made.append(subscriber)
    if not run.fresh:
        restore(made, run.checkpoints.read_meta())
    return made


def _make_blanks(data: Any, prepare: loop.Prepare, end: int) -> list[loop.Arrays]:
    """Batches to compile the step for beforehand.

    Texts decide the widths of text batches when they are drawn, and a rollout the
    shapes of what it samples: these are compiled when they come.
    """
    known = isinstance(data, TrainIterator) and prepare is loop.keep
    return data.make_blanks(end) if known else []


def _log_sizes(settings: run_settings.TrainSettings, state: TrainState) -> None:
    """Say how much is trained."""
    trainable, frozen = optim.split_params(state.params, settings.recipe.rules)
    logging.info(
        "%s: %.2f M parameters trained, %.2f M frozen",
        settings.stage,
        optim.count_parameters(trainable) / 1e6,
        optim.count_parameters(frozen) / 1e6,
    )


def _measure_capacity(settings: run_settings.TrainSettings) -> Capacity:
    """What the current mesh could do, and what a step costs by formula."""
    mesh, recipe = sharding.current_mesh(), settings.recipe
    known = accelerators.find(mesh.devices.flat[0].device_kind)
    return Capacity(
        FlopCounter(settings.model, recipe.loss, recipe.rules) if known else None,
        settings.model.rates,
        hosts=sharding.share_of_rows(mesh)[1],
        peak=known.peak * mesh.size if known else 0.0,
    )


def _open_checkpoints(
    workdir: str, settings: run_settings.TrainSettings, allowed: Restart
) -> checkpoint.Checkpoints:
    return checkpoint.Checkpoints(
        workdir,
        settings.checkpoint_every,
        keep=settings.checkpoint_keep,
        keep_every=settings.checkpoint_keep_every,
        fallback=allowed.fallback,
        rules=settings.recipe.rules,
    )


def _choose_prepare(settings: run_settings.TrainSettings, model: Asr) -> loop.Prepare:
    """What is done with each batch before a step: GRPO samples, on devices of its own
    where there are some.

    Raises:
        ValueError: a loss that samples nothing, or rows that a mesh cannot split.
    """
    shards = {"training": sharding.count_batch_shards(sharding.current_mesh())}
    _, devices = sharding.split_devices(settings.rollout_devices)
    prepare, mesh = loop.keep, None
    if devices:
        mesh = sharding.make_mesh(devices=devices)
        shards["rollout"] = len(devices)
    if devices or isinstance(settings.recipe.loss, Grpo):
        prepare = RolloutWorker(model, settings.recipe, mesh).prepare
    given = settings.data.batch_size
    sizes = (given,) if isinstance(given, int) else given
    for name, count in shards.items():
        wrong = [size for size in sizes if size % count]
        if wrong:
            raise ValueError(
                f"config.data.batch_size={given}: {wrong[0]} rows do not divide over "
                f"the {count} data shards of the {name} mesh; give multiples of "
                f"{count}, or config.data.device_seconds in their place, or change "
                "config.mesh or config.rollout_devices; a run that was begun on other "
                "devices takes new rows, and a new epoch, with --force_config."
            )
    return prepare


def _open_data(config: DataConfig | TextConfig) -> Any:
    """This host's share of the training batches."""
    rank, parts = sharding.share_of_rows(sharding.current_mesh())
    place = {"rank": rank, "hosts": parts}
    if isinstance(config, TextConfig):
        return text_pipeline.make_text_iterator(config, **place)
    return iterators.make_train_iterator(config, **place)


def _report_skips(report: SkipReport, workdir: str) -> None:
    """Say what was left out, and why, on the log and in WORKDIR/skipped.json.

    Of several hosts, each tells the log of its rows; host 0 writes the file.
    """
    if report.total:
        logging.warning("%d examples skipped: %s", report.total, dict(report.counts))
    summary = {
        reason: {"count": count, "examples": report.examples(reason)}
        for reason, count in report.counts.items()
    }
    text = json.dumps(summary, indent=1, ensure_ascii=False, default=str)
    if consensus.leads():
        whole_file.write_text(epath.Path(workdir) / "skipped.json", text + "\n")
