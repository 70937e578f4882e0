"""The one train step: any recipe, differentiated over what it trains."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from nim4_jax.models.asr import Asr
from nim4_jax.train import optim
from nim4_jax.train.losses import Loss, key_rows
from nim4_jax.train.recipes import Recipe
from nim4_jax.train.state import Skips, TrainState

Metrics = dict[str, Array]
TrainStep = Callable[[TrainState, Any], tuple[TrainState, Metrics]]
"""(state, batch) → (state, metrics); the batch is what the loss takes."""


def make_rngs(seed: int, step: Int[Array, ""] | int) -> dict[str, Array]:
    """The keys of a step: nothing of them is kept in checkpoints."""
    root = jax.random.fold_in(jax.random.key(seed), step)
    augment, dropout = jax.random.split(root)
    return {"augment": augment, "dropout": dropout}


def count_rows(batch: Any) -> int:
    """B of a batch, whatever struct it is."""
    return jax.tree.leaves(batch)[0].shape[0]


def evaluate_loss(
    model: Asr, recipe: Recipe, params: Any, batch: Any, step, rows: Int[Array, " B"]
) -> Loss:
    """The recipe's loss under the randomness of a step; pure.

    Args:
        model: with dropout where it is wanted.
        recipe: loss and seed.
        params: nested dict.
        batch: what the loss takes; every leaf has B rows.
        step: number of steps done.
        rows: numbers of the rows in the whole batch.
    """

    def run(module: Asr, inputs: Any) -> Loss:
        with nn.intercept_methods(_drop_by_row(rows)):
            return recipe.loss(module, inputs, step, rows)

    rngs = make_rngs(recipe.seed, step)
    return cast(Loss, nn.apply(run, model)({"params": params}, batch, rngs=rngs))


def _drop_by_row(rows: Int[Array, " B"]):
    """Dropout whose mask of a row depends on the row's number, not on its place.

    Where the views of each row stand beside each other, the mask is of row and view.
    """

    def intercept(call, args, kwargs, context):
        module = context.module
        if not isinstance(module, nn.Dropout) or context.method_name != "__call__":
            return call(*args, **kwargs)
        if module.rate in (0.0, 1.0) or module.deterministic is not False:
            return call(*args, **kwargs)
        values, kept = args[0], 1.0 - module.rate
        views = values.shape[0] // rows.shape[0]
        keys = jax.random.split(module.make_rng(module.rng_collection), views)
        keys = jnp.stack([key_rows(key, rows, len(rows)) for key in keys], axis=1)
        keys = keys.reshape(-1)
        mask = jax.vmap(lambda key: jax.random.bernoulli(key, kept, values.shape[1:]))
        zero = jnp.zeros((), values.dtype)
        return jnp.where(mask(keys), values / jnp.asarray(kept, values.dtype), zero)

    return intercept


def cut(batch: Any, parts: int) -> tuple[Any, Int[Array, "M B"]]:
    """Parts of equally many rows, and the numbers of their rows.

    Part m has rows m, m + M, m + 2 M …, so that each data shard has its share of it.

    Args:
        batch: every leaf has B rows.
        parts: M.

    Returns:
        The batch with leaves [M, B / M, …], and row numbers [M, B / M].

    Raises:
        ValueError: B is no multiple of M.
    """
    rows = count_rows(batch)
    if rows % parts:
        raise ValueError(
            f"a batch of {rows} rows cannot be cut into micro_batches={parts} equal "
            "parts; make every data.batch_size (of all hosts together) a multiple."
        )

    def split(leaf: Array) -> Array:
        return jnp.swapaxes(leaf.reshape(rows // parts, parts, *leaf.shape[1:]), 0, 1)

    return jax.tree.map(split, (batch, jnp.arange(rows)))


def join(parts: Any) -> Any:
    """Leaves [M, B / M, …] of a `cut` batch → [B, …], rows in their old places."""

    def put_back(leaf: Array) -> Array:
        return jnp.swapaxes(leaf, 0, 1).reshape(-1, *leaf.shape[2:])

    return jax.tree.map(put_back, parts)


def _accumulate(
    gradient: Callable[..., tuple[Any, Loss]], batch: Any, step: Array, parts: int
) -> tuple[Any, Loss]:
    """Undivided gradient and loss of the whole batch, part by part.

    Args:
        gradient: (batch, step, rows) → gradient and loss of these rows.
        batch: of all rows.
        step: number of the step.
        parts: how many; more of them need less memory.
    """
    if parts == 1:
        return gradient(batch, step, jnp.arange(count_rows(batch)))

    def add(carry, part):
        grads, loss = gradient(part[0], step, part[1])
        return (jax.tree.map(jnp.add, carry[0], grads), carry[1].join(loss)), None

    pieces = cut(batch, parts)
    first = jax.tree.map(lambda leaf: leaf[0], pieces)
    shapes = jax.eval_shape(gradient, first[0], step, first[1])
    grads, loss = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    lowest = jax.tree.map(lambda x: jnp.full_like(x, -jnp.inf), loss.largest)
    carry = (grads, dataclasses.replace(loss, largest=lowest))
    return jax.lax.scan(add, carry, pieces)[0]


def make_train_step(
    model: Asr, recipe: Recipe, tx: optax.GradientTransformation
) -> TrainStep:
    """(state, batch) → (state, metrics), pure; the caller jits and donates.

    The gradient of the undivided loss is divided by the weight once, after the sum over
    the whole (global) batch and over its `recipe.micro_batches` parts: these change
    what is in memory at once, and nothing else.

    A step whose loss or gradient is not finite leaves parameters and optimizer as they
    are, and is counted: `skipped_steps` and, up to this one, `skipped_in_row`.
    """
    schedule = recipe.optimizer.schedule(recipe.steps)

    def compute_loss(
        trainable: optim.FlatParams, frozen: optim.FlatParams, batch: Any, step, rows
    ) -> tuple[Array, Loss]:
        params = optim.unflatten(frozen | cast(optim.FlatParams, trainable))
        noisy = model.clone(dropout_in=recipe.noisy_parts(trainable))
        loss = evaluate_loss(noisy, recipe, params, batch, step, rows)
        return loss.total, loss

    gradient = jax.grad(compute_loss, has_aux=True)

    def train_step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        trainable, frozen = optim.split_params(state.params, recipe.rules)
        find = functools.partial(gradient, trainable, frozen)
        grads, loss = _accumulate(find, batch, state.step, recipe.micro_batches)
        weight = jnp.maximum(loss.weight, 1.0)
        grads = jax.tree.map(lambda leaf: leaf / weight.astype(leaf.dtype), grads)
        norm = optim.global_norm(grads)
        finite = jnp.isfinite(loss.total) & jnp.isfinite(norm)
        # Optax mixes Python scalars and counters into its arithmetic.
        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = tx.update(grads, state.opt_state, trainable)
            moved = optax.apply_updates(trainable, updates)
        trainable, opt_state = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old),
            (moved, opt_state),
            (trainable, state.opt_state),
        )
        skips = cast(Skips, state.skips).count(finite)
        metrics = {
            name: total / jnp.maximum(weight, 1e-8)
            for name, (total, weight) in loss.metrics.items()
        }
        metrics |= loss.largest
        metrics["loss"] = loss.total / weight
        metrics["gradient_norm"] = norm
        metrics["skipped_steps"] = skips.total
        metrics["skipped_in_row"] = skips.in_row
        metrics["learning_rate"] = jnp.asarray(schedule(state.step), jnp.float32)
        params = optim.unflatten(frozen | cast(optim.FlatParams, trainable))
        return TrainState(state.step + 1, params, opt_state, skips), metrics

    return train_step
