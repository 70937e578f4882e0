"""The rollout worker: samples from the policy on its devices, rewards on the host.

    worker = RolloutWorker(model, recipe)          # samples where it trains
    batch = worker.prepare(state, batch)           # host arrays; before each step
    state, metrics = step(state, sharding.put_batch(batch))

On a mesh of its own (config.rollout_devices) weights go over before each step, and the
same samples come back. The training loop calls `prepare`.
"""

from __future__ import annotations

import contextlib
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Int

from nim4_jax import sharding
from nim4_jax.decode.programs import Generation
from nim4_jax.models.asr import Asr
from nim4_jax.rl import rollout
from nim4_jax.rl.objective import PARTS, Grpo
from nim4_jax.rl.rollout import Experience, Rollout
from nim4_jax.train import step as train_step
from nim4_jax.train.recipes import Recipe
from nim4_jax.train.state import TrainState
from nim4_jax.types import AsrBatch, Params


class RolloutWorker:
    """Samples transcripts from the policy and scores them, before each step."""

    def __init__(
        self,
        model: Asr,
        recipe: Recipe,
        mesh: Mesh | None = None,
        *,
        dtype: str | None = None,
    ):
        """
        Args:
            model: the one that learns.
            recipe: whose loss is a `Grpo`; its seed decides what is drawn.
            mesh: of devices that only sample, each with a copy of the policy; None to
                sample on the current mesh, with the parameters as they lie there.
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
        self._loss = recipe.loss
        self._dtype = dtype
        self._run = jax.jit(make_writer(model, recipe))

    def sync(self, params: Params) -> None:
        """Take over what a rollout needs of the policy.

        Args:
            params: of the policy that learns. With a rollout mesh they are copied onto
                each of its devices and may be donated afterwards; else they are used as
                they are.
        """
        missing = [part for part in PARTS if part not in params]
        if missing:
            raise ValueError(
                f"the policy holds {sorted(params)} but no {', '.join(missing)}."
            )
        self.params = {part: params[part] for part in PARTS}
        if self.mesh is None:
            return
        placed = NamedSharding(self.mesh, PartitionSpec())

        def copy(leaf: Array) -> Array:
            if self._dtype and jnp.issubdtype(leaf.dtype, jnp.floating):
                leaf = leaf.astype(self._dtype)
            return jax.device_put(leaf, placed, may_alias=False)

        self.params = jax.tree.map(copy, self.params)

    def write(self, batch: AsrBatch, step: int) -> Rollout:
        """Judged samples of a batch, for the train step of that number.

        Args:
            batch: this host's rows of it, on the host.
            step: number of steps done, `int(state.step)`.

        Returns:
            Host arrays of the same rows.

        Raises:
            ValueError: before the first `sync`, or rows that do not divide over the
                mesh.
        """
        if not self.params:
            raise ValueError("the sampler has no weights yet; call sync first.")
        where = (
            contextlib.nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)
        )
        with where:
            inputs = sharding.put_batch(batch)

            def attempt(number: int, chosen: Bool[np.ndarray, " B"]) -> Rollout:
                written = self._run(
                    self.params,
                    inputs,
                    np.int32(step),
                    np.int32(number),
                    sharding.put_batch(chosen),
                )
                return self._judge(sharding.fetch_rows(written), batch)

            rows = len(batch.audio.mask)
            return rollout.roll_again(attempt, rows, self._loss.oversample)

    def _judge(self, written: Generation, batch: AsrBatch) -> Rollout:
        """Samples on the host with what they are worth."""
        read = [batch.tokens, *([batch.wanted] if batch.wanted is not None else [])]
        length = written.tokens.shape[-1]
        earned = self._loss.judge(
            written.tokens.reshape(-1, length),
            written.mask.reshape(-1, length),
            *(
                np.asarray(leaf)
                for labels in read
                for leaf in (labels.ids, labels.mask)
            ),
        )
        return Rollout.of(written, np.asarray(earned, np.float32))

    def prepare(self, state: TrainState, batch: AsrBatch) -> Experience:
        """A batch with samples of the policy as it is before this step.

        Depends on state and batch alone, so a resumed run draws the same.
        """
        self.sync(state.params)
        rolled = self.write(batch, int(state.step))
        if self.mesh is None:
            self.params = {}  # the step donates them
        return Experience(batch, rolled)


def make_writer(model: Asr, recipe: Recipe):
    """(params, batch, step, attempt, chosen) → Generation of [B, K, L], pure.

    The program of a rollout: `Grpo.write` under the randomness of a step, of as many
    rows at once as the train step has.

    Args:
        model: the one that learns.
        recipe: whose loss is a `Grpo`.
    """
    loss = cast(Grpo, recipe.loss)

    def write_part(params: Params, step, attempt, part: Any) -> Generation:
        (batch, chosen), rows = part

        def write(module: Asr, inputs: AsrBatch) -> Any:
            return loss.write(module, inputs, step, attempt, chosen, rows)

        rngs = train_step.make_rngs(recipe.seed, step)
        written = nn.apply(write, model)({"params": params}, batch, rngs=rngs)
        grouped = (len(rows), loss.samples, -1)
        return jax.tree.map(lambda leaf: leaf.reshape(grouped), written)

    def write_samples(
        params: Params,
        batch: AsrBatch,
        step: Int[Array, ""],
        attempt: Int[Array, ""],
        chosen: Bool[Array, " B"],
    ) -> Generation:
        def write_one(part: Any) -> Generation:
            return write_part(params, step, attempt, part)

        if recipe.micro_batches == 1:
            written = write_one(((batch, chosen), jnp.arange(len(chosen))))
        else:
            parts = train_step.cut((batch, chosen), recipe.micro_batches)
            written = train_step.join(jax.lax.map(write_one, parts))
        return jax.tree.map(
            lambda leaf: sharding.constrain(leaf, "batch", None, None), written
        )

    return write_samples


def outline(model: Asr, recipe: Recipe, params: Params, batch: AsrBatch) -> Experience:
    """Shapes of what the train step learns from, for programs that are only compiled.

    Args:
        model: the one that learns.
        recipe: whose loss is a `Grpo`.
        params: of it, or their shapes.
        batch: arrays or shapes.
    """
    rows, samples = len(batch.audio.mask), cast(Grpo, recipe.loss).samples

    def roll(params: Params, batch: AsrBatch) -> Rollout:
        start = jnp.zeros((), jnp.int32)
        everyone = jnp.ones(rows, jnp.bool_)
        written = make_writer(model, recipe)(params, batch, start, start, everyone)
        return Rollout.of(written, jnp.zeros((rows, samples)))

    held = {part: params[part] for part in PARTS}
    return Experience(batch, jax.eval_shape(roll, held, batch))
