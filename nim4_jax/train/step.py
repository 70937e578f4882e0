"""The one train step: any recipe, differentiated over what it trains."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from nim4_jax.models.asr import Asr
from nim4_jax.train import optim
from nim4_jax.train.losses import Loss
from nim4_jax.train.recipes import Recipe
from nim4_jax.train.state import TrainState
from nim4_jax.types import AsrBatch

Metrics = dict[str, Array]
TrainStep = Callable[[TrainState, AsrBatch], tuple[TrainState, Metrics]]


def make_train_step(
    model: Asr, recipe: Recipe, tx: optax.GradientTransformation
) -> TrainStep:
    """(state, batch) → (state, metrics), pure; the caller jits and donates.

    The loss is divided by its weight once, after the sum over the whole (global) batch.
    Randomness is fold_in(seed, step): nothing of it is kept in checkpoints.
    """
    schedule = recipe.optimizer.schedule(recipe.steps)

    def compute_loss(
        trainable: optim.FlatParams, frozen: optim.FlatParams, batch: AsrBatch, step
    ) -> tuple[Array, Loss]:
        params = optim.unflatten(frozen | cast(optim.FlatParams, trainable))
        root = jax.random.fold_in(jax.random.key(recipe.seed), step)
        augment, dropout = jax.random.split(root)

        def run(module: Asr, inputs: AsrBatch) -> Loss:
            return recipe.loss(module, inputs, step)

        loss = nn.apply(run, model)(
            {"params": params}, batch, rngs={"augment": augment, "dropout": dropout}
        )
        return loss.total / jnp.maximum(loss.weight, 1.0), loss

    def train_step(state: TrainState, batch: AsrBatch) -> tuple[TrainState, Metrics]:
        trainable, frozen = optim.split_params(state.params, recipe.rules)
        gradient = jax.grad(compute_loss, has_aux=True)
        grads, loss = gradient(trainable, frozen, batch, state.step)
        # Optax mixes Python scalars and counters into its arithmetic.
        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = tx.update(grads, state.opt_state, trainable)
            trainable = optax.apply_updates(trainable, updates)
        metrics = {
            name: total / jnp.maximum(weight, 1e-8)
            for name, (total, weight) in loss.metrics.items()
        }
        metrics["loss"] = loss.total / jnp.maximum(loss.weight, 1.0)
        metrics["gradient_norm"] = optim.global_norm(grads)
        metrics["learning_rate"] = jnp.asarray(schedule(state.step), jnp.float32)
        params = optim.unflatten(frozen | cast(optim.FlatParams, trainable))
        return TrainState(state.step + 1, params, opt_state), metrics

    return train_step
