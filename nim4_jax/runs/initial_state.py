"""The first train state of a run: initialised, or restored from a checkpoint.

Both are made where they will lie: no device ever holds more than its part.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import optax
from absl import logging

from nim4_jax import sharding
from nim4_jax.data.pipeline import iterators, survey
from nim4_jax.data.pipeline.config import DataConfig
from nim4_jax.data.pipeline.iterators import OtherDataError
from nim4_jax.model_files import loading
from nim4_jax.models import lora
from nim4_jax.models.asr import Asr
from nim4_jax.runs import run_settings
from nim4_jax.train import cmvn, loop, optim, placement
from nim4_jax.train import state as train_state
from nim4_jax.train.checkpoints.checkpoint import Checkpoints
from nim4_jax.train.multihost import consensus
from nim4_jax.train.state import TrainState
from nim4_jax.types import AsrBatch, Frames, Params

STATISTICS = "cmvn.json"
"""In WORKDIR: feature statistics that were measured for the run."""


def begin(
    model: Asr,
    settings: run_settings.TrainSettings,
    data: Any,
    tx: optax.GradientTransformation,
    encoder: Params,
    workdir: str,
) -> TrainState:
    """The state of step 0 on the current mesh.

    Args:
        model: with dropout.
        settings: of the run.
        data: its iterator, which stays where it is.
        tx: its optimizer.
        encoder: of a release, {} for none; takes the place of what `init_from` gives.
        workdir: of the run; feature statistics are written there if they are measured.

    Raises:
        ValueError: models to start from that do not fit, or do not hold what the recipe
            freezes.
    """

    def start(given: Params) -> TrainState:
        given = train_state.add_reference(given, settings.recipe)
        return train_state.init_state(given, settings.recipe, tx)

    params = _find_params(model, settings, data, encoder, workdir)
    params = placement.place(params, settings.model)
    placed = placement.choose(jax.eval_shape(start, params), settings.model)
    return jax.jit(start, out_shardings=placed)(params)


def restore(
    checkpoints: Checkpoints,
    model: Asr,
    settings: run_settings.TrainSettings,
    data: Any,
    tx: optax.GradientTransformation,
    other_data: bool = False,
) -> TrainState:
    """The latest state, without initialising or loading what it was made from.

    Args:
        checkpoints: of the run.
        model: to be trained.
        settings: of the run.
        data: its iterator, which is moved to where it stood.
        tx: its optimizer.
        other_data: where the data has changed since, begin a new epoch of it.

    Raises:
        ValueError: the checkpoint is of a model of another size, or other data and no
            leave to go on with it.
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
    abstract = jax.eval_shape(
        lambda given: train_state.init_state(given, recipe, tx), shapes
    )
    abstract = placement.annotate(abstract, settings.model)
    state = checkpoints.restore(abstract, _Renewed(data) if other_data else data)
    logging.info("resumed at step %d", int(state.step))
    return state


class _Renewed:
    """An iterator that is sent to a place of other data: a new epoch begins instead."""

    def __init__(self, data: Any):
        self._data = data

    def set_state(self, position: dict[str, Any]) -> None:
        """Go there, or to the beginning of the epoch after it."""
        try:
            self._data.set_state(position)
        except OtherDataError:
            self._data.begin_epoch(position)
            logging.warning(
                "the data is not that of the checkpoint: weights, optimizer and step "
                "go on, and epoch %d of this data begins",
                self._data.epoch,
            )

    def start_prefetch(self) -> None:
        """As the iterator does."""
        self._data.start_prefetch()


def _peek(data: Any) -> AsrBatch:
    """The next batch, which stays the next one."""
    position = data.get_state()
    batch = loop.to_batch(next(data))
    data.set_state(position)
    return batch


