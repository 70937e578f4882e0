"""A Recipe: what a stage minimises and which parameters it trains."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

from nim4_jax.train.losses import Loss
from nim4_jax.train.optim import OptimizerConfig, Rules

LossFunction = Callable[..., Loss]
"""(bound model, batch, step, rows) → Loss; `rows` are the numbers of the batch's rows
in the whole batch, None (the default) for all of it."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One stage of training over the one loop.

    Attributes:
        loss: callable (bound model, batch, step, rows) → Loss.
        rules: regex over parameter paths → multiple of the learning rate, None =
            frozen.
        optimizer: rates and moments.
        steps: length of the stage.
        seed: root of all randomness; step s draws from fold_in(seed, s).
        reference: whether a frozen copy of what is trained stays beside it.
        micro_batches: parts of equally many rows into which each batch is cut, one
            after the other in memory; the update is that of the whole batch.

    Raises:
        ValueError: fewer than one part, or a loss that cannot be cut.
    """

    loss: LossFunction
    rules: Rules
    optimizer: OptimizerConfig
    steps: int
    seed: int = 0
    reference: bool = False
    micro_batches: int = 1

    def noisy_parts(self, trained: Iterable[str]) -> tuple[str, ...]:
        """Parts of the model in which dropout is on: of those that are trained.

        A frozen part learns nothing from it, and what comes after it would learn from
        another one than it will meet.

        Args:
            trained: paths of the parameters that the rules train.
        """
        if getattr(self.loss, "noiseless", False):
            return ()
        return tuple(sorted({path.split("/")[0] for path in trained}))

    def __post_init__(self):
        if self.micro_batches < 1:
            raise ValueError(
                f"micro_batches={self.micro_batches} must be ≥ 1 (1: not cut)."
            )
        coupled = getattr(self.loss, "couples_rows", "")
        if self.micro_batches > 1 and coupled:
            raise ValueError(
                f"micro_batches={self.micro_batches} would change what is learnt: with "
                f"{coupled} the loss is no sum over rows. Set micro_batches=1 and a "
                "smaller data.batch_size, or another loss."
            )
