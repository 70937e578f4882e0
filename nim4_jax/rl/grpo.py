"""Group-relative policy optimisation: pure maths on rewards and log-probabilities.

A group is one utterance, here G of them, with K transcripts each; B = G · K rows. No
model is called: whoever has the log-probabilities passes them in.

Source: arXiv 2402.03300 (GRPO), 2503.14476 (DAPO), 2507.18071 (GSPO).
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from nim4_jax import struct
from nim4_jax.train.losses import Loss

RATIOS = ("token", "sequence")
_MOST = 20.0
"""Largest log-ratio, nats, so that exp does not overflow; no gradient beyond it."""


@dataclasses.dataclass(frozen=True)
class GrpoConfig:
    """The clipped objective and its pull towards the reference.

    Clipping and the kind of ratio act on samples of an older policy. Stage 6 makes one
    update of each rollout (μ = 1, as DeepSeekMath trained with GRPO): there every ratio
    is 1, nothing is clipped, and both kinds have the same gradient.

    Attributes:
        clip_low: a ratio below 1 − clip_low gains nothing more; no unit.
        clip_high: nor one above 1 + clip_high; DAPO's clip-higher takes 0.28. Sequence
            ratios lie far nearer to 1: GSPO takes 3e-4 and 4e-4.
        beta: weight of the KL divergence from the frozen reference, per nat; 0 needs no
            reference.
        ratio: "token": a ratio for each token; "sequence": the geometric mean of a
            row's token ratios, for each of its tokens (GSPO).
    """

    clip_low: float = 0.2
    clip_high: float = 0.2
    beta: float = 0.04
    ratio: str = "token"

    def __post_init__(self):
        if not 0.0 < self.clip_low < 1.0:
            raise ValueError(
                f"grpo.clip_low={self.clip_low} must lie in (0, 1): ratios are kept "
                "above 1 − clip_low."
            )
        if not 0.0 < self.clip_high < math.inf:
            raise ValueError(
                f"grpo.clip_high={self.clip_high} must be a number > 0: ratios are "
                "kept below 1 + clip_high."
            )
        if not 0.0 <= self.beta < math.inf:
            raise ValueError(
                f"grpo.beta={self.beta} must be a number ≥ 0; 0 needs no reference."
            )
        if self.ratio not in RATIOS:
            raise ValueError(f"grpo.ratio={self.ratio!r}; choose from {RATIOS}.")


@struct.dataclass
class Drift:
    """How far the sampler's log-probabilities are from the trainer's, as sums.

    Attributes:
        total: sum of the absolute differences, nats.
        beyond: tokens whose difference exceeds a limit, those that are NaN among them.
        count: tokens.
        largest: largest absolute difference, nats.
    """

    total: Float[Array, ""]
    beyond: Float[Array, ""]
    count: Float[Array, ""]
    largest: Float[Array, ""]


def advantages(
    rewards: Float[Array, "G K"], epsilon: float = 1e-6
) -> Float[Array, "G K"]:
    """(reward − mean) / (std + ε) within each group, float32.

    The standard deviation is the population's. A flat group (`find_flat`) has exactly
    zero advantages.

    Args:
        rewards: K of each of G utterances.
        epsilon: ε, in units of reward.
    """
    rewards = rewards.astype(jnp.float32)
    centred = rewards - jnp.mean(rewards, axis=1, keepdims=True)
    spread = jnp.sqrt(jnp.mean(jnp.square(centred), axis=1, keepdims=True))
    flat = find_flat(rewards)[:, None]
    return jnp.where(flat, 0.0, centred / (spread + epsilon))


def find_flat(rewards: Float[Array, "G K"]) -> Bool[Array, " G"]:
    """Groups whose rewards are all equal: nothing can be learnt from them.

    Args:
        rewards: K of each of G utterances, on the host or on devices.
    """
    return rewards.max(axis=1) == rewards.min(axis=1)


def find_ratios(
    log_probs: Float[Array, "B L"],
    old_log_probs: Float[Array, "B L"],
    mask: Bool[Array, "B L"],
    kind: str,
) -> Float[Array, "B L"]:
    """Importance ratios π_new / π_old of tokens or sequences; 1 behind the mask.

    kind     | ratio of token t of row b
    token    | exp(log π(t) − log π_old(t))
    sequence | exp(mean over the row's tokens of log π − log π_old)

    Args:
        log_probs: of the policy, nats.
        old_log_probs: of the policy that sampled, nats.
        mask: True for sampled tokens, the end token among them.
        kind: one of `RATIOS`.

    Returns:
        float32 ratios.

    Raises:
        ValueError: an unknown kind.
    """
    if kind not in RATIOS:
        raise ValueError(f"unknown ratio {kind!r}; choose from {RATIOS}.")
    change = log_probs.astype(jnp.float32) - old_log_probs.astype(jnp.float32)
    change = jnp.where(mask, change, 0.0)
    if kind == "sequence":
        count = jnp.sum(mask, axis=1, keepdims=True, dtype=jnp.float32)
        mean = jnp.sum(change, axis=1, keepdims=True) / jnp.maximum(count, 1.0)
        change = jnp.where(mask, mean, 0.0)
    return jnp.exp(jnp.minimum(change, _MOST))


def kl_divergence(
    log_probs: Float[Array, "B L"],
    reference_log_probs: Float[Array, "B L"],
    mask: Bool[Array, "B L"],
) -> Float[Array, "B L"]:
    """exp(r) − r − 1 with r = log π_ref − log π; 0 behind the mask.

    It is never negative, 0 only where both agree, and its mean over samples of π is
    KL(π ‖ π_ref): the estimator called k3.

    Args:
        log_probs: of the policy, nats.
        reference_log_probs: of the frozen reference, nats.
        mask: True for sampled tokens.

    Returns:
        float32 divergence of each token, nats.
    """
    change = reference_log_probs.astype(jnp.float32) - log_probs.astype(jnp.float32)
    change = jnp.minimum(jnp.where(mask, change, 0.0), _MOST)
    # expm1, and never below 0: near 0 the difference is smaller than exp's rounding.
    return jnp.maximum(jnp.expm1(change) - change, 0.0)


def token_loss(
    log_probs: Float[Array, "B L"],
    old_log_probs: Float[Array, "B L"],
    reference_log_probs: Float[Array, "B L"] | None,
    advantages: Float[Array, " B"],
    mask: Bool[Array, "B L"],
    config: GrpoConfig,
    rewards: Float[Array, " B"] | None = None,
) -> Loss:
    """What GRPO minimises: a sum over tokens, with their number.

    Σ_t −min(ρ_t A, clip(ρ_t, 1 − low, 1 + high) A) + β · KL_t. Every token weighs the
    same, whatever the length of its row, so micro-batches add up to the batch. With
    sequence ratios a token's gradient is −ρA too: ρ holds 1/length of it, and there are
    as many tokens.

    Args:
        log_probs: of the policy that learns, nats, at the temperature that sampled.
        old_log_probs: of the policy that sampled; no gradient flows into them.
        reference_log_probs: of the frozen reference; None if β = 0.
        advantages: of each row, `advantages(…).reshape(-1)`.
        mask: True for sampled tokens, the end token among them; what stands behind it
            may be NaN without effect.
        config: clipping, β and the kind of ratio.
        rewards: of each row, only for the metrics.

    Returns:
        The loss. Metrics: `ratio`; `clip_fraction`, the share of tokens whose gradient
        is cut; `entropy`, the mean of −log π of what was sampled, nats; `kl`, nats, if
        there is a reference; `reward`, the mean over rows with tokens, if there are
        rewards.

    Raises:
        ValueError: β > 0 without a reference.
    """
    if config.beta and reference_log_probs is None:
        raise ValueError(
            f"grpo.beta={config.beta} but there are no reference log-probabilities; "
            "pass those of the frozen reference, or set grpo.beta=0."
        )
    old_log_probs = jax.lax.stop_gradient(old_log_probs)
    gain = jax.lax.stop_gradient(advantages.astype(jnp.float32))[:, None]
    gain = jnp.where(mask, gain, 0.0)
    ratio = find_ratios(log_probs, old_log_probs, mask, config.ratio)
    free = ratio * gain
    bound = jnp.clip(ratio, 1.0 - config.clip_low, 1.0 + config.clip_high) * gain
    total = -jnp.sum(jnp.minimum(free, bound))
    weight = jnp.sum(mask, dtype=jnp.float32)
    surprise = -jnp.where(mask, log_probs.astype(jnp.float32), 0.0)
    metrics = {
        "ratio": (jnp.sum(jnp.where(mask, ratio, 0.0)), weight),
        "clip_fraction": (jnp.sum(bound < free, dtype=jnp.float32), weight),
        "entropy": (jnp.sum(surprise), weight),
    }
    if reference_log_probs is not None:
        reference_log_probs = jax.lax.stop_gradient(reference_log_probs)
        divergence = jnp.sum(kl_divergence(log_probs, reference_log_probs, mask))
        metrics["kl"] = (divergence, weight)
        if config.beta:
            total = total + config.beta * divergence
    if rewards is not None:
        real = jnp.any(mask, axis=1)
        earned = jnp.sum(jnp.where(real, rewards.astype(jnp.float32), 0.0))
        metrics["reward"] = (earned, jnp.sum(real, dtype=jnp.float32))
    return Loss(total, weight, metrics)


def temperature(
    step: int | Int[Array, ""], steps: int, start: float = 1.0, end: float = 0.7
) -> Float[Array, ""]:
    """Sampling temperature of a rollout: half a cosine from `start` to `end`.

    Args:
        step: from 0; from `steps` on the temperature is `end`.
        steps: length of the stage.
        start: temperature of step 0.
        end: the last one.

    Raises:
        ValueError: no steps, or a temperature that is not positive.
    """
    if steps < 1:
        raise ValueError(f"a stage of {steps} steps; expected at least 1.")
    if not (0.0 < start < math.inf and 0.0 < end < math.inf):
        raise ValueError(
            f"temperatures from {start} to {end} must be positive numbers: greedy "
            "transcripts of one utterance are all the same."
        )
    done = jnp.minimum(jnp.asarray(step, jnp.float32) / steps, 1.0)
    return end + (start - end) * 0.5 * (1.0 + jnp.cos(jnp.pi * done))


def drift(
    sampler_log_probs: Float[Array, "B L"],
    recomputed: Float[Array, "B L"],
    mask: Bool[Array, "B L"],
    limit: float,
) -> Drift:
    """How far the sampler's log-probabilities are from the teacher-forced ones.

    The share of tokens beyond a limit says whether a quantile exceeds it, and adds up
    over devices and micro-batches, as a quantile itself does not. The largest of many
    differences does not say it: rounding has a tail, so it grows with their number.

    Args:
        sampler_log_probs: as the sampler gave them, nats.
        recomputed: of the same tokens by the trainer, same weights, nats.
        mask: True for sampled tokens.
        limit: nats.

    Returns:
        The differences; NaN where a log-probability is, 0 without any token.
    """
    apart = sampler_log_probs.astype(jnp.float32) - recomputed.astype(jnp.float32)
    apart = jnp.where(mask, jnp.abs(apart), 0.0)
    return Drift(
        total=jnp.sum(apart),
        beyond=jnp.sum(~(apart <= limit), dtype=jnp.float32),
        count=jnp.sum(mask, dtype=jnp.float32),
        largest=jnp.max(apart, initial=0.0),
    )


def find_broken(
    log_probs: Float[Array, "B L"], mask: Bool[Array, "B L"]
) -> Bool[Array, " B"]:
    """Rows with a log-probability that is NaN or infinite.

    Args:
        log_probs: nats.
        mask: True for sampled tokens; the others are not looked at.
    """
    return jnp.any(mask & ~jnp.isfinite(log_probs), axis=1)
