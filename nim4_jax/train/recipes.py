"""A Recipe: what a stage minimises and which parameters it trains."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from jaxtyping import Array, Int

from nim4_jax.models.asr import Asr
from nim4_jax.train.losses import Loss
from nim4_jax.train.optim import OptimizerConfig, Rules
from nim4_jax.types import AsrBatch

LossFunction = Callable[[Asr, AsrBatch, Int[Array, ""]], Loss]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One stage of training over the one loop.

    Attributes:
        loss: callable (bound model, batch, step) → Loss.
        rules: regex over parameter paths → multiple of the learning rate, None =
        frozen.
        optimizer: rates and moments.
        steps: length of the stage.
        seed: root of all randomness; step s draws from fold_in(seed, s).
        reference: whether a frozen copy of what is trained stays beside it.
    """

    loss: LossFunction
    rules: Rules
    optimizer: OptimizerConfig
    steps: int
    seed: int = 0
    reference: bool = False
