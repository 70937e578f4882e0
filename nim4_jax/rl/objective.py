"""GRPO as a loss of the train step, with the sampling of its transcripts.

A step is three pieces: `write` samples K transcripts of each utterance (a program), the
host judges them, `__call__` learns (a program, the train step). `worker.RolloutWorker`
joins them. No program calls the host, so both are kept by JAX's compilation cache. What
is drawn follows from the number of the step and of the row alone, so that a stage of
reinforcement learning needs no loop and no checkpoint of its own.

Source: arXiv 2604.18105 §2.2.5.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from nim4_jax import layers, struct
from nim4_jax.decode import offline
from nim4_jax.decode.programs import Budget, Generation
from nim4_jax.features import SAMPLE_RATE
from nim4_jax.layers import Policy
from nim4_jax.models.asr import Asr, Prompt
from nim4_jax.models.qwen3 import Qwen3
from nim4_jax.ops import cross_entropy
from nim4_jax.ops.chunking import DynamicChunks
from nim4_jax.rl import grpo, rollout
from nim4_jax.rl.grpo import GrpoConfig
from nim4_jax.rl.rollout import Experience, Rollout
from nim4_jax.train import optim
from nim4_jax.train.flops import Lengths, Pass
from nim4_jax.train.losses import Loss, count_frames, key_rows
from nim4_jax.train.state import REFERENCE
from nim4_jax.types import AsrBatch, Frames, Labels

DRIFT_LIMITS = {"float32": 0.01, "bfloat16": 0.5}
"""Default drift limits by compute dtype, nats: far above the rounding of nearly all
tokens, far below a bug."""

PARTS = ("cmvn", "encoder", "adaptor", "llm")
"""Parts of the parameters that a rollout needs."""


@struct.dataclass
class _Setting:
    """What is drawn once a step.

    Attributes:
        chunks: key of the chunk masks, the same for every row.
        draws: key of the samples.
        temperature: of the rollout.
    """

    chunks: Key[Array, ""]
    draws: Key[Array, ""]
    temperature: Float[Array, ""]


@dataclasses.dataclass(frozen=True, eq=False)
class Grpo:
    """The clipped objective on fresh samples of the policy itself (stage 6).

    Each rollout is of the policy as it is before the update, and learnt from once, so
    the ratio of `objective` is 1: see `GrpoConfig` for what that means for clipping.

    Attributes:
        prompt: token ids around the speech.
        judge: rewards of samples, see `judge.Judge`.
        steps: over which the temperature falls.
        objective: clipping and the pull towards the reference.
        samples: K transcripts of each utterance.
        hottest: temperature of the first step.
        coolest: temperature of the last.
        budget: tokens that a transcript may have.
        chunks: distribution of the chunk masks.
        vocab_chunk: answer places whose logits exist at once.
        oversample: how often a group is rolled out at most, while all its rewards are
            equal; 1: once.
        drop_flat: whether groups whose rewards stay equal leave the loss, its weight
            and the pull towards the reference with them (DAPO); else their tokens
            count, and only the pull acts on them.
        drift_limit: difference between the sampler's log-probability of a token and the
            trainer's, nats, beyond which more than a few tokens stop the run, see
            `alarm`; 0: by the compute dtype.
    """

    prompt: Prompt
    judge: Callable[..., np.ndarray]
    steps: int
    objective: GrpoConfig = GrpoConfig()
    samples: int = 8
    hottest: float = 1.0
    coolest: float = 0.7
    budget: Budget = Budget()
    chunks: DynamicChunks = DynamicChunks()
    vocab_chunk: int = 128
    oversample: int = 1
    drop_flat: bool = False
    drift_limit: float = 0.0

    noiseless: ClassVar[bool] = True
    """Dropout in the policy alone would be a distance from sampler and reference."""

    def __post_init__(self):
        if self.samples < 2:
            raise ValueError(
                f"loss.samples={self.samples}: a group of one teaches nothing; ≥ 2."
            )
        if self.oversample < 1:
            raise ValueError(
                f"loss.oversample={self.oversample} must be ≥ 1 (1: each group once)."
            )
        if not self.drift_limit >= 0.0:
            raise ValueError(
                f"loss.drift_limit={self.drift_limit} must be a number of nats ≥ 0; 0 "
                "takes the one of the compute dtype."
            )

    def find_drift_limit(self, policy: Policy) -> float:
        """Nats; the setting, or else the default of the compute dtype."""
        return self.drift_limit or DRIFT_LIMITS[policy.compute]

    def passes(self, lengths: Lengths) -> tuple[Pass, ...]:
        """What a step computes, see `flops`; samples as long as the transcripts."""
        whole = lengths.prompt(self.prompt) + lengths.answer
        pairs = self.samples * whole * (whole + 1) / 2
        written = self.samples * lengths.answer

        def score(learns: bool) -> tuple[Pass, ...]:
            return (
                Pass.encoder(lengths.frames, learns),
                Pass("adaptor", lengths.speech, learns=learns),
                Pass("llm", self.samples * whole, pairs, learns),
                Pass("unembed", written, learns=learns),
            )

        return (*score(True), *self.drawing_passes(lengths), *score(False))

    def drawing_passes(self, lengths: Lengths) -> tuple[Pass, ...]:
        """What a rollout alone computes."""
        prompt, said = lengths.prompt(self.prompt), lengths.answer
        written = self.samples * said
        pairs = prompt * (prompt + 1) / 2 + written * (prompt + (said + 1) / 2)
        return (
            Pass.encoder(lengths.frames, learns=False),
            Pass("adaptor", lengths.speech, learns=False),
            Pass("llm", prompt + written, pairs, learns=False),
            Pass("unembed", written, learns=False),
        )

    def __call__(
        self,
        model: Asr,
        batch: Experience | AsrBatch,
        step: Int[Array, ""],
        rows: Int[Array, " B"] | None = None,
    ) -> Loss:
        """The objective on a batch and its judged samples.

        Metrics beside those of `grpo.token_loss`: `temperature`; `flat_groups`, the
        share of utterances whose samples all earned the same; `resampled_groups` and
        `dropped_groups`, the shares that were rolled out again or left out; `length`,
        tokens a sample; `drift` and `drift_largest`, the mean and largest difference of
        a token's log-probability between sampler and trainer, nats; `drifted_tokens`,
        the share of tokens beyond the limit; `broken_row`, the last row with a
        log-probability that is not finite, −1 for none.

        Args:
            model: bound.
            batch: with samples; without them only where parameters are initialised.
            step: number of steps done.
            rows: numbers of the rows in the whole batch; None for all of it.

        Raises:
            TypeError: a batch without samples.
        """
        setting = self._set(model, step)
        if model.is_initializing():
            inputs = batch.batch if isinstance(batch, Experience) else batch
            speech = self._listen(model, inputs, setting.chunks)
            model.answer_states(speech, self.prompt, inputs.tokens, inputs.suffix)
            return Loss(jnp.zeros(()), jnp.ones(()), {})
        if not isinstance(batch, Experience):
            raise TypeError(
                f"GRPO learns from an Experience, got {type(batch).__name__}: samples "
                "are written and judged before the step. Give the loop "
                "worker.RolloutWorker(model, recipe).prepare."
            )
        if rows is None:
            rows = jnp.arange(len(batch.batch.audio.mask))
        speech = self._listen(model, batch.batch, setting.chunks)
        rolled = jax.lax.stop_gradient(batch.rollout)
        return self._learn(model, speech, batch.batch, setting, rolled, rows)

    def _set(self, model: Asr, step: Int[Array, ""]) -> _Setting:
        chunks, draws = jax.random.split(model.make_rng("augment"))
        cooled = grpo.temperature(step, self.steps, self.hottest, self.coolest)
        return _Setting(chunks, draws, cooled)

    def _listen(self, model: Asr, batch: AsrBatch, rng: Array) -> Frames:
        """Speech tokens; the encoder's one pass."""
        features = model.extract(batch.audio)
        chunking = self.chunks.draw(rng, count_frames(model, features))
        return model.adapt(model.encode(features, chunking))

    def write(
        self,
        model: Asr,
        batch: AsrBatch,
        step: Int[Array, ""],
        attempt: Int[Array, ""],
        chosen: Bool[Array, " B"],
        rows: Int[Array, " B"],
    ) -> Generation:
        """K transcripts of each utterance, of the randomness that `__call__` has.

        Args:
            model: bound, with the parts `PARTS`.
            batch: B utterances.
            step: number of steps done.
            attempt: number of the attempt, from 0: each draws anew.
            chosen: rows to write for; the others stay empty.
            rows: numbers of the rows in the whole batch.

        Returns:
            Generation of [B · K, L]; the K of an utterance stand together.
        """
        setting = self._set(model, step)
        speech = self._listen(model, batch, setting.chunks)
        sequence = model.assemble(speech, self.prompt, suffix=batch.suffix)
        seconds = jnp.sum(batch.audio.mask, axis=1) / SAMPLE_RATE
        allowed = self.budget.first + jnp.ceil(self.budget.per_second * seconds)
        allowed = jnp.where(chosen & jnp.any(speech.mask, axis=1), allowed, 0.0)
        policy = model.config.policy
        keys = key_rows(jax.random.fold_in(setting.draws, attempt), rows, len(rows))
        return offline.generate(
            Qwen3(model.config.llm, policy),
            layers.cast_matrices(model.variables["params"]["llm"], policy),
            sequence.frames(),
            offline.Stop(
                self.budget.count(batch.audio.mask.shape[1] / SAMPLE_RATE),
                self.judge.decoder.end_id,
                allowed.astype(jnp.int32),
            ),
            offline.Sampling(
                setting.temperature,
                rollout.key_samples(keys, self.samples),
                samples=self.samples,
            ),
        )

    def _learn(self, model, speech, batch, setting, rolled, rows) -> Loss:
        """The objective on a rollout, its metrics, and what an alarm looks at."""
        answer = rolled.answers()
        sampled = rolled.log_probs.reshape(answer.ids.shape)
        log_probs = self._score(model, speech, answer, batch, setting.temperature)
        reference = self._score_by_reference(model, batch, setting, answer)
        flat, heard = rolled.flat(), rolled.heard()
        dropped = flat if self.drop_flat else jnp.zeros_like(flat)
        loss = grpo.token_loss(
            log_probs,
            # The policy that sampled is the one that learns; what the sampler says
            # differs by rounding, which would only add noise to the ratio.
            jax.lax.stop_gradient(log_probs),
            reference,
            grpo.advantages(rolled.rewards).reshape(-1),
            answer.mask & ~jnp.repeat(dropped, self.samples)[:, None],
            self.objective,
        )
        broken = grpo.find_broken(log_probs, answer.mask)
        broken |= grpo.find_broken(sampled, answer.mask)
        if reference is not None:
            broken |= grpo.find_broken(reference, answer.mask)
        broken = jnp.any(broken.reshape(-1, self.samples), axis=1)
        limit = self.find_drift_limit(model.config.policy)
        fixed = jax.lax.stop_gradient(log_probs)
        drift = grpo.drift(sampled, fixed, answer.mask, limit)
        largest = {
            "drift_largest": drift.largest,
            "broken_row": jnp.max(jnp.where(broken, rows, -1)).astype(jnp.float32),
        }
        metrics = {**loss.metrics, **self._describe(rolled, flat, heard, dropped)}
        metrics["drift"] = (drift.total, drift.count)
        metrics["drifted_tokens"] = (drift.beyond, drift.count)
        metrics["temperature"] = (setting.temperature, jnp.ones(()))
        # One lost row makes the step worthless, also where its own loss is masked.
        total = jnp.where(jnp.any(broken), jnp.nan, loss.total)
        return dataclasses.replace(loss, total=total, metrics=metrics, largest=largest)

    def _describe(self, rolled: Rollout, flat, heard, dropped):
        """Metrics of a rollout, as sums over utterances or samples."""

        def total(values: Array) -> Float[Array, ""]:
            return jnp.sum(values, dtype=jnp.float32)

        spoken, samples = total(heard), total(jnp.any(rolled.mask, axis=2))
        earned = jnp.where(jnp.any(rolled.mask, axis=2), rolled.rewards, 0.0)
        metrics = {
            "reward": (total(earned), samples),
            "flat_groups": (total(flat), spoken),
            "length": (total(rolled.mask), samples),
        }
        if self.oversample > 1:
            metrics["resampled_groups"] = (total(rolled.attempts > 1), spoken)
        if self.drop_flat:
            metrics["dropped_groups"] = (total(dropped), spoken)
        return metrics

    def _score(self, model, speech, answer, batch, temperature) -> Float[Array, "B L"]:
        """Log-probabilities of the samples at the rollout's temperature."""

        def repeat(labels):
            return jax.tree.map(lambda x: jnp.repeat(x, self.samples, axis=0), labels)

        hidden = model.answer_states(
            repeat(speech), self.prompt, answer, repeat(batch.suffix)
        )
        log_probs, _ = cross_entropy.token_log_probs(
            hidden,
            answer.ids,
            lambda states: model.unembed(states) / temperature,
            self.vocab_chunk,
        )
        return jnp.where(answer.mask, log_probs, 0.0)

    def _score_by_reference(self, model, batch, setting: _Setting, answer: Labels):
        """The same by the frozen policy: its own parts, and the others as they are."""
        params = model.variables["params"]
        if REFERENCE not in params:
            return None
        copied = optim.flatten(params[REFERENCE])
        merged = optim.unflatten({**optim.flatten(params), **copied})
        frozen = jax.lax.stop_gradient(merged)

        def run(policy: Asr) -> Float[Array, "B L"]:
            speech = self._listen(policy, batch, setting.chunks)
            return self._score(policy, speech, answer, batch, setting.temperature)

        return Asr(model.config).apply({"params": frozen}, method=run)
