"""Train one stage.

python launch/train.py --config=configs/stage2.py:nano --workdir=DIR

Running the same command again resumes from the last checkpoint. Exit codes: 0 done, 2
wrong input, 75 interrupted and saved, 76 a host hung; after the last two the same
command goes on.
"""

from __future__ import annotations

import contextlib
import json
import time
from typing import Any

import jax
from absl import app, flags, logging
from etils import epath
from ml_collections import ConfigDict, config_flags

from nim4_jax import accelerators, sharding, whole_file
from nim4_jax.data import pipeline, text_pipeline
from nim4_jax.data.config import DataConfig
from nim4_jax.data.pipeline import TrainIterator
from nim4_jax.data.skips import SkipReport
from nim4_jax.data.text_pipeline import TextConfig
from nim4_jax.launch import (
    assembly,
    batches,
    companions,
    compile_only,
    first_state,
    hosts,
    lock,
    meshes,
    restart,
    runtime,
    training,
)
from nim4_jax.launch.preemption import Preemption
from nim4_jax.launch.restart import Restart
from nim4_jax.launch.watchdog import Watchdog
from nim4_jax.models.asr import Asr
from nim4_jax.rl import alarm
from nim4_jax.rl.objective import Grpo
from nim4_jax.rl.worker import RolloutWorker
from nim4_jax.train import checkpoint, consensus, loop, optim
from nim4_jax.train.companions import restore
from nim4_jax.train.flops import FlopCounter
from nim4_jax.train.metrics import MetricWriter
from nim4_jax.train.profiler import ProfileWindow
from nim4_jax.train.speed import Capacity, Speedometer
from nim4_jax.train.state import TrainState
from nim4_jax.train.step import make_train_step


def define_flags() -> None:
    """The command's flags; not at import, because launchers import each other."""
    flags.DEFINE_string("workdir", None, "Folder of checkpoints and metrics.")
    config_flags.DEFINE_config_file("config", lock_config=True)
    flags.DEFINE_string("profile", "", "Steps to trace, FIRST:LAST, as in 100:105.")
    restart.define_flags()
    compile_only.define_flags()


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
    settings = assembly.build_settings(config)
    done = checkpoint.latest_step(workdir)
    if until is not None and done is not None and done >= until:
        return
    devices, _ = sharding.split_devices(settings.rollout_devices)
    mesh = meshes.choose(settings.mesh, settings.meshes, devices)
    hosts.check_mesh(mesh)
    companions.check_sources(settings)
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
    settings: assembly.TrainSettings,
    config: ConfigDict,
    workdir: str,
    until: int | None,
    stop: Preemption,
    allowed: Restart,
    window: str,
) -> None:
    launched = time.perf_counter()
    profile = ProfileWindow(window, str(epath.Path(workdir) / "profile"))
    checkpoints = _open_checkpoints(workdir, settings, allowed)
    fresh = checkpoints.latest_step() is None
    keeps = not (fresh or allowed.force_config)
    mesh, saved = sharding.current_mesh(), checkpoints.read_meta() if keeps else None
    settings = batches.settle(settings, mesh, saved)
    recipe = settings.recipe
    model = Asr(settings.model)
    prepare = _choose_prepare(settings, model)
    watchdog = Watchdog(settings.timeout_minutes)

    def sleep(seconds: float) -> None:
        watchdog.touch()
        stop.sleep(seconds)

    subscriber = companions.make_subscriber(settings, sleep)
    data = _open_data(settings.data)
    # Another manifest would be another order, or other shapes, on each host.
    hosts.agree({"data": data.get_state()}, f"data of {workdir}")
    tx = optim.make_optimizer(recipe.optimizer, recipe.rules, recipe.steps)
    batches.log_epoch(settings, data)
    meta = assembly.describe(settings, config)
    if fresh:
        encoder = subscriber.first_encoder() if subscriber else {}
        state = first_state.begin(model, settings, data, tx, encoder, workdir)
    else:
        allowed.check(checkpoints.read_meta(), config)
        state = first_state.restore(
            checkpoints, model, settings, data, tx, other_data=allowed.force_config
        )
        saved, optimizer = checkpoints.read_meta(), recipe.optimizer
        restart.tell_rate(saved, optimizer, recipe.steps, int(state.step))
    company = companions.make_others(
        settings, meta, workdir, state.params if fresh else None
    )
    if subscriber is not None:
        companions.check_frozen(settings, state.params)
        company.append(subscriber)
    if not fresh:
        restore(company, checkpoints.read_meta())
    _log_sizes(settings, state)
    writer = MetricWriter(workdir, int(state.step))
    with contextlib.ExitStack() as at_end:
        at_end.enter_context(stop.deferred())
        at_end.enter_context(watchdog)
        at_end.callback(_report_skips, data.report, workdir)
        at_end.callback(profile.close)
        for opened in (data, writer, checkpoints):
            at_end.callback(opened.close)
        loop.train(
            state,
            make_train_step(model, recipe, tx),
            data,
            checkpoints,
            writer,
            steps=recipe.steps,
            meta=meta,
            until=until,
            ahead=_make_blanks(data, prepare, recipe.steps if until is None else until),
            companions=company,
            check=alarm.choose_check(
                recipe.loss, settings.model.policy, settings.skip_limit
            ),
            prepare=prepare,
            label=settings.stage,
            log_every=settings.log_every,
            count_skips=lambda: data.report.total,
            stop=stop.requested,
            mark=watchdog.mark,
            speed=Speedometer(_measure_capacity(settings), launched),
            profile=profile,
        )


def _make_blanks(data: Any, prepare: loop.Prepare, end: int) -> list[loop.Arrays]:
    """Batches to compile the step for beforehand.

    Texts decide the widths of text batches when they are drawn, and a rollout the
    shapes of what it samples: these are compiled when they come.
    """
    known = isinstance(data, TrainIterator) and prepare is loop.keep
    return data.make_blanks(end) if known else []


def _log_sizes(settings: assembly.TrainSettings, state: TrainState) -> None:
    """Say how much is trained."""
    trainable, frozen = optim.split_params(state.params, settings.recipe.rules)
    logging.info(
        "%s: %.2f M parameters trained, %.2f M frozen",
        settings.stage,
        optim.count_parameters(trainable) / 1e6,
        optim.count_parameters(frozen) / 1e6,
    )


def _measure_capacity(settings: assembly.TrainSettings) -> Capacity:
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
    workdir: str, settings: assembly.TrainSettings, allowed: Restart
) -> checkpoint.Checkpoints:
    return checkpoint.Checkpoints(
        workdir,
        settings.checkpoint_every,
        keep=settings.checkpoint_keep,
        keep_every=settings.checkpoint_keep_every,
        fallback=allowed.fallback,
        rules=settings.recipe.rules,
    )


def _choose_prepare(settings: assembly.TrainSettings, model: Asr) -> loop.Prepare:
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
    return pipeline.make_train_iterator(config, **place)


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


def main(_) -> None:
    """Entry point of `launch/train.py` and `nim4 train`."""
    given = flags.FLAGS
    if given.compile_only:
        return compile_only.main(given.config)
    if not given.workdir:
        raise app.UsageError(
            "--workdir=DIR is needed: checkpoints and metrics go there."
        )
    with training.begun(given.config, given.workdir) as (stop, allowed):
        run(
            given.config,
            given.workdir,
            stop=stop,
            allowed=allowed,
            profile=given.profile,
        )


if __name__ == "__main__":
    runtime.launch(main, define_flags)
