"""A rollout: K sampled transcripts of each utterance with their rewards."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from nim4_jax import struct
from nim4_jax.decode.programs import Generation
from nim4_jax.rl import grpo
from nim4_jax.train.multihost import consensus
from nim4_jax.types import AsrBatch, Labels


@struct.dataclass
class Rollout:
    """K samples of each of B utterances; every leaf has B rows, so it may be cut.

    Attributes:
        tokens: sampled ids, 0 behind the mask.
        mask: True for sampled tokens, the end token among them.
        log_probs: of the policy that sampled, at the temperature that sampled, nats.
        rewards: of each sample.
        attempts: how often the group was rolled out.
    """

    tokens: Int[Array, "B K L"]
    mask: Bool[Array, "B K L"]
    log_probs: Float[Array, "B K L"]
    rewards: Float[Array, "B K"]
    attempts: Int[Array, " B"]

    @classmethod
    def of(cls, written: Generation, rewards: Float[Array, "B K"]) -> Rollout:
        """First attempts of all groups.

        Args:
            written: leaves [B, K, L].
            rewards: of each sample.
        """
        attempts = np.ones(rewards.shape[0], np.int32)
        return cls(written.tokens, written.mask, written.log_probs, rewards, attempts)

    def answers(self) -> Labels:
        """The samples as B · K rows."""
        length = self.tokens.shape[-1]
        return Labels(self.tokens.reshape(-1, length), self.mask.reshape(-1, length))

    def flat(self) -> Bool[Array, " B"]:
        """Groups of audible utterances that earned the same for every sample."""
        return grpo.find_flat(self.rewards) & self.heard()

    def heard(self) -> Bool[Array, " B"]:
        """Utterances of which there are transcripts; padding has none."""
        return self.mask.any(axis=(1, 2))


@struct.dataclass
class Experience:
    """What a step of GRPO learns from: a batch and its judged samples.

    Attributes:
        batch: B utterances.
        rollout: their samples.
    """

    batch: AsrBatch
    rollout: Rollout


def key_samples(keys: Key[Array, " B"], samples: int) -> Key[Array, " B*K"]:
    """A key for each of the K samples of each row."""
    fold = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
    return jax.vmap(fold, in_axes=(0, None))(keys, jnp.arange(samples)).reshape(-1)


def roll_again(
    attempt: Callable[[int, Bool[np.ndarray, " B"]], Rollout], count: int, most: int
) -> Rollout:
    """Roll out, and again the groups that came out flat, up to `most` times in all.

    DAPO draws other utterances until a batch is full of groups that teach something. In
    programs of fixed shapes the same ones are drawn again, and those that stay flat may
    be dropped from the loss (the batch is then smaller). As there, what is kept is
    drawn under the condition that it teaches.

    Several hosts go on until none has a flat group, for an attempt is work of all.

    Args:
        attempt: (number of the attempt, rows to roll out) → rollout on the host; the
            other rows write nothing.
        count: B, of this host.
        most: attempts, ≥ 1.
    """
    kept = attempt(0, np.ones(count, bool))
    for number in range(1, most):
        flat = kept.flat()
        if consensus.everywhere(not flat.any()):
            break
        attempts = kept.attempts + flat.astype(np.int32)
        chosen = functools.partial(_choose_rows, flat)
        kept = jax.tree.map(chosen, attempt(number, flat), kept)
        kept = dataclasses.replace(kept, attempts=attempts)
    return kept


def _choose_rows(chosen: np.ndarray, new: np.ndarray, old: np.ndarray) -> np.ndarray:
    """The new rows where they are chosen, the old ones elsewhere."""
    return np.where(chosen.reshape(-1, *(1,) * (old.ndim - 1)), new, old)
