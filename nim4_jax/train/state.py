"""TrainState, and the initialisation of its parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Int

from nim4_jax import struct
from nim4_jax.models.asr import Asr
from nim4_jax.train import optim
from nim4_jax.train.recipes import Recipe
from nim4_jax.types import AsrBatch, Params


@struct.dataclass
class Skips:
    """Steps that changed nothing, because their numbers were lost.

    Attributes:
        total: since the run began.
        in_row: up to the last step; 0 if that one was good.
    """

    total: Int[Array, ""]
    in_row: Int[Array, ""]

    @classmethod
    def none(cls) -> Skips:
        """Before the first step."""
        return cls(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))

    def count(self, finite: Bool[Array, ""]) -> Skips:
        """After one more step."""
        lost = jnp.where(finite, 0, 1)
        return Skips(self.total + lost, (self.in_row + lost) * lost)


@struct.dataclass
class TrainState:
    """Everything that a step changes.

    Attributes:
        step: number of steps done.
        params: nested dict of arrays.
        opt_state: optimizer slots of the trainable parameters.
        skips: steps without effect; None where no train step has counted them, as in
            checkpoints of earlier versions.
    """

    step: Int[Array, ""]
    params: Params
    opt_state: Any
    skips: Skips | None = None


REFERENCE = "reference"
"""Part of the parameters that holds the policy as it was: a copy of what is trained."""


def add_reference(params: Params, recipe: Recipe) -> Params:
    """Put a copy of what the recipe trains beside it, if the recipe wants one."""
    if not recipe.reference:
        return params
    trainable, _ = optim.split_params(params, recipe.rules)
    copied = {path: jnp.array(leaf, copy=True) for path, leaf in trainable.items()}
    return {**params, REFERENCE: optim.unflatten(copied)}


def init_params(model: Asr, recipe: Recipe, batch: AsrBatch, seed: int) -> Params:
    """Fresh parameters of every part that the recipe's loss reaches."""

    def run(module: Asr, inputs: AsrBatch) -> Array:
        return recipe.loss(module, inputs, jnp.zeros((), jnp.int32)).total

    names = ("params", "augment", "dropout")
    keys = jax.random.split(jax.random.key(seed), len(names))
    variables = jax.jit(nn.init(run, model))(dict(zip(names, keys)), batch)
    return nn.unbox(variables)["params"]


def adopt(fresh: Params, given: Params, origin: str) -> tuple[Params, list[str]]:
    """Replace fresh parameters by given ones of the same path; keep given extras.

    Args:
        fresh: newly initialised parameters.
        given: parameters of an earlier stage or of an import.
        origin: where they come from, for the error.

    Returns:
        The union, and the paths that stayed fresh.

    Raises:
        ValueError: a shape differs, by path with both shapes.
    """
    new, old = optim.flatten(fresh), optim.flatten(given)
    if wrong := describe_misfits({path: new[path] for path in new.keys() & old}, old):
        raise ValueError(
            f"{origin} holds a model of another size: {wrong}. Start from a checkpoint "
            "of the same size, or change the config to fit it."
        )
    for path in new.keys() & old.keys():
        old[path] = np.asarray(old[path], new[path].dtype)
    return optim.unflatten({**new, **old}), sorted(new.keys() - old.keys())


def describe_misfits(
    wanted: Mapping[str, Any], given: Mapping[str, Any], shown: int = 4
) -> str:
    """Which parameters are missing or have another shape; "" where all fit.

    Args:
        wanted: path → array or shape.
        given: the same; paths that are not wanted do not matter.
        shown: how many are named, the others are counted.
    """
    wrong = [
        f"{path}: {tuple(given[path].shape) if path in given else 'none'}, expected "
        f"{tuple(wanted[path].shape)}"
        for path in sorted(wanted)
        if path not in given or given[path].shape != wanted[path].shape
    ]
    more = f" and {len(wrong) - shown} more" if len(wrong) > shown else ""
    return "; ".join(wrong[:shown]) + more


def init_state(
    params: Params, recipe: Recipe, tx: optax.GradientTransformation
) -> TrainState:
    """Step 0: the given parameters and empty optimizer slots for the trainable ones."""
    trainable, _ = optim.split_params(params, recipe.rules)
    step = jnp.zeros((), jnp.int32)
    return TrainState(step, params, tx.init(trainable), Skips.none())