def _find_params(
    model: Asr,
    settings: run_settings.TrainSettings,
    data: Any,
    encoder: Params,
    workdir: str,
) -> Params:
    """Parameters at step 0: fresh ones, what each of `init_from` gives, the encoder."""
    fresh = _draw_params(model, settings, data)
    given: Params = {}
    for origin in settings.init_from:
        loaded = loading.load_trainable(origin)
        # The frozen policy of an earlier stage means nothing to the next one.
        loaded.pop(train_state.REFERENCE, None)
        given = {**given, **loaded}
    origin = " + ".join(settings.init_from)
    if encoder and settings.follow is not None:
        given, origin = {**given, **encoder}, f"{origin} + {settings.follow.folder}"
    params, left = train_state.adopt(fresh, given, origin)
    refuse_random(left, settings.recipe.rules, origin)
    if given and left:
        parts = sorted({path.split("/")[0] for path in left})
        logging.info("not in %s, initialised: %s", origin, parts)
    if any(path.startswith("cmvn/") for path in left):
        if settings.cmvn:
            statistics = cmvn.read(settings.cmvn)
        else:
            statistics = _measure_statistics(settings, workdir)
        params["cmvn"] = cmvn.to_params(statistics)
    return params


def refuse_random(fresh: Sequence[str], rules: optim.Rules, origin: str) -> None:
    """Refuse to freeze parameters that nobody has trained.

    Feature statistics are measured, and LoRA's matrices begin as no change.

    Args:
        fresh: paths that nothing was loaded for.
        rules: of the recipe.
        origin: what was loaded, for the error.

    Raises:
        ValueError: there are such parameters; names their parts, and one of each.
    """
    rates = optim.match_rules(list(fresh), rules)
    parts: dict[str, str] = {}
    for path, rate in rates.items():
        part, leaf = path.split("/")[0], path.rsplit("/", 1)[-1]
        if rate is None and part != "cmvn" and leaf not in (lora.A, lora.B):
            parts.setdefault(part, path)
    if parts:
        listed = ", ".join(f"{part} ({path}, …)" for part, path in parts.items())
        raise ValueError(
            f"{listed} would stay at random values: config.rules freeze them, and "
            f"config.init_from={origin!r} holds none. Name a workdir or a .safetensors "
            "file that does, or train them."
        )


def _draw_params(model: Asr, settings: run_settings.TrainSettings, data: Any) -> Params:
    """Random parameters, each drawn where it will lie."""
    # Shapes alone matter; equal zeros on every host give one program.
    batch = jax.tree.map(lambda leaf: np.zeros_like(leaf[:1]), _peek(data))

    def draw() -> Params:
        recipe = settings.recipe
        return train_state.init_params(model, recipe, batch, recipe.seed)

    placed = placement.choose(jax.eval_shape(draw), settings.model)
    return jax.jit(draw, out_shardings=placed)()


def _measure_statistics(
    settings: run_settings.TrainSettings, workdir: str
) -> cmvn.Statistics:
    """Of a random part of the training audio; kept in the workdir."""
    config, hours = settings.data, settings.cmvn_hours
    chosen = survey.sample(config, hours)
    path = os.path.join(workdir, STATISTICS)
    logging.info(
        "feature statistics are measured on %s of %s, to be written to %s; give them "
        "with --config.cmvn, or other hours with --config.cmvn_hours",
        "all" if chosen is None else f"{len(chosen)} utterances, {hours:g} h",
        config.sources,
        path,
    )
    batches = _audio_batches(config, chosen)
    statistics = cmvn.measure(batches, settings.model.features)
    consensus.lead(lambda: cmvn.write(path, statistics))
    return statistics


def _audio_batches(
    config: DataConfig, only: Collection[int] | None
) -> Iterator[Frames]:
    """Training audio at its own speed, in batches of all hosts."""
    plain = dataclasses.replace(config, speed_perturb=(1.0,))
    rank, parts = sharding.share_of_rows(sharding.current_mesh())
    for arrays in iterators.iterate_eval(plain, rank=rank, hosts=parts, only=only):
        yield sharding.put_batch(loop.to_batch(arrays).audio)
