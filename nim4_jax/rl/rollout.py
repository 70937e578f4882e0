"""A rollout: K transcripts of each utterance, with what they earned."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from nim4_jax import struct
from nim4_jax.rl import grpo
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

    def answers(self) -> Labels:
        """The samples as B · K rows."""
        length = self.tokens.shape[-1]
        return Labels(self.tokens.reshape(-1, length), self.mask.reshape(-1, length))

    def flat(self) -> Bool[Array, " B"]:
        """Groups of audible utterances that earned the same for every sample."""
        return grpo.find_flat(self.rewards) & self.heard()

    def heard(self) -> Bool[Array, " B"]:
        """Utterances of which there are transcripts; padding has none."""
        return jnp.any(self.mask, axis=(1, 2))


@struct.dataclass
class Rehearsed:
    """A batch with the rollout that was made of it elsewhere.

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
    attempt: Callable[[Int[Array, ""], Bool[Array, " B"]], Rollout],
    count: int,
    most: int,
) -> Rollout:
    """Roll out, and again the groups that came out flat, up to `most` times in all.

    DAPO draws other utterances until a batch is full of groups that teach something. In
    one program of fixed shapes there are no others: the same ones are drawn again, and
    those that stay flat may be dropped from the loss (the batch is then smaller). As
    there, what is kept is drawn under the condition that it teaches.

    Args:
        attempt: (number of the attempt, rows to roll out) → rollout; the other rows
            write nothing.
        count: B.
        most: attempts, ≥ 1.
    """
    first = attempt(jnp.zeros((), jnp.int32), jnp.ones(count, jnp.bool_))
    if most == 1:
        return first

    def unfinished(loop: tuple[Array, Rollout]) -> Array:
        return (loop[0] < most) & jnp.any(loop[1].flat())

    def again(loop: tuple[Array, Rollout]) -> tuple[Array, Rollout]:
        number, kept = loop
        flat = kept.flat()
        new = attempt(number, flat)

        def choose(new: Array, old: Array) -> Array:
            return jnp.where(flat.reshape(-1, *(1,) * (old.ndim - 1)), new, old)

        chosen = jax.tree.map(choose, new, kept)
        attempts = kept.attempts + flat.astype(jnp.int32)
        return number + 1, chosen.replace(attempts=attempts)

    start = (jnp.ones((), jnp.int32), first)
    return jax.lax.while_loop(unfinished, again, start)[1]
