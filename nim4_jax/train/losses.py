"""The losses of the stages: callable dataclasses over a bound model and a batch.

A loss returns sums and their denominators, never means, so that shards and
micro-batches add up; the train step divides once. What is random of a row depends on
the row's number in the whole batch (`rows`), what is random of the batch on the step.
`couples_rows` names the settings under which a loss is no sum over rows.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import einops
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from nim4_jax import struct
from nim4_jax.models.asr import Asr, Prompt
from nim4_jax.ops import cross_entropy, ctc, spec_augment
from nim4_jax.ops.chunking import Chunking, DynamicChunks
from nim4_jax.ops.spec_augment import SpecAugmentConfig
from nim4_jax.train.flops import Lengths, Pass
from nim4_jax.types import AsrBatch, Frames, Labels

Ratio = tuple[Float[Array, ""], Float[Array, ""]]


@struct.dataclass
class Loss:
    """A loss not yet divided.

    Attributes:
        total: sum over the batch, nats.
        weight: what it is a sum of (frames or tokens).
        metrics: name → (sum, denominator).
        largest: name → the largest value of any row, for metrics that are no sums.
    """

    total: Float[Array, ""]
    weight: Float[Array, ""]
    metrics: dict[str, Ratio]
    largest: dict[str, Float[Array, ""]] = dataclasses.field(default_factory=dict)

    def join(self, other: Loss) -> Loss:
        """The loss of both batches' rows together."""
        sums = [(loss.total, loss.weight, loss.metrics) for loss in (self, other)]
        total, weight, metrics = jax.tree.map(jnp.add, *sums)
        largest = jax.tree.map(jnp.maximum, self.largest, other.largest)
        return Loss(total, weight, metrics, largest)


def key_rows(rng: Array, rows: Int[Array, " B"] | None, count: int) -> Array:
    """A key per row that depends on nothing but the row's number.

    Args:
        rng: one key.
        rows: numbers of the rows in the whole batch; None for 0 … count − 1.
        count: B.
    """
    rows = jnp.arange(count) if rows is None else rows
    return jax.vmap(lambda row: jax.random.fold_in(rng, row))(rows)


def _beside(*parts: Any) -> Any:
    """Rows of all parts, those of one number beside each other.

    Behind each other they would be moved over a mesh whose devices hold blocks of rows.
    """

    def interleave(*leaves: Array) -> Array:
        stacked = jnp.stack(leaves, axis=1)
        return einops.rearrange(stacked, "b part ... -> (b part) ...")

    return jax.tree.map(interleave, *parts)


