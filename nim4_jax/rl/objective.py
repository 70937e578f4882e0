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
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from nim4_jax.decode import offline
from nim4_jax.decode.recogniser import Budget
from nim4_jax.models.asr import Asr, Prompt
from nim4_jax.models.qwen3 import Qwen3
from nim4_jax.ops import cross_entropy
from nim4_jax.rl import grpo, rewards
from nim4_jax.rl.grpo import GrpoConfig
from nim4_jax.rl.rewards import RewardConfig, Sample
from nim4_jax.train.losses import DynamicChunks, Loss
from nim4_jax.train.state import REFERENCE
from nim4_jax.types import AsrBatch, Frames, Labels


class Decoder(Protocol):
    """What turns tokens into text; `text.tokenizer.Tokenizer` does."""

    end_id: int

    def decode(self, ids) -> str:
        """Text of some ids."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Judge:
    """Rewards of sampled tokens, on the host.

    Attributes:
        decoder: of the LLM's tokens.
        config: what counts how much.
    """

    decoder: Decoder
    config: RewardConfig = RewardConfig()

    def read(self, ids: np.ndarray, mask: np.ndarray) -> list[str]:
        """Texts of rows of tokens, the end token left out."""
        rows = (row[real] for row, real in zip(np.asarray(ids), np.asarray(mask)))
        end = self.decoder.end_id
        return [self.decoder.decode([int(i) for i in r if i != end]) for r in rows]

    def __call__(self, ids, mask, said, said_mask) -> np.ndarray:
        """float32 [G, K] for samples [G · K, L] and reference tokens [G, R]."""
        samples = [Sample(reference=text) for text in self.read(said, said_mask)]
        texts, count = self.read(ids, mask), len(ids) // len(said)
        groups = [texts[i : i + count] for i in range(0, len(texts), count)]
        return rewards.score_groups(samples, groups, self.config).total.astype(
            np.float32
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Grpo:
    """The clipped objective on fresh samples of the policy itself (stage 6).

    Attributes:
        prompt: token ids around the speech.
        judge: rewards of samples.
        steps: over which the temperature falls.
        objective: clipping and the pull towards the reference.
        samples: K transcripts of each utterance.
        hottest: temperature of the first step.
        coolest: temperature of the last.
        budget: tokens that a transcript may have.
        chunks: distribution of the chunk masks.
        vocab_chunk: answer places whose logits exist at once.
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

    def __post_init__(self):
        if self.samples < 2:
            raise ValueError(
                f"loss.samples={self.samples}: a group of one teaches nothing; ≥ 2."
            )

    def __call__(self, model: Asr, batch: AsrBatch, step: Int[Array, ""]) -> Loss:
        chunks, draws = jax.random.split(model.make_rng("augment"))
        speech = self._listen(model, batch, chunks)
        if model.is_initializing():
            model.answer_states(speech, self.prompt, batch.tokens, batch.suffix)
            return Loss(jnp.zeros(()), jnp.ones(()), {})
        temperature = grpo.temperature(step, self.steps, self.hottest, self.coolest)
        written = self._write(model, speech, batch, draws, temperature)
        answer = Labels(written.tokens, written.mask)
        log_probs = self._score(model, speech, answer, batch, temperature)
        reference = self._score_by_reference(model, batch, chunks, answer, temperature)
        rows, count = len(batch.audio.mask), self.samples
        earned = jax.pure_callback(
            self.judge,
            jax.ShapeDtypeStruct((rows, count), jnp.float32),
            *(written.tokens, written.mask, batch.tokens.ids, batch.tokens.mask),
        )
        gains, flat = grpo.advantages(earned)
        loss = grpo.token_loss(
            log_probs,
            # One step per rollout: the policy that sampled is the one that learns.
            jax.lax.stop_gradient(log_probs),
            reference,
            gains.reshape(-1),
            written.mask,
            self.objective,
            earned.reshape(-1),
        )
        apart = grpo.drift(written.log_probs, log_probs, written.mask)
        one = jnp.ones(())
        tokens = jnp.sum(written.mask, dtype=jnp.float32)
        metrics = {
            **loss.metrics,
            "temperature": (temperature, one),
            "flat_groups": (flat.astype(jnp.float32), jnp.float32(rows)),
            "length": (tokens, jnp.float32(rows * count)),
            "drift": (jax.lax.stop_gradient(apart.largest), one),
        }
        return loss.replace(metrics=metrics)

    def _listen(self, model: Asr, batch: AsrBatch, rng: Array) -> Frames:
        """Speech tokens; the encoder's one pass."""
        features = model.extract(batch.audio)
        length = -(-features.mask.shape[1] // 4)
        return model.adapt(model.encode(features, self.chunks.draw(rng, length)))

    def _write(self, model, speech, batch, rng, temperature) -> offline.Generation:
        """K transcripts of each utterance, drawn without gradient."""
        fixed = jax.lax.stop_gradient
        sequence = model.assemble(speech, self.prompt, suffix=batch.suffix)
        seconds = jnp.sum(batch.audio.mask, axis=1) / 16_000.0
        allowed = self.budget.first + jnp.ceil(self.budget.per_second * seconds)
        heard = jnp.any(speech.mask, axis=1)
        written = offline.generate(
            Qwen3(model.config.llm, model.config.policy),
            fixed(model.variables["params"]["llm"]),
            fixed(sequence.embeddings),
            sequence.mask,
            max_new_tokens=self.budget.count(batch.audio.mask.shape[1] / 16_000.0),
            end_id=self.judge.decoder.end_id,
            temperature=temperature,
            rng=rng,
            limits=jnp.where(heard, allowed, 0.0).astype(jnp.int32),
            samples=self.samples,
        )
        return fixed(written)

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

    def _score_by_reference(self, model, batch, rng, answer, temperature):
        """The same by the frozen policy: its own parts, and the others as they are."""
        params = model.variables["params"]
        if REFERENCE not in params:
            return None
        frozen = jax.lax.stop_gradient({**params, **params[REFERENCE]})

        def run(policy: Asr) -> Float[Array, "B L"]:
            speech = self._listen(policy, batch, rng)
            return self._score(policy, speech, answer, batch, temperature)

        return Asr(model.config).apply({"params": frozen}, method=run)
