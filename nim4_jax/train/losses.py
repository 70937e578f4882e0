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
from nim4_jax.models.asr import Asr, AsrConfig, Prompt
from nim4_jax.ops import cross_entropy, ctc, relative, spec_augment
from nim4_jax.ops.relative import Chunking
from nim4_jax.ops.spec_augment import SpecAugmentConfig
from nim4_jax.text.confusions import Confusions
from nim4_jax.train.flops import Lengths, Pass
from nim4_jax.types import AsrBatch, Frames, Labels

_GRID_SECONDS = 0.04  # of a place of the grid that phonemes are laid on

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


@dataclasses.dataclass(frozen=True)
class DynamicChunks:
    """WeNet's draw of a chunk size and of left chunks, once per batch.

    Half of the batches (1 − `full_share`) get a chunk of `smallest` … `largest` frames
    with 0 … all, or with probability `unlimited_left` all, left chunks; the others see
    everything.

    Attributes:
        full_share: share of the batches without a mask.
        largest: largest chunk, encoder frames.
        unlimited_left: of the batches with one, share that see all left chunks.
        smallest: smallest chunk, encoder frames.

    Source: wenet `add_optional_chunk_mask`.
    """

    full_share: float = 0.5
    largest: int = 25
    unlimited_left: float = 0.5
    smallest: int = 1

    def __post_init__(self):
        if not 1 <= self.smallest <= self.largest:
            raise ValueError(
                f"chunks of {self.smallest} to {self.largest} encoder frames; expected "
                "1 ≤ smallest ≤ largest."
            )

    def draw(self, rng: Array, length: int) -> Chunking:
        """A chunking for utterances padded to `length` encoder frames."""
        keys = jax.random.split(rng, 4)
        full = jax.random.bernoulli(keys[0], self.full_share)
        size = jax.random.randint(keys[1], (), self.smallest, self.largest + 1)
        most = (length - 1) // size
        share = jax.random.uniform(keys[2])
        left = jnp.floor(share * (most + 1).astype(jnp.float32)).astype(jnp.int32)
        unlimited = jax.random.bernoulli(keys[3], self.unlimited_left)
        endless = jnp.asarray(relative.UNLIMITED, jnp.int32)
        return Chunking(
            jnp.where(full, endless, size).astype(jnp.int32),
            jnp.where(full | unlimited, endless, left),
        )


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


def _answer_loss(
    model: Asr, speech: Frames, prompt: Prompt, batch: AsrBatch, chunk: int
) -> Loss:
    """Cross-entropy of the answer's tokens after [prefix | speech | suffix]."""
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
        loss = _answer_loss(model, speech, self.prompt, batch, self.vocab_chunk)
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


