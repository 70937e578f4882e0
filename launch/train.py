"""Train one stage.

python launch/train.py --config=configs/stage2.py:nano --workdir=DIR

Running the same command again resumes from the last checkpoint.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
from absl import app, flags, logging
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict, config_flags

from nim4_jax import sharding
from nim4_jax.data import pipeline, text_pipeline
from nim4_jax.data.config import DataConfig
from nim4_jax.data.skips import SkipReport
from nim4_jax.data.text_pipeline import TextConfig
from nim4_jax.launch import assembly, companions, runtime
from nim4_jax.models.asr import Asr
from nim4_jax.rl import alarm
from nim4_jax.rl.worker import RolloutWorker
from nim4_jax.train import checkpoint, cmvn, loop, optim
from nim4_jax.train import state as train_state
from nim4_jax.train.companions import restore
from nim4_jax.train.metrics import MetricWriter
from nim4_jax.train.state import TrainState
from nim4_jax.train.step import make_train_step
from nim4_jax.types import AsrBatch, Params


def define_flags() -> None:
    """The command's flags; not at import, because launchers import each other."""
    flags.DEFINE_string("workdir", None, "Folder of checkpoints and metrics.")
    config_flags.DEFINE_config_file("config", lock_config=True)


def run(config: ConfigDict, workdir: str, until: int | None = None) -> None:
    """Train the stage that `config` describes, from where `workdir` left off.

    Args:
        config: what a file of configs/ makes.
        workdir: folder of checkpoints and metrics.
        until: stop after this step, to be resumed later; None for the last one.
    """
    settings = assembly.build_settings(config)
    done = checkpoint.latest_step(workdir)
    if until is not None and done is not None and done >= until:
        return
    devices, _ = sharding.split_devices(settings.rollout_devices)
    with jax.set_mesh(sharding.make_mesh(settings.mesh or None, devices)):
        _run(settings, config, workdir, until)


def _run(
    settings: assembly.TrainSettings,
    config: ConfigDict,
    workdir: str,
    until: int | None,
) -> None:
    recipe = settings.recipe
    model = Asr(settings.model, deterministic=False)
    prepare = _choose_prepare(settings, model)
    subscriber = companions.make_subscriber(settings)
    data = _open_data(settings.data)
    tx = optim.make_optimizer(recipe.optimizer, recipe.rules, recipe.steps)
    checkpoints = checkpoint.Checkpoints(workdir, settings.checkpoint_every)
    meta = assembly.describe(settings, config)
    fresh = checkpoints.latest_step() is None
    if fresh:
        encoder = subscriber.first_encoder() if subscriber else {}
        params = _first_params(model, settings, data, encoder)
        state = sharding.replicate(train_state.init_state(params, recipe, tx))
    else:
        state = _restore(checkpoints, model, settings, data, tx)
    company = companions.make_others(
        settings, meta, workdir, state.params if fresh else None
    )
    if subscriber is not None:
        companions.check_frozen(settings, state.params)
        company.append(subscriber)
    if not fresh:
        restore(company, checkpoints.read_meta())
    trainable, frozen = optim.split_params(state.params, recipe.rules)
    logging.info(
        "%s: %.2f M parameters trained, %.2f M frozen",
        settings.stage,
        optim.count_parameters(trainable) / 1e6,
        optim.count_parameters(frozen) / 1e6,
    )
    writer = MetricWriter(workdir, int(state.step))
    try:
        loop.train(
            state,
            make_train_step(model, recipe, tx),
            data,
            checkpoints,
            writer,
            steps=recipe.steps,
            meta=meta,
            until=until,
            companions=company,
            check=alarm.choose_check(recipe.loss, settings.model.policy),
            prepare=prepare,
            label=settings.stage,
            log_every=settings.log_every,
            count_skips=lambda: data.report.total,
        )
    finally:
        checkpoints.close()
        writer.close()
        data.close()
        _report_skips(data.report, workdir)


def _choose_prepare(settings: assembly.TrainSettings, model: Asr) -> loop.Prepare:
    """What is done with each batch before a step: with rollout devices, sampling there.

    Raises:
        ValueError: a loss that samples nothing, or rows that a mesh cannot split.
    """
    shards = {"training": sharding.current_mesh().shape["data"]}
    _, devices = sharding.split_devices(settings.rollout_devices)
    prepare = loop.keep
    if devices:
        mesh = sharding.make_mesh(devices=devices)
        prepare = RolloutWorker(model, settings.recipe, mesh).prepare
        shards["rollout"] = len(devices)
    given = settings.data.batch_size
    sizes = (given,) if isinstance(given, int) else given
    for name, count in shards.items():
        wrong = [size for size in sizes if size % count]
        if wrong:
            raise ValueError(
                f"config.data.batch_size={given}: {wrong[0]} rows do not divide over "
                f"the {count} data shards of the {name} mesh; give multiples of "
                f"{count}, or change config.mesh or config.rollout_devices."
            )
    return prepare


