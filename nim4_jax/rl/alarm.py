"""Stopping rules of a GRPO run: drift of the sampler, and non-finite numbers."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
from absl import logging

from nim4_jax import sharding
from nim4_jax.layers import Policy
from nim4_jax.rl.objective import Grpo
from nim4_jax.train import loop

LARGEST_SHARE = 0.005
"""Share of a step's tokens whose drift may exceed the limit, for rounding has a tail.

So the limit is one on the 99.5 % quantile. What goes wrong (other weights, temperature,
positions, a row that is another's) moves most tokens, or all of an utterance's."""


@dataclasses.dataclass
class Alarm:
    """Checks each step of GRPO on the host.

    Attributes:
        drift_limit: difference between the sampler's log-probability of a token and the
            trainer's, nats, that at most `LARGEST_SHARE` of the tokens may exceed.
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
            ValueError: too many tokens have drifted further than the limit.
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
        share = values["drifted_tokens"]
        if not share <= LARGEST_SHARE:
            raise ValueError(
                f"in step {step} the sampler's log-probability of {share:.2%} of the "
                f"tokens is more than {self.drift_limit:g} nats from the trainer's "
                f"(mean {values['drift']:.4g}, largest {values['drift_largest']:.4g}), "
                f"expected of at most {LARGEST_SHARE:.1%}: give both the same weights "
                "and compute dtype, or raise loss.drift_limit."
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
    return Alarm(loss.find_drift_limit(policy), skip_limit).check
