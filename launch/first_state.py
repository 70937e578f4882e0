"""The state that a run begins with: a fresh one, or what it has saved.

Both are made where they will lie: no device ever holds more than its part.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import optax
from absl import logging

from nim4_jax import sharding
from nim4_jax.data import pipeline
from nim4_jax.data.config import DataConfig
from nim4_jax.launch import assembly
from nim4_jax.models.asr import Asr
from nim4_jax.train import cmvn, loop, optim, placement
from nim4_jax.train import state as train_state
from nim4_jax.train.checkpoint import Checkpoints
from nim4_jax.train.state import TrainState
from nim4_jax.types import AsrBatch, Frames, Params


def begin(
    model: Asr,
    settings: assembly.TrainSettings,
    data: Any,
    tx: optax.GradientTransformation,
    encoder: Params,
) -> TrainState:
    """The state of step 0 on the current mesh.

    Args:
        model: with dropout.
        settings: of the run.
        data: its iterator, which stays where it is.
        tx: its optimizer.
        encoder: of a release, {} for none; takes the place of what `init_from` gives.

    Raises:
        ValueError: models to start from that do not fit.
    """

    def start(given: Params) -> TrainState:
        given = train_state.add_reference(given, settings.recipe)
        return train_state.init_state(given, settings.recipe, tx)

    params = _find_params(model, settings, data, encoder)
    params = placement.place(params, settings.model)
    placed = placement.choose(jax.eval_shape(start, params), settings.model)
    return jax.jit(start, out_shardings=placed)(params)


def restore(
    checkpoints: Checkpoints,
    model: Asr,
    settings: assembly.TrainSettings,
    data: Any,
    tx: optax.GradientTransformation,
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
    abstract = jax.eval_shape(
        lambda given: train_state.init_state(given, recipe, tx), shapes
    )
    abstract = placement.annotate(abstract, settings.model)
    state = checkpoints.restore(abstract, data)
    logging.info("resumed at step %d", int(state.step))
    return state


def _peek(data: Any) -> AsrBatch:
    """The next batch, which stays the next one."""
    position = data.get_state()
    batch = loop.to_batch(next(data))
    data.set_state(position)
    return batch


def _find_params(
    model: Asr, settings: assembly.TrainSettings, data: Any, encoder: Params
) -> Params:
    """Parameters at step 0: fresh ones, what each of `init_from` gives, the encoder."""
    fresh = _draw_params(model, settings, data)
    given: Params = {}
    for origin in settings.init_from:
        loaded = assembly.load_trainable(origin)
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
    return params


def _draw_params(model: Asr, settings: assembly.TrainSettings, data: Any) -> Params:
    """Random parameters, each drawn where it will lie."""
    # Shapes alone matter; equal zeros on every host give one program.
    batch = jax.tree.map(lambda leaf: np.zeros_like(leaf[:1]), _peek(data))

    def draw() -> Params:
        recipe = settings.recipe
        return train_state.init_params(model, recipe, batch, recipe.seed)

    placed = placement.choose(jax.eval_shape(draw), settings.model)
    return jax.jit(draw, out_shardings=placed)()


def _audio_batches(config: DataConfig) -> Iterator[Frames]:
    """One pass over the training audio at its own speed, in batches of all hosts."""
    plain = dataclasses.replace(config, speed_perturb=(1.0,))
    rank, parts = sharding.share_of_rows(sharding.current_mesh())
    for arrays in pipeline.iterate_eval(plain, rank=rank, hosts=parts):
        yield sharding.put_batch(loop.to_batch(arrays).audio)
