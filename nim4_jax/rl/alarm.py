"""When to stop a run of reinforcement learning: drift, and numbers that are lost."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
from absl import logging

from nim4_jax import sharding
from nim4_jax.layers import Policy
from nim4_jax.rl.objective import Grpo
from nim4_jax.train import loop

LIMITS = {"float32": 0.01, "bfloat16": 0.5}
"""Default drift limits by compute dtype, nats: far above rounding, far below a bug."""


@dataclasses.dataclass
class Alarm:
    """Checks each step of GRPO on the host.

    Attributes:
        drift_limit: largest difference allowed between the sampler's log-probability of
            a token and the trainer's, nats. With rollouts of older weights (a rollout
            mesh that is not synced each step) it bounds how far the policy has moved.
        skip_limit: so many steps in a row whose numbers are lost end the run.
        flat_steps: steps so far in which no group taught anything.
    """

    drift_limit: float
    skip_limit: int = loop.SKIP_LIMIT
    flat_steps: int = 0

    def check(
        self, step: int, values: dict[str, float], arrays: dict[str, np.ndarray]
    ) -> None:
        """Stop if a step's numbers cannot be trusted; count steps that taught nothing.

        Args:
            step: number of the step, from 1.
            values: its metrics.
            arrays: its batch; "index" holds the examples' numbers.

        Raises:
            FloatingPointError: a log-probability, the loss or the gradient was not
                finite in too many steps in a row; names the utterance or the batch's
                examples.
            ValueError: more drift than the limit.
        """
        row = int(values["broken_row"])
        where = ""
        if row >= 0:
            where = (
                f"{_name_utterance(row, arrays)}: its samples have log-probabilities "
                "that are not finite, so "
            )
        if not loop.check_finite(step, values, arrays, self.skip_limit, where):
            return
        if not values["drift"] <= self.drift_limit:
            raise ValueError(
                f"in step {step} the sampler's log-probability of a token is "
                f"{values['drift']:.4g} nats from the trainer's, expected at most "
                f"{self.drift_limit:g}: give both the same weights and compute dtype, "
                "or raise loss.drift_limit."
            )
        if values["flat_groups"] == 1.0:
            self.flat_steps += 1
            if self.flat_steps.bit_count() == 1:  # the 1st, 2nd, 4th, 8th …
                logging.warning(
                    "step %d: all samples of each utterance earned the same, nothing "
                    "to learn from (%d such steps so far); more samples, a higher "
                    "temperature or harder data would help.",
                    step,
                    self.flat_steps,
                )


def _name_utterance(row: int, arrays: dict[str, np.ndarray]) -> str:
    """A row of the global batch by its example's number, if this host has it."""
    index = np.asarray(arrays.get("index", ()))
    rank, _ = sharding.share_of_rows(sharding.current_mesh())
    local = row - rank * len(index)
    if 0 <= local < len(index):
        return f"utterance {index[local]} (row {row} of the batch)"
    return f"row {row} of the batch"


def choose_check(
    loss: object, policy: Policy, skip_limit: int = loop.SKIP_LIMIT
) -> loop.Check:
    """The check that the training loop should make after each step of a loss.

    Args:
        loss: of the recipe.
        policy: dtypes of the model.
        skip_limit: so many steps in a row whose numbers are lost end the run.
    """
    if not isinstance(loss, Grpo):
        return functools.partial(loop.check_finite, limit=skip_limit)
    limit = loss.drift_limit or LIMITS.get(policy.compute, LIMITS["bfloat16"])
    return Alarm(limit, skip_limit).check