def count_frames(model: Asr, features: Frames) -> int:
    """Encoder frames of a padded batch of features."""
    return -(-features.mask.shape[1] // model.config.encoder.frame_stride)


def _phoneme_errors(logits: Array, frames: Frames, labels: Labels) -> Ratio:
    """A cheap proxy of the error rate: |hypothesis − label length| over labels."""
    _, starts = ctc.greedy(logits, frames.mask)
    count = jnp.sum(starts, axis=1)
    difference = jnp.abs(count - labels.lengths()).astype(jnp.float32)
    return jnp.sum(difference), jnp.sum(labels.mask, dtype=jnp.float32)


@dataclasses.dataclass(frozen=True)
class CrCtc:
    """Phoneme CR-CTC under dynamic chunks (stage 1 and the phoneme head).

    L = ½(CTC_a + CTC_b) + α(step) · consistency(a, b); with one view, plain CTC.

    Attributes:
        views: 2 for CR-CTC, 1 for CTC.
        alpha: weight of the consistency term.
        alpha_warmup: steps over which α rises linearly from 0.
        flat_start: steps over which CTC takes over from an even segmentation, 0 for
        none;
            only for training from random weights.
        augment: SpecAugment amounts, drawn anew for each view after one common warp.
        chunks: distribution of the chunk masks.
        dual: the first of two views sees everything and only the second is cut into
            chunks, so that each learns from the other: one model for both modes.

    Sources: arXiv 2410.05101; SPEC §3; dual-mode training: arXiv 2010.06030.
    """

    views: int = 2
    alpha: float = 0.2
    alpha_warmup: int = 2_000
    flat_start: int = 0
    augment: SpecAugmentConfig = SpecAugmentConfig()
    chunks: DynamicChunks = DynamicChunks()
    dual: bool = False

    def __post_init__(self):
        if self.views not in (1, 2):
            raise ValueError(f"loss.views={self.views} must be 1 (CTC) or 2 (CR-CTC).")
        if self.dual and self.views != 2:
            raise ValueError(f"loss.dual needs loss.views=2, got {self.views}.")

    def passes(self, lengths: Lengths) -> tuple[Pass, ...]:
        """What a step computes, see `flops`."""
        frames = self.views * lengths.frames
        pairs = self.views * np.square(lengths.frames)
        return Pass("encoder", frames, pairs), Pass("ctc_head", frames)

    def __call__(
        self,
        model: Asr,
        batch: AsrBatch,
        step: Int[Array, ""],
        rows: Int[Array, " B"] | None = None,
    ) -> Loss:
        rngs = jax.random.split(model.make_rng("augment"), 2 + self.views)
        features = model.extract(batch.audio)
        keys = [key_rows(rng, rows, len(batch.audio.mask)) for rng in rngs]
        features = spec_augment.warp_time(keys[0], features, self.augment.warp)
        views = [
            spec_augment.mask_features(key, features, self.augment) for key in keys[2:]
        ]
        labels = _beside(*[batch.phonemes] * self.views)
        chunking = self.chunks.draw(rngs[1], count_frames(model, features))
        if self.dual:
            pair = zip(views, (Chunking.full(), chunking), strict=True)
            frames = _beside(*(model.encode(view, sight) for view, sight in pair))
        else:
            frames = model.encode(_beside(*views), chunking)
        logits = model.score_phonemes(frames)
        losses = ctc.ctc_loss(logits, frames.mask, labels)
        # A row without audio is padding; one without phonemes is silence or noise, of
        # which every frame is blank.
        present = jnp.any(frames.mask, axis=1)
        feasible = jnp.isfinite(losses) & present
        total = jnp.sum(jnp.where(feasible, losses, 0.0)) / self.views
        usable = frames.mask & feasible[:, None]
        weight = jnp.sum(usable, dtype=jnp.float32) / self.views
        unusable = jnp.sum(present & ~feasible)
        metrics = {
            "ctc": (total, weight),
            "ctc_infeasible": tuple(
                x.astype(jnp.float32) for x in (unusable, jnp.sum(present))
            ),
            "length_error": _phoneme_errors(logits, frames, labels),
        }
        if self.flat_start:
            even = ctc.flat_start(logits, frames.mask, labels)
            spoken = feasible & labels.mask[:, 0]
            even = jnp.sum(jnp.where(spoken, even, 0.0)) / self.views
            share = jnp.clip(1.0 - step / self.flat_start, 0.0, 1.0).astype(jnp.float32)
            total = share * even + (1.0 - share) * total
        if self.views == 2:
            one, other = einops.rearrange(logits, "(b view) u p -> view b u p", view=2)
            agreement = jnp.sum(ctc.consistency(one, other, usable[::2]))
            rise = jnp.clip(step / max(self.alpha_warmup, 1), 0.0, 1.0)
            total = total + self.alpha * rise.astype(jnp.float32) * agreement
            metrics["consistency"] = (agreement, weight)
        return Loss(total, weight, metrics)


def answer_loss(
    model: Asr, speech: Frames, prompt: Prompt, batch: AsrBatch, chunk: int
) -> Loss:
    """Cross-entropy of the answer's tokens after [prefix | speech | suffix].

    Args:
        model: bound; it writes.
        speech: Frames of Float [B, U, D], speech tokens as the LLM reads them.
        prompt: token ids around them.
        batch: the answers, and the rows' own suffixes.
        chunk: answer places whose logits exist at once.

    Returns:
        Nats, over the answers' tokens; rows without speech count nothing.
    """
    heard = jnp.any(speech.mask, axis=1, keepdims=True)
    answer = dataclasses.replace(batch.tokens, mask=batch.tokens.mask & heard)
    hidden = model.answer_states(speech, prompt, answer, batch.suffix)
    log_probs, best = cross_entropy.token_log_probs(
        hidden, answer.ids, model.unembed, chunk
    )
    total = -jnp.sum(jnp.where(answer.mask, log_probs, 0.0))
    weight = jnp.sum(answer.mask, dtype=jnp.float32)
    correct = jnp.sum(best & answer.mask, dtype=jnp.float32)
    metrics = {"cross_entropy": (total, weight), "token_accuracy": (correct, weight)}
    return Loss(total, weight, metrics)


@dataclasses.dataclass(frozen=True)
class Transcribe:
    """Next-token cross-entropy on the transcript, speech in the prompt (stages 2 – 5).

    Attributes:
        prompt: token ids around the speech.
        augment: SpecAugment amounts.
        chunks: distribution of the chunk masks.
        imitate: weight of the adaptor's distance from what the phoneme reader makes of
            the CTC head's posteriors, for an LLM that was warmed up on phonemes.
        imitate_steps: the weight falls linearly to zero over so many steps; 0: never.
        vocab_chunk: answer places whose logits exist at once.
    """

    prompt: Prompt
    augment: SpecAugmentConfig = SpecAugmentConfig()
    chunks: DynamicChunks = DynamicChunks()
    imitate: float = 0.0
    imitate_steps: int = 0
    vocab_chunk: int = 128

    @property
    def couples_rows(self) -> str:
        """Settings that make the loss of a row depend on others; "" for none."""
        return "loss.imitate" if self.imitate else ""

    def passes(self, lengths: Lengths) -> tuple[Pass, ...]:
        """What a step computes, see `flops`; the imitated reader is not counted."""
        return (
            Pass.encoder(lengths.frames),
            Pass("adaptor", lengths.speech),
            Pass.causal(lengths.prompt(self.prompt) + lengths.answer),
            Pass("unembed", lengths.answer),
        )

    def __call__(
        self,
        model: Asr,
        batch: AsrBatch,
        step: Int[Array, ""],
        rows: Int[Array, " B"] | None = None,
    ) -> Loss:
        rngs = jax.random.split(model.make_rng("augment"), 3)
        features = model.extract(batch.audio)
        keys = [key_rows(rng, rows, len(batch.audio.mask)) for rng in rngs[:2]]
        features = spec_augment.warp_time(keys[0], features, self.augment.warp)
        features = spec_augment.mask_features(keys[1], features, self.augment)
        chunking = self.chunks.draw(rngs[2], count_frames(model, features))
        frames = model.encode(features, chunking)
        speech = model.adapt(frames)
        loss = answer_loss(model, speech, self.prompt, batch, self.vocab_chunk)
        if not self.imitate:
            return loss
        distance = _distance_from_reader(model, frames, speech)
        metrics = {**loss.metrics, "distance": (distance * loss.weight, loss.weight)}
        left = 1.0 - step / self.imitate_steps if self.imitate_steps else 1.0
        weight = self.imitate * jnp.maximum(left, 0.0)
        total = loss.total + weight * distance * loss.weight
        return dataclasses.replace(loss, total=total, metrics=metrics)


def _distance_from_reader(model: Asr, frames: Frames, speech: Frames) -> Array:
    """Σ|adaptor − reader|² / Σ|reader|² over valid speech tokens of the batch."""
    posteriors = jax.nn.softmax(model.score_phonemes(frames))
    target = model.read_phonemes(dataclasses.replace(frames, values=posteriors))
    target = jax.lax.stop_gradient(target.masked().values.astype(jnp.float32))
    said = speech.masked().values.astype(jnp.float32)
    error = jnp.sum(jnp.square(said - target))
    return error / jnp.maximum(jnp.sum(jnp.square(target)), 1e-6)