@dataclasses.dataclass(frozen=True, eq=False)
class ReadPhonemes:
    """Text-only warm-up of an LLM without pretrained weights: phonemes → transcript.

    Phonemes are laid on a grid of 40 ms as a CTC head emits them: each one held for one
    or more places, then blanks, with random weights, deletions and confusions of what
    sounds alike, so that the LLM learns to read uncertain phonemes and to use its
    knowledge of the text.

    Attributes:
        prompt: token ids around the speech.
        confusions: [P, P], how likely each phoneme is taken for each other one; rows
            sum to 1 but for the blank's.
        frames_per_phoneme: length of the grid over the largest number of phonemes.
        lead: most frames of silence before the first phoneme.
        corrupt: share of phonemes that are dropped or heard as another one; of two
            numbers, each row has a share of its own between them.
        errors: how a real head errs, in the place of `confusions`; it hears phonemes
            that nobody said, too.
        pace: places of the grid that a row's phonemes last, on average, at least and at
            most.
        hesitate: share of phonemes that yield part of their weight to another one.
        noise: standard deviation over the root mean square of what is read; an adaptor
            never says exactly what the reader says.
        vocab_chunk: answer places whose logits exist at once.
    """

    prompt: Prompt
    confusions: np.ndarray
    frames_per_phoneme: int = 4
    lead: int = 12
    corrupt: float | tuple[float, float] = 0.1
    hesitate: float = 0.3
    noise: float = 0.4
    vocab_chunk: int = 128
    errors: Confusions | None = None
    pace: tuple[float, float] = (1.5, 3.6)

    def __post_init__(self):
        corrupt = self.corrupt
        rates = corrupt if isinstance(corrupt, tuple) else (corrupt, corrupt)
        if not 0 <= rates[0] <= rates[1] <= 0.9 or not 0 < self.pace[0] <= self.pace[1]:
            raise ValueError(
                f"loss.corrupt={corrupt} and loss.pace={self.pace}: expected shares "
                "from 0 to 0.9 and paces above 0, the smaller one first."
            )

    @property
    def couples_rows(self) -> str:
        """The noise is as loud as the whole batch is on average."""
        return "loss.kind='read_phonemes'"

    def passes(self, lengths: Lengths) -> tuple[Pass, ...]:
        """What a step computes, see `flops`."""
        return (
            Pass("phoneme_reader", lengths.speech),
            Pass.causal(lengths.prompt(self.prompt) + lengths.answer),
            Pass("unembed", lengths.answer),
        )

    def imitate(self, rng: Array, phonemes: Labels, fine: int = 1) -> Frames:
        """Phoneme weights at frame rate, [B, U, P], as if a CTC head had heard.

        Args:
            rng: one key.
            phonemes: of each row.
            fine: encoder frames in 40 ms.
        """
        keys = jax.random.split(rng, 9)
        batch, count = phonemes.ids.shape
        shape = (batch, count)
        slow, fast = self.pace[1], self.pace[0]
        pace = jax.random.uniform(keys[0], (batch, 1), minval=fast, maxval=slow)
        spread = jax.random.uniform(keys[1], shape, minval=0.4, maxval=1.6)
        lengths = jnp.maximum(fine * pace * spread, 1.0) * phonemes.mask
        silence = jax.random.uniform(keys[6], (batch, 1), maxval=fine * self.lead)
        ends = silence + jnp.cumsum(lengths, axis=1)
        starts = jnp.floor(ends - lengths)
        length = fine * (self.frames_per_phoneme * count + self.lead)
        total = jnp.minimum(jnp.ceil(ends[:, -1:]) + 2.0, length)
        ids, others = self._mishear((keys[2], keys[3]), phonemes, rng)
        torn = jax.random.uniform(keys[7], shape) < self.hesitate
        yielded = jnp.where(torn, 0.6 * jax.random.uniform(keys[8], shape), 0.0)
        place = jnp.arange(length, dtype=jnp.float32)[None, None]
        held = jnp.floor(
            starts + 1.0 + (lengths - 1.0) * jax.random.uniform(keys[4], shape)
        )
        strength = jax.random.uniform(keys[5], (*shape, 1), minval=0.5, maxval=1.0)
        kept, other = (1.0 - yielded)[..., None], yielded[..., None]
        size = self.confusions.shape[0]
        classes = kept * jax.nn.one_hot(ids, size)
        classes = classes + other * jax.nn.one_hot(others, size)
        extra = self._insert(rng, phonemes)
        if extra is not None:
            middle = jnp.floor(starts + jnp.maximum(lengths / 2.0, 1.0))
            held = jnp.where(extra > 0, jnp.minimum(held, middle), held)
        inside = (place >= starts[..., None]) & (place < held[..., None])
        inside = (inside & (ids > 0)[..., None]).astype(jnp.float32)
        weights = jnp.einsum("blu,blp->bup", inside * strength, classes)
        if extra is not None:
            after = (place >= middle[..., None]) & (place < ends[..., None])
            after = (after & (extra > 0)[..., None]).astype(jnp.float32)
            heard = jax.nn.one_hot(extra, size)
            weights = weights + jnp.einsum("blu,blp->bup", after * strength, heard)
            weights = weights / jnp.maximum(weights.sum(-1, keepdims=True), 1.0)
        rest = jnp.maximum(1.0 - jnp.sum(weights, axis=-1), 0.0)
        weights = weights.at[..., 0].add(rest)
        mask = jnp.arange(length, dtype=jnp.float32)[None] < total
        return Frames(weights, mask & phonemes.mask[:, :1])

    def count_fine(self, config: AsrConfig) -> int:
        """Encoder frames in a place of the grid."""
        return max(1, round(_GRID_SECONDS / config.rates.frame_seconds))

    def _draw_rate(self, rng: Array, rows: int) -> float | Float[Array, "B 1"]:
        """Share of wrong phonemes, of all rows or of each."""
        if not isinstance(self.corrupt, tuple):
            return self.corrupt
        low, high = self.corrupt
        key = jax.random.fold_in(rng, 1)
        return jax.random.uniform(key, (rows, 1), minval=low, maxval=high)

    def _mishear(
        self, keys: tuple[Array, Array], phonemes: Labels, rng: Array
    ) -> tuple[Int[Array, "B L"], Int[Array, "B L"]]:
        """What is heard of each phoneme, 0 for nothing; and what else it may be."""
        shape, errors = phonemes.ids.shape, self.errors
        table = self.confusions if errors is None else errors.substitutes
        likely = jnp.asarray(np.cumsum(table, axis=-1))[phonemes.ids]
        draw = jax.random.uniform(keys[0], (*shape, 1)) * likely[..., -1:]
        others = jnp.argmax(likely > draw, axis=-1)
        doubt = jax.random.uniform(keys[1], shape)
        rate, dropped = self._draw_rate(rng, shape[0]), 0.25
        if errors is not None:
            rate = jnp.minimum(rate * jnp.asarray(errors.proneness)[phonemes.ids], 0.9)
            dropped = jnp.asarray(errors.dropped)[phonemes.ids]
        wrong = doubt < (1.0 - dropped) * rate
        ids = jnp.where(wrong, others, phonemes.ids)
        ids = jnp.where(doubt > 1.0 - dropped * rate, 0, ids) * phonemes.mask
        return ids, jnp.where(wrong, phonemes.ids, others)

    def _insert(self, rng: Array, phonemes: Labels) -> Int[Array, "B L"] | None:
        """What is heard behind each phoneme though nobody said it, 0 for nothing."""
        errors, shape = self.errors, phonemes.ids.shape
        if errors is None or not errors.insertions:
            return None
        keys = jax.random.split(jax.random.fold_in(rng, 2))
        rate = self._draw_rate(rng, shape[0]) * errors.insertions
        heard = jax.random.uniform(keys[0], shape) < rate
        likely = jnp.asarray(np.cumsum(errors.inserted))[None, None]
        draw = jax.random.uniform(keys[1], (*shape, 1)) * likely[..., -1:]
        return jnp.argmax(likely > draw, axis=-1) * heard * phonemes.mask

    def __call__(
        self,
        model: Asr,
        batch: AsrBatch,
        step: Int[Array, ""],
        rows: Int[Array, " B"] | None = None,
    ) -> Loss:
        keys = jax.random.split(model.make_rng("augment"))
        fine = self.count_fine(model.config)
        classes = self.imitate(keys[0], batch.phonemes, fine)
        speech = self._blur(keys[1], model.read_phonemes(classes).masked())
        return _answer_loss(model, speech, self.prompt, batch, self.vocab_chunk)

    def _blur(self, rng: Array, speech: Frames) -> Frames:
        """Add noise as loud as `noise` times the speech tokens."""
        values = jax.lax.stop_gradient(speech.values.astype(jnp.float32))
        count = jnp.sum(speech.mask) * values.shape[-1]
        power = jnp.sum(jnp.square(values)) / jnp.maximum(count, 1)
        noise = self.noise * jnp.sqrt(power) * jax.random.normal(rng, values.shape)
        noise = noise.astype(speech.values.dtype)
        return dataclasses.replace(speech, values=speech.values + noise).masked()
