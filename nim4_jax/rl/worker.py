"""Rollouts on a mesh of their own: weights go over, samples come back.

    worker = RolloutWorker(model, recipe, rollout_mesh)
    worker.sync(state.params)                       # after each update, or each few
    batch = worker.rehearse(batch, int(state.step))  # host arrays
    state, metrics = step(state, sharding.put_batch(batch))

The default needs none of it: `Grpo` samples inside the train step. With a worker the
train step only learns, from the same samples if the weights are synced each step, as
`prepare` does, which the training loop calls (config.rollout_devices).
"""

from __future__ import annotations

from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from nim4_jax.models.asr import Asr
from nim4_jax.rl.objective import PARTS, Grpo
from nim4_jax.rl.rollout import Rehearsed, Rollout
from nim4_jax.train.recipes import Recipe
from nim4_jax.train.state import TrainState
from nim4_jax.train.step import make_rngs
from nim4_jax.types import AsrBatch, Params


class RolloutWorker:
    """The policy's copy that samples."""

    def __init__(
        self,
        model: Asr,
        recipe: Recipe,
        mesh: Mesh,
        *,
        dtype: str | None = None,
    ):
        """
        Args:
            model: the one that learns, dropout and all.
            recipe: whose loss is a `Grpo`; its seed decides what is drawn.
            mesh: where to sample; rows are split over its "data" axis.
            dtype: of the copied weights; None leaves them as they are. Another one than
                the trainer's shows up as drift.

        Raises:
            ValueError: the loss samples nothing.
        """
        if not isinstance(recipe.loss, Grpo):
            raise ValueError(
                f"the loss {type(recipe.loss).__name__} needs no rollouts; a rollout "
                "mesh is for loss.kind='grpo'."
            )
        self.mesh = mesh
        self.params: Params = {}
        self._dtype = dtype
        self._run = jax.jit(make_rollout(model, recipe))

    def sync(self, params: Params) -> None:
        """Copy what a rollout needs of the policy onto the rollout mesh, whole.

        Args:
            params: of the policy that learns, on any devices; they may be donated
                afterwards.
        """
        missing = [part for part in PARTS if part not in params]
        if missing:
            raise ValueError(
                f"the policy holds {sorted(params)} but no {', '.join(missing)}."
            )
        placed = NamedSharding(self.mesh, PartitionSpec())

        def copy(leaf: Array) -> Array:
            if self._dtype and jnp.issubdtype(leaf.dtype, jnp.floating):
                leaf = leaf.astype(self._dtype)
            return jax.device_put(leaf, placed, may_alias=False)

        self.params = jax.tree.map(copy, {part: params[part] for part in PARTS})

    def write(self, batch: AsrBatch, step: int) -> Rollout:
        """Samples of a batch as the train step of that number would draw them.

        Args:
            batch: the whole batch, on the host.
            step: number of steps done, `int(state.step)`.

        Returns:
            Host arrays.

        Raises:
            ValueError: before the first `sync`, or rows that do not divide over the
                mesh.
        """
        if not self.params:
            raise ValueError("the rollout mesh has no weights yet; call sync first.")
        shards = self.mesh.shape["data"]
        rows = len(batch.audio.mask)
        if rows % shards:
            raise ValueError(
                f"{rows} rows do not divide over the {shards} data shards of the "
                f"rollout mesh; set a batch size that is a multiple of {shards}."
            )
        with jax.set_mesh(self.mesh):
            placed = NamedSharding(self.mesh, PartitionSpec("data"))
            inputs = jax.device_put(batch, placed)
            rolled = self._run(self.params, inputs, np.int32(step))
            return jax.device_get(rolled)

    def rehearse(self, batch: AsrBatch, step: int) -> Rehearsed:
        """A batch with its samples, for the train step."""
        return Rehearsed(batch, self.write(batch, step))

    def prepare(self, state: TrainState, batch: AsrBatch) -> Rehearsed:
        """A batch with samples of the policy as it is before this step.

        Depends on state and batch alone, so a resumed run draws the same.
        """
        self.sync(state.params)
        return self.rehearse(batch, int(state.step))


def make_writer(model: Asr, recipe: Recipe):
    """(params, batch, step) → Generation: a rollout's samples, not yet judged."""
    loss = cast(Grpo, recipe.loss)

    def run(params: Params, batch: AsrBatch, step) -> Any:
        def write(module: Asr, inputs: AsrBatch) -> Any:
            return loss.write(module, inputs, step)

        rngs = make_rngs(recipe.seed, step)
        return nn.apply(write, model)({"params": params}, batch, rngs=rngs)

    return run


def make_rollout(model: Asr, recipe: Recipe):
    """(params, batch, step) → Rollout, pure: what the step of that number learns from.

    Args:
        model: the one that learns.
        recipe: whose loss is a `Grpo`.
    """
    loss = cast(Grpo, recipe.loss)

    def run(params: Params, batch: AsrBatch, step) -> Rollout:
        def roll(module: Asr, inputs: AsrBatch) -> Any:
            return loss.roll(module, inputs, step)

        rngs = make_rngs(recipe.seed, step)
        return cast(
            Rollout, nn.apply(roll, model)({"params": params}, batch, rngs=rngs)
        )

    return run
