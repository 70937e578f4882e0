"""Next-token cross-entropy in chunks, without the logits of all tokens in memory."""

from __future__ import annotations

from collections.abc import Callable

import einops
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from nim4_jax import sharding


def token_log_probs(
    hidden: Float[Array, "B L D"],
    targets: Int[Array, "B L"],
    unembed: Callable[[Array], Array],
    chunk: int,
) -> tuple[Float[Array, "B L"], Bool[Array, "B L"]]:
    """log p(target) at each place, `chunk` places at a time under recomputation.

    Args:
        hidden: states from which the targets are predicted.
        targets: token ids.
        unembed: hidden [..., D] → float32 logits [..., V].
        chunk: places whose logits exist at once (per row).

    Returns:
        log-probabilities in nats, and whether the target was the best token.
    """

    @jax.checkpoint
    def score(piece: tuple[Array, Array]) -> tuple[Array, Array]:
        states, ids = piece
        # Each device scores its own rows against its own part of the vocabulary; left
        # alone, the compiler gathers all rows' logits for the table's gradient.
        states = sharding.constrain(states, "batch", None, None)
        logits = sharding.constrain(unembed(states), "batch", None, "vocab")
        chosen = jnp.take_along_axis(logits, ids[..., None], axis=-1)[..., 0]
        best = jnp.argmax(logits, axis=-1) == ids
        return chosen - jax.nn.logsumexp(logits, axis=-1), best

    length = targets.shape[1]
    if length <= chunk:
        return score((hidden, targets))
    extra = -length % chunk
    hidden = jnp.pad(hidden, ((0, 0), (0, extra), (0, 0)))
    targets = jnp.pad(targets, ((0, 0), (0, extra)))
    hidden = einops.rearrange(hidden, "b (piece c) d -> piece b c d", c=chunk)
    targets = einops.rearrange(targets, "b (piece c) -> piece b c", c=chunk)
    log_probs, best = jax.lax.map(score, (hidden, targets))

    def join(array: Array) -> Array:
        return einops.rearrange(array, "piece b c -> b (piece c)")[:, :length]

    return join(log_probs), join(best)
