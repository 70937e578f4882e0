"""The loss of the LLM's warm-up on text: phonemes as a head hears them → text."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from nim4_jax.models.asr import Asr, AsrConfig, Prompt
from nim4_jax.text.confusions import Confusions
from nim4_jax.train.flops import Lengths, Pass
from nim4_jax.train.losses import Loss, answer_loss
from nim4_jax.types import AsrBatch, Frames, Labels

_GRID_SECONDS = 0.04  # of a place of the grid that phonemes are laid on


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
        return answer_loss(model, speech, self.prompt, batch, self.vocab_chunk)

    def _blur(self, rng: Array, speech: Frames) -> Frames:
        """Add noise as loud as `noise` times the speech tokens."""
        values = jax.lax.stop_gradient(speech.values.astype(jnp.float32))
        count = jnp.sum(speech.mask) * values.shape[-1]
        power = jnp.sum(jnp.square(values)) / jnp.maximum(count, 1)
        noise = self.noise * jnp.sqrt(power) * jax.random.normal(rng, values.shape)
        noise = noise.astype(speech.values.dtype)
        return dataclasses.replace(speech, values=speech.values + noise).masked()
