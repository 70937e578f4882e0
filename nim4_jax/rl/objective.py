"""GRPO as a loss for the one train step: listen, write K transcripts, judge, learn.

The encoder hears each utterance once; its tokens are what all K transcripts are sampled
after (without gradient) and what their probabilities are computed from (with). Rewards
are the host's work, called back from within the compiled step, so a rollout stage needs
no loop of its own: its randomness is that of the step, and its cursor that of the data.

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

from nim4_jax import sharding, struct
from nim4_jax.decode import offline
from nim4_jax.decode.programs import Budget, Generation
from nim4_jax.layers import Policy
from nim4_jax.models.asr import Asr, Prompt
from nim4_jax.models.qwen3 import Qwen3
from nim4_jax.ops import cross_entropy
from nim4_jax.rl import grpo, rollout
from nim4_jax.rl.grpo import GrpoConfig
from nim4_jax.rl.rollout import Rehearsed, Rollout
from nim4_jax.train import optim
from nim4_jax.train.flops import Lengths, Pass
from nim4_jax.train.losses import DynamicChunks, Loss, count_frames, key_rows
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

        # The step's own encoder pass serves the rollout too; the reference has its own.
        return (*score(True), *self.drawing_passes(lengths)[2:], *score(False))

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
        batch: AsrBatch | Rehearsed,
        step: Int[Array, ""],
        rows: Int[Array, " B"] | None = None,
    ) -> Loss:
        """Roll out and learn; of a `Rehearsed` batch only learn.

        Metrics beside those of `grpo.token_loss`: `temperature`; `flat_groups`, the
        share of utterances whose samples all earned the same; `resampled_groups` and
        `dropped_groups`, the shares that were rolled out again or left out; `length`,
        tokens a sample; `drift` and `drift_largest`, the mean and largest difference of
        a token's log-probability between sampler and trainer, nats; `drifted_tokens`,
        the share of tokens beyond the limit; `broken_row`, the last row with a
        log-probability that is not finite, −1 for none.
        """
        inputs = batch.batch if isinstance(batch, Rehearsed) else batch
        setting = self._set(model, step)
        speech = self._listen(model, inputs, setting.chunks)
        if model.is_initializing():
            model.answer_states(speech, self.prompt, inputs.tokens, inputs.suffix)
            return Loss(jnp.zeros(()), jnp.ones(()), {})
        if rows is None:
            rows = jnp.arange(len(inputs.audio.mask))
        if isinstance(batch, Rehearsed):
            rolled = jax.lax.stop_gradient(batch.rollout)
        else:
            rolled = self._roll(model, speech, inputs, setting, rows)
        fresh = not isinstance(batch, Rehearsed)
        return self._learn(model, speech, inputs, setting, rolled, rows, fresh)

    def roll(
        self, model: Asr, batch: AsrBatch, step: Int[Array, ""], rows=None
    ) -> Rollout:
        """The rollout alone: what `__call__` would learn from, of the same randomness.

        Args:
            model: bound, with the parts `PARTS`.
            batch: B utterances.
            step: number of steps done.
            rows: numbers of the rows in the whole batch; None for all of it.
        """
        setting = self._set(model, step)
        speech = self._listen(model, batch, setting.chunks)
        if rows is None:
            rows = jnp.arange(len(batch.audio.mask))
        return self._roll(model, speech, batch, setting, rows)

    def _set(self, model: Asr, step: Int[Array, ""]) -> _Setting:
        chunks, draws = jax.random.split(model.make_rng("augment"))
        cooled = grpo.temperature(step, self.steps, self.hottest, self.coolest)
        return _Setting(chunks, draws, cooled)

    def _listen(self, model: Asr, batch: AsrBatch, rng: Array) -> Frames:
        """Speech tokens; the encoder's one pass."""
        features = model.extract(batch.audio)
        chunking = self.chunks.draw(rng, count_frames(model, features))
        return model.adapt(model.encode(features, chunking))

    def write(self, model: Asr, batch: AsrBatch, step: Int[Array, ""]) -> Generation:
        """The first attempt of `roll` before it is judged; needs no host."""
        setting = self._set(model, step)
        speech = self._listen(model, batch, setting.chunks)
        rows = jnp.arange(len(batch.audio.mask))
        write = self._writer(model, speech, batch, setting, rows)
        return write(jnp.zeros((), jnp.int32), jnp.ones(len(rows), jnp.bool_))

    def _roll(self, model, speech, batch, setting: _Setting, rows) -> Rollout:
        """K judged transcripts of each utterance, drawn without gradient."""
        write = self._writer(model, speech, batch, setting, rows)

        def attempt(number: Int[Array, ""], chosen: Bool[Array, " B"]) -> Rollout:
            return self._judge(write(number, chosen), batch)

        rolled = rollout.roll_again(attempt, len(rows), self.oversample)
        return jax.lax.stop_gradient(rolled)

    def _writer(self, model, speech, batch, setting: _Setting, rows):
        """(number of the attempt, rows to write for) → K transcripts of each."""
        fixed = jax.lax.stop_gradient
        sequence = fixed(model.assemble(speech, self.prompt, suffix=batch.suffix))
        seconds = jnp.sum(batch.audio.mask, axis=1) / 16_000.0
        allowed = self.budget.first + jnp.ceil(self.budget.per_second * seconds)
        allowed = jnp.where(jnp.any(speech.mask, axis=1), allowed, 0.0)
        llm = Qwen3(model.config.llm, model.config.policy)
        params = fixed(model.variables["params"]["llm"])

        def write(number: Int[Array, ""], chosen: Bool[Array, " B"]) -> Generation:
            keys = key_rows(jax.random.fold_in(setting.draws, number), rows, len(rows))
            written = offline.generate(
                llm,
                params,
                sequence.embeddings,
                sequence.mask,
                max_new_tokens=self.budget.count(batch.audio.mask.shape[1] / 16_000.0),
                end_id=self.judge.decoder.end_id,
                temperature=setting.temperature,
                rng=rollout.key_samples(keys, self.samples),
                limits=jnp.where(chosen, allowed, 0.0).astype(jnp.int32),
                samples=self.samples,
            )
            return fixed(written)

        return write

    def _judge(self, written: Generation, batch: AsrBatch) -> Rollout:
        """The transcripts with what the host says they are worth."""
        count = len(batch.audio.mask)
        read = [batch.tokens, *([batch.wanted] if batch.wanted is not None else [])]

        def judge(*arrays: Array) -> Float[Array, "B K"]:
            rows = len(arrays[2])
            earned = jax.ShapeDtypeStruct((rows, self.samples), jnp.float32)
            return jax.pure_callback(self.judge, earned, *arrays)

        # Each host judges the rows that lie on its devices.
        earned = sharding.split_rows(judge, count)(
            written.tokens,
            written.mask,
            *(leaf for labels in read for leaf in (labels.ids, labels.mask)),
        )
        tokens, mask, log_probs = (
            leaf.reshape(count, self.samples, -1)
            for leaf in (written.tokens, written.mask, written.log_probs)
        )
        return Rollout(tokens, mask, log_probs, earned, jnp.ones(count, jnp.int32))

    def _learn(self, model, speech, batch, setting, rolled, rows, fresh: bool) -> Loss:
        """The objective on a rollout, its metrics, and what an alarm looks at."""
        answer = rolled.answers()
        sampled = rolled.log_probs.reshape(answer.ids.shape)
        log_probs = self._score(model, speech, answer, batch, setting.temperature)
        reference = self._score_by_reference(model, batch, setting, answer)
        flat, heard = rolled.flat(), rolled.heard()
        dropped = flat if self.drop_flat else jnp.zeros_like(flat)
        loss = grpo.token_loss(
            log_probs,
            # With one step per rollout the policy that sampled is the one that learns.
            jax.lax.stop_gradient(log_probs) if fresh else sampled,
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
        return loss.replace(total=total, metrics=metrics, largest=largest)

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
