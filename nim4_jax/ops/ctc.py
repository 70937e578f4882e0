"""CTC negative log-likelihood with an analytic gradient, and CR-CTC's consistency term.

The usual trellis has 2·L + 1 states: blanks and labels in turn. Here they are kept as
two arrays, blank[l] (after l labels) and label[l], because only labels need a gather
and a three-way sum:

    blank'[l] = (blank[l] ⊕ label[l−1]) + log p(blank)
    label'[l] = (label[l] ⊕ blank[l] ⊕ label[l−1] if another label) + log p(y_l)

Sources: Graves et al. 2006; CR-CTC, arXiv 2410.05101.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from nim4_jax.types import Labels

_NEVER = -1e30  # log of an impossible event: finite, so that differences stay finite


def _shift(values: Array, by: int) -> Array:
    """Move the last axis by one place, filling with impossible events."""
    pad = ((0, 0), (1, 0)) if by > 0 else ((0, 0), (0, 1))
    kept = values[:, :-1] if by > 0 else values[:, 1:]
    return jnp.pad(kept, pad, constant_values=_NEVER)


def _log_add(*terms: Array) -> Array:
    """log Σ exp(term), elementwise over equally shaped arrays."""
    peak = functools.reduce(jnp.maximum, terms)
    return peak + jnp.log(sum(jnp.exp(term - peak) for term in terms))


def _emissions(log_probs: Array, labels: Labels) -> tuple[Array, Array]:
    """Time-major log p(blank) [T, B, 1] and log p(label) [T, B, L]."""
    by_time = jnp.swapaxes(log_probs, 0, 1)
    index = jnp.broadcast_to(labels.ids[None], (by_time.shape[0], *labels.ids.shape))
    return by_time[..., :1], jnp.take_along_axis(by_time, index, axis=-1)


def _may_skip(labels: Labels) -> Array:
    """Bool [B, L]: label l may follow label l − 1 without a blank between."""
    different = labels.ids[:, 1:] != labels.ids[:, :-1]
    return jnp.pad(different, ((0, 0), (1, 0)), constant_values=False)


def _forward(log_probs: Array, mask: Array, labels: Labels):
    """Log forward variables, blank [T, B, L+1] and label [T, B, L], and likelihood."""
    blank, emit = _emissions(log_probs, labels)
    skip = jnp.where(_may_skip(labels), 0.0, _NEVER)
    batch, width = labels.ids.shape
    start = jnp.full((batch, width + 1), _NEVER).at[:, 0].set(0.0)
    nothing = jnp.full((batch, width), _NEVER)

    def advance(carry, inputs):
        blanks, symbols = carry
        emit_blank, emit_label, valid = inputs
        before = jnp.pad(symbols, ((0, 0), (1, 0)), constant_values=_NEVER)
        next_blanks = _log_add(blanks, before) + emit_blank
        skipped = _shift(symbols, 1) + skip
        next_symbols = _log_add(symbols, blanks[:, :-1], skipped) + emit_label
        carry = (
            jnp.where(valid, jnp.maximum(next_blanks, _NEVER), blanks),
            jnp.where(valid, jnp.maximum(next_symbols, _NEVER), symbols),
        )
        return carry, carry

    inputs = (blank, emit, jnp.swapaxes(mask, 0, 1)[..., None])
    (blanks, symbols), history = jax.lax.scan(advance, (start, nothing), inputs)
    count = labels.lengths()[:, None]
    last_blank = jnp.take_along_axis(blanks, count, axis=1)[:, 0]
    last_label = jnp.take_along_axis(symbols, jnp.maximum(count - 1, 0), axis=1)[:, 0]
    last_label = jnp.where(count[:, 0] > 0, last_label, _NEVER)
    return history, _log_add(last_blank, last_label)


def _backward(log_probs: Array, mask: Array, labels: Labels):
    """Log backward variables: what is still to come after frame t, per state."""
    blank, emit = _emissions(log_probs, labels)
    skip_next = _shift(jnp.where(_may_skip(labels), 0.0, _NEVER), -1)
    width = labels.ids.shape[1]
    count = labels.lengths()[:, None]
    places = jnp.arange(width + 1, dtype=jnp.int32)[None]
    end_blank = jnp.where(places == count, 0.0, _NEVER)
    end_label = jnp.where(places[:, 1:] == count, 0.0, _NEVER)

    def retreat(carry, inputs):
        emit_blank, emit_label, valid = inputs
        after_blank, after_label = carry
        via_blank, via_label = after_blank + emit_blank, after_label + emit_label
        padded = jnp.pad(via_label, ((0, 0), (0, 1)), constant_values=_NEVER)
        blanks = _log_add(via_blank, padded)
        skipped = _shift(via_label, -1) + skip_next
        symbols = _log_add(via_label, via_blank[:, 1:], skipped)
        before = (
            jnp.where(valid, jnp.maximum(blanks, _NEVER), after_blank),
            jnp.where(valid, jnp.maximum(symbols, _NEVER), after_label),
        )
        return before, carry

    inputs = (blank, emit, jnp.swapaxes(mask, 0, 1)[..., None])
    _, history = jax.lax.scan(retreat, (end_blank, end_label), inputs, reverse=True)
    return history


@jax.custom_vjp
def ctc_loss(
    logits: Float[Array, "B U P"], mask: Bool[Array, "B U"], labels: Labels
) -> Float[Array, " B"]:
    """−log p(labels | logits) of each row, summed over its frames, in nats.

    Args:
        logits: unnormalised scores; class 0 is the blank. NaN behind the mask is
        harmless.
        mask: valid frames, a prefix of each row.
        labels: targets without blanks; an empty row means "blank throughout".

    Returns:
        Float [B]; inf, with a zero gradient, where there are fewer valid frames than
        labels plus repeated neighbours.
    """
    return _ctc_forward(logits, mask, labels)[0]


def _ctc_forward(logits, mask, labels):
    safe = jnp.where(mask[..., None], logits.astype(jnp.float32), 0.0)
    log_probs = jax.nn.log_softmax(safe)
    history, log_likelihood = _forward(log_probs, mask, labels)
    feasible = log_likelihood > 0.5 * _NEVER
    loss = jnp.where(feasible, -log_likelihood, jnp.inf)
    kept = (log_probs, history, log_likelihood, feasible, mask, labels, logits[:0])
    return loss, kept


def _ctc_backward(kept, cotangent):
    """dL/dlogit = p − γ: posterior of the class minus its occupancy on the paths."""
    log_probs, (blanks, symbols), log_likelihood, feasible, mask, labels, like = kept
    after_blank, after_label = _backward(log_probs, mask, labels)
    total = jnp.where(feasible, log_likelihood, 0.0)[None, :, None]
    label_valid = labels.mask[None]
    occupied_blank = jnp.sum(jnp.exp(blanks + after_blank - total), axis=-1)
    occupied = jnp.exp(symbols + after_label - total)
    occupied = jnp.where(label_valid, occupied, 0.0)
    classes = jax.nn.one_hot(labels.ids, log_probs.shape[-1], dtype=jnp.float32)
    occupancy = jnp.einsum("ubl,blp->bup", occupied, classes)
    occupancy = occupancy.at[:, :, 0].add(occupied_blank.T)
    scale = jnp.where(feasible, cotangent, 0.0)[:, None, None]
    gradient = jnp.where(mask[..., None], jnp.exp(log_probs) - occupancy, 0.0) * scale
    gradient = jnp.where(feasible[:, None, None], gradient, 0.0).astype(like.dtype)
    no_label = Labels(
        np.zeros(labels.ids.shape, jax.dtypes.float0),
        np.zeros(labels.mask.shape, jax.dtypes.float0),
    )
    return gradient, np.zeros(mask.shape, jax.dtypes.float0), no_label


ctc_loss.defvjp(_ctc_forward, _ctc_backward)


def consistency(
    logits_a: Float[Array, "B U P"],
    logits_b: Float[Array, "B U P"],
    mask: Bool[Array, "B U"],
) -> Float[Array, " B"]:
    """½ · Σ_t [KL(sg(p_b) ‖ p_a) + KL(sg(p_a) ‖ p_b)] over valid frames, in nats.

    Source: CR-CTC, arXiv 2410.05101, eq. 4.
    """
    valid = mask[..., None]
    log_a = jax.nn.log_softmax(jnp.where(valid, logits_a.astype(jnp.float32), 0.0))
    log_b = jax.nn.log_softmax(jnp.where(valid, logits_b.astype(jnp.float32), 0.0))

    def divergence(target, estimate):
        target = jax.lax.stop_gradient(target)
        return jnp.sum(jnp.exp(target) * (target - estimate), axis=-1)

    both = divergence(log_b, log_a) + divergence(log_a, log_b)
    return 0.5 * jnp.sum(jnp.where(mask, both, 0.0), axis=1)


def flat_start(
    logits: Float[Array, "B U P"], mask: Bool[Array, "B U"], labels: Labels
) -> Float[Array, " B"]:
    """Cross-entropy with each row's labels laid evenly over its valid frames, in nats.

    CTC from random weights sits on a plateau where the scores ignore the audio. An even
    segmentation is wrong by a few frames, yet right often enough to leave it. Source:
    the equal alignment that HMM systems (HTK, Kaldi) begin with.
    """
    count = labels.lengths()[:, None].astype(jnp.float32)
    frames = jnp.sum(mask, axis=1, keepdims=True).astype(jnp.float32)
    place = jnp.arange(mask.shape[1], dtype=jnp.float32)[None] + 0.5
    index = jnp.floor(place * count / jnp.maximum(frames, 1.0)).astype(jnp.int32)
    index = jnp.clip(index, 0, jnp.maximum(labels.lengths()[:, None] - 1, 0))
    targets = jnp.take_along_axis(labels.ids, index, axis=1)
    safe = jnp.where(mask[..., None], logits.astype(jnp.float32), 0.0)
    log_probs = jnp.take_along_axis(
        jax.nn.log_softmax(safe), targets[..., None], axis=2
    )
    return -jnp.sum(jnp.where(mask, log_probs[..., 0], 0.0), axis=1)


def greedy(
    logits: Float[Array, "B U P"],
    mask: Bool[Array, "B U"],
    before: Int[Array, " B"] | None = None,
) -> tuple[Array, Array]:
    """Best class of each frame, and which frames begin a new label.

    Args:
        logits: unnormalised scores.
        mask: valid frames.
        before: class of the frame before the first, in the middle of a stream.

    Returns:
        ids Int [B, U] (0 = blank, also behind the mask) and starts Bool [B, U], True
        where a label begins: not blank, not the same as the frame before. `ids[starts]`
        is the greedy CTC hypothesis.
    """
    ids = jnp.where(mask, jnp.argmax(logits, axis=-1), 0).astype(jnp.int32)
    previous = jnp.pad(ids[:, :-1], ((0, 0), (1, 0)))
    if before is not None:
        previous = previous.at[:, 0].set(before)
    return ids, (ids != 0) & (ids != previous)