def _restore(
    checkpoints: checkpoint.Checkpoints,
    model: Asr,
    settings: assembly.TrainSettings,
    data: Any,
    tx: Any,
) -> TrainState:
    """The latest state, without initialising or loading what it was made from.

    Raises:
        ValueError: the checkpoint is of a model of another size.
    """
    recipe, batch = settings.recipe, _peek(data)
    expected = jax.eval_shape(
        lambda: train_state.init_params(model, recipe, batch, recipe.seed)
    )
    shapes = checkpoints.param_shapes()
    wrong = train_state.describe_misfits(optim.flatten(expected), optim.flatten(shapes))
    if wrong:
        raise ValueError(
            f"the checkpoint in this workdir holds another model: {wrong}. Resume it "
            "with the config that it was begun with, or choose another --workdir."
        )
    everywhere = NamedSharding(sharding.current_mesh(), PartitionSpec())
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere),
        jax.eval_shape(lambda given: train_state.init_state(given, recipe, tx), shapes),
    )
    state = checkpoints.restore(abstract, data)
    logging.info("resumed at step %d", int(state.step))
    return state


def _open_data(config: DataConfig | TextConfig) -> Any:
    """This host's share of the training batches."""
    place = {"rank": jax.process_index(), "hosts": jax.process_count()}
    if isinstance(config, TextConfig):
        return text_pipeline.make_text_iterator(config, **place)
    return pipeline.make_train_iterator(config, **place)


def _peek(data: Any) -> AsrBatch:
    """The next batch, which stays the next one."""
    position = data.get_state()
    batch = loop.to_batch(next(data))
    data.set_state(position)
    return batch


def _first_params(
    model: Asr, settings: assembly.TrainSettings, data: Any, encoder: Params
) -> Params:
    """Parameters at step 0: fresh ones, what each of `init_from` gives, the encoder."""
    batch = _peek(data)
    fresh = train_state.init_params(model, settings.recipe, batch, settings.recipe.seed)
    given: Params = {}
    for origin in settings.init_from:
        loaded, meta = assembly.load_model(origin)
        if meta["model"].get("policy", {}).get("weights", "float") != "float":
            raise ValueError(
                f"{origin} holds weights quantised for inference; start from the model "
                "that they were made from."
            )
        # The frozen policy of an earlier stage means nothing to the next one.
        loaded.pop(train_state.REFERENCE, None)
        given = {**given, **loaded}
    origin = " + ".join(settings.init_from)
    if encoder and settings.follow is not None:
        given, origin = {**given, **encoder}, f"{origin} + {settings.follow.folder}"
    params, left = train_state.adopt(fresh, given, origin)
    if given and left:
        parts = sorted({path.split("/")[0] for path in left})
        logging.info("not in %s, initialised: %s", origin, parts)
    if any(path.startswith("cmvn/") for path in left):
        statistics = (
            cmvn.read(settings.cmvn)
            if settings.cmvn
            else cmvn.measure(_audio_batches(settings.data), settings.model.features)
        )
        params["cmvn"] = cmvn.to_params(statistics)
    return train_state.add_reference(params, settings.recipe)


def _audio_batches(config: DataConfig):
    """One pass over the training audio at its own speed, in batches."""
    plain = dataclasses.replace(config, speed_perturb=(1.0,))
    for arrays in pipeline.iterate_eval(plain):
        yield loop.to_batch(arrays).audio


def _report_skips(report: SkipReport, workdir: str) -> None:
    """Say what was left out, and why, on the log and in WORKDIR/skipped.json."""
    if report.total:
        logging.warning("%d examples skipped: %s", report.total, dict(report.counts))
    summary = {
        reason: {"count": count, "examples": report.examples(reason)}
        for reason, count in report.counts.items()
    }
    text = json.dumps(summary, indent=1, ensure_ascii=False, default=str)
    Path(workdir, "skipped.json").write_text(text + "\n", encoding="utf8")


def main(_) -> None:
    """Entry point of `launch/train.py` and `nim4 train`."""
    if not flags.FLAGS.workdir:
        raise app.UsageError(
            "--workdir=DIR is needed: checkpoints and metrics go there."
        )
    run(flags.FLAGS.config, flags.FLAGS.workdir)


if __name__ == "__main__":
    runtime.launch(main, define_flags)
