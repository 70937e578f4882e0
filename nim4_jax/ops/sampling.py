"""Sampling of tokens from logits: greedy, temperature, top-k and nucleus."""

from __future__ import annotations

import numbers

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

HIDDEN = -1e30
"""Logit of a token that may not be drawn: its probability is exactly 0 in float32."""


def check_settings(
    temperature: float | Float[Array, ""],
    rng: Key[Array, "*B"] | None,
    top_p: float | Float[Array, ""] | None,
    top_k: int | None,
) -> None:
    """Refuse settings that make no sense; traced values pass unseen.

    Raises:
        ValueError: negative temperature, no rng where one is needed, top_p outside
            (0, 1], or top_k < 1.
    """
    known = isinstance(temperature, numbers.Real)
    if known and not 0.0 <= temperature < float("inf"):
        raise ValueError(f"temperature={temperature} must be ≥ 0 (0 is greedy).")
    if rng is None and not (known and temperature == 0.0):
        raise ValueError(f"temperature={temperature} samples: give an rng key.")
    if isinstance(top_p, numbers.Real) and not 0.0 < top_p <= 1.0:
        raise ValueError(f"top_p={top_p} must lie in (0, 1]; None means no limit.")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k={top_k} must be ≥ 1; None means no limit.")


def row_keys(rng: Key[Array, "*B"], batch: int) -> Key[Array, " B"]:
    """One key per row: rows of a batch draw independently of each other.

    Args:
        rng: one key (row b gets fold_in(rng, b)), or a key per row already.
        batch: B.

    Returns:
        A key per row.

    Raises:
        ValueError: neither one key nor B keys.
    """
    if not jnp.issubdtype(rng.dtype, jax.dtypes.prng_key):
        rng = jax.random.wrap_key_data(rng)
    if rng.shape == (batch,):
        return rng
    if rng.shape:
        raise ValueError(
            f"rng has shape {rng.shape}; give one key or {batch} keys, one per row."
        )
    return jax.vmap(lambda row: jax.random.fold_in(rng, row))(jnp.arange(batch))


def restrict(
    logits: Float[Array, "B V"],
    top_p: float | Float[Array, ""] | None = None,
    top_k: int | None = None,
) -> Float[Array, "B V"]:
    """Hide all but the k likeliest tokens, then all but the nucleus of mass p.

    A token stays in the nucleus if the mass of the likelier ones is below p: at least
    one stays. Tokens that tie with the last one kept are kept too.

    Args:
        logits: already scaled by the temperature.
        top_p: mass in (0, 1]; None for no limit.
        top_k: number of tokens; None for no limit.

    Returns:
        float32 logits, hidden tokens at −1e30.
    """
    logits = logits.astype(jnp.float32)
    hidden = jnp.float32(HIDDEN)
    if top_k is not None and top_k < logits.shape[1]:
        floor = jax.lax.top_k(logits, top_k)[0][:, -1:]
        logits = jnp.where(logits >= floor, logits, hidden)
    if top_p is not None:
        ordered = jnp.sort(logits, axis=1, descending=True)
        mass = jax.nn.softmax(ordered, axis=1)
        likelier = jnp.cumsum(mass, axis=1) - mass
        kept = jnp.where(likelier < jnp.asarray(top_p, jnp.float32), ordered, jnp.inf)
        logits = jnp.where(logits >= jnp.min(kept, 1, keepdims=True), logits, hidden)
    return logits


def sample(
    logits: Float[Array, "B V"],
    rng: Key[Array, "*B"] | None = None,
    temperature: float | Float[Array, ""] = 0.0,
    top_p: float | Float[Array, ""] | None = None,
    top_k: int | None = None,
) -> tuple[Int[Array, " B"], Float[Array, " B"]]:
    """Draw one token per row, with its log-probability.

    The log-probability is that of the distribution the token was drawn from:

    temperature | token         | log-probability (nats)
    0           | argmax        | log softmax(logits)[token]
    τ > 0       | random        | log softmax(restrict(logits / τ))[token]

    Args:
        logits: of the next token.
        rng: one key or a key per row; only greedy sampling needs none.
        temperature: the number 0 for greedy; an array is taken to be positive, and may
            change without a recompilation.
        top_p: see `restrict`; unused when greedy.
        top_k: see `restrict`; unused when greedy.

    Returns:
        (tokens int32, log_probs float32).

    Raises:
        ValueError: see `check_settings`.
    """
    check_settings(temperature, rng, top_p, top_k)
    logits = logits.astype(jnp.float32)
    if isinstance(temperature, numbers.Real) and temperature == 0.0:
        tokens = jnp.argmax(logits, axis=1).astype(jnp.int32)
    else:
        logits = logits / jnp.asarray(temperature, jnp.float32)
        logits = restrict(logits, top_p, top_k)
        keys = row_keys(rng, logits.shape[0])
        tokens = jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)
    chosen = jnp.take_along_axis(logits, tokens[:, None], axis=1)[:, 0]
    return tokens, chosen - jax.nn.logsumexp(logits, axis=1)
