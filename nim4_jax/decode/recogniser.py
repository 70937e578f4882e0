"""Audio in, transcripts out: a trained model with all that it needs to be used."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import cast

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from nim4_jax import features, layers
from nim4_jax.decode import offline, timing
from nim4_jax.models import lora, qwen3
from nim4_jax.models.asr import Asr, AsrConfig, Prompt
from nim4_jax.models.qwen3 import Qwen3
from nim4_jax.ops import ctc
from nim4_jax.ops.relative import Chunking
from nim4_jax.text import prompt as prompt_text
from nim4_jax.text.tokenizer import Tokenizer
from nim4_jax.types import Frames, Labels, Params

SILENCE_PEAK = 3e-4
"""Audio whose loudest sample is below this (−70 dBFS) is silence: the empty string."""

_HEARS = ("cmvn", "encoder", "ctc_head")
_WRITES = {"adaptor": "adaptor", "llm": "LLM"}


@dataclasses.dataclass(frozen=True)
class Budget:
    """How many tokens an answer may have: first + per_second · seconds, at most `most`.

    A model that repeats itself is stopped by it, and so is the loop over a batch.
    """

    first: int = 8
    per_second: float = 12.0
    most: int = 448

    def count(self, seconds: float) -> int:
        """Tokens for audio of that length."""
        return min(self.most, self.first + int(np.ceil(self.per_second * seconds)))


@dataclasses.dataclass(frozen=True)
class Transcript:
    """What one row of audio became.

    Attributes:
        text: transcript, "" for silence.
        tokens: ids that the LLM wrote, without the end token.
        log_prob: of tokens and end token, nats.
        finished: False when the budget ended the answer.
        words: with times and confidences; () when they were not asked for.
        phonemes: greedy CTC hypothesis.
        duration: seconds of audio.
    """

    text: str
    tokens: tuple[int, ...]
    log_prob: float
    finished: bool
    words: tuple[timing.Word, ...]
    phonemes: tuple[int, ...]
    duration: float


@flax.struct.dataclass
class _Heard:
    """What the encoder and the phoneme head make of a batch."""

    frames: Frames
    log_probs: Float[Array, "B U P"]
    ids: Int[Array, "B U"]
    starts: Bool[Array, "B U"]
    seconds: Float[Array, " B"]


def _listen(asr: Asr, audio: Frames, chunking: Chunking) -> _Heard:
    """Samples to encoder frames and phoneme posteriors.

    Rows that are silent, or hold a sample that is no number, are masked throughout.
    """
    samples = audio.masked().values
    # Compilers may order NaN either way in a maximum: it is asked for by itself.
    finite = jnp.all(jnp.isfinite(samples), axis=1)
    loud = finite & (jnp.max(jnp.abs(samples), axis=1) > SILENCE_PEAK)
    audio = audio.replace(mask=audio.mask & loud[:, None])
    frames = asr.encode(asr.extract(audio), chunking)
    logits = asr.score_phonemes(frames)
    ids, starts = ctc.greedy(logits, frames.mask)
    seconds = audio.lengths().astype(jnp.float32) / features.SAMPLE_RATE
    return _Heard(frames, jax.nn.log_softmax(logits), ids, starts, seconds)


@functools.partial(jax.jit, static_argnums=(0,))
def _hear(model: Asr, params: Params, audio: Frames, chunking: Chunking) -> _Heard:
    heard = model.apply({"params": params}, audio, chunking, method=_listen)
    return cast(_Heard, heard)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _transcribe(
    model: Asr,
    prompt: Prompt,
    end_id: int,
    budget: Budget,
    params: Params,
    audio: Frames,
    chunking: Chunking,
    suffix: Labels | None,
) -> tuple[_Heard, offline.Generation]:
    """The whole recogniser in one program per batch shape."""

    def prepare(asr: Asr):
        heard = _listen(asr, audio, chunking)
        speech = asr.adapt(heard.frames)
        return heard, asr.assemble(speech, prompt, suffix=suffix)

    heard, sequence = model.apply({"params": params}, method=prepare)
    config = model.config
    most = budget.count(audio.values.shape[1] / features.SAMPLE_RATE)
    allowed = budget.first + jnp.ceil(budget.per_second * heard.seconds)
    spoken = jnp.any(heard.frames.mask, axis=1)
    generation = offline.generate(
        Qwen3(config.llm, config.policy, packed=model.packed),
        params["llm"],
        sequence.embeddings,
        sequence.mask,
        max_new_tokens=most,
        end_id=end_id,
        limits=jnp.where(spoken, allowed, 0.0).astype(jnp.int32),
    )
    return heard, generation


def _merge(config: AsrConfig, params: Params) -> tuple[AsrConfig, Params]:
    """The LLM with its LoRA matrices, if any, put into the kernels."""
    if not config.llm.lora.rank:
        return config, params
    llm = dataclasses.replace(config.llm, lora=layers.NO_LORA)
    merged = lora.merge(params, config.llm.lora)
    return dataclasses.replace(config, llm=llm), merged


@dataclasses.dataclass(frozen=True, eq=False)
class Recogniser:
    """A model ready to listen. One program is compiled per shape of the audio.

    Attributes:
        model: shapes.
        params: parameters on the device.
        tokenizer: of the LLM.
        prompt: token ids around the speech.
        chunking: how far the encoder sees; full for the offline pass.
        budget: longest answers.
    """

    model: Asr
    params: Params
    tokenizer: Tokenizer
    prompt: Prompt
    chunking: Chunking
    budget: Budget = Budget()

    @classmethod
    def create(
        cls,
        config: AsrConfig,
        params: Params,
        tokenizer: Tokenizer,
        prompt: Prompt,
        *,
        chunking: Chunking | None = None,
        budget: Budget | None = None,
    ) -> Recogniser:
        """A recogniser from what a checkpoint holds.

        Args:
            config: shapes of the model.
            params: nested dict; parts that recognition does not use are left out.
            tokenizer: of the LLM.
            prompt: token ids around the speech.
            chunking: None for the full pass; `Chunking.of(16, 4)` gives the numbers
                that streaming with 640 ms chunks gives.
            budget: None for the default.

        Raises:
            ValueError: the parameters hold no encoder.
        """
        missing = [part for part in _HEARS if part not in params]
        if missing:
            raise ValueError(
                f"the model holds {sorted(params)} but no {', '.join(missing)}: train "
                "stage 1 first, or name a checkpoint of a stage that has an encoder."
            )
        used = {part: params[part] for part in (*_HEARS, *_WRITES) if part in params}
        if "llm" in used:
            config, used["llm"] = _merge(config, used["llm"])
        # A scan converts the int8 weights of one layer at a time; XLA converts those of
        # a packed LLM all at once, and they need more memory than float ones.
        packed = config.policy.weights == "float"
        if packed and "llm" in used:
            used["llm"] = qwen3.pack(used["llm"])
        return cls(
            Asr(config, packed=packed),
            jax.device_put(used),
            tokenizer,
            prompt,
            chunking or Chunking.full(),
            budget or Budget(),
        )

    @property
    def writes(self) -> bool:
        """Whether there is an LLM behind the encoder."""
        return all(part in self.params for part in _WRITES)

    def check_writes(self) -> None:
        """Refuse a model that can hear but not write.

        Raises:
            ValueError: it holds no LLM or no adaptor.
        """
        if not self.writes:
            missing = [_WRITES[part] for part in _WRITES if part not in self.params]
            raise ValueError(
                f"the model holds no {' and no '.join(missing)}: train stages 2 and 4 "
                "from it to get text. Its phonemes can be evaluated already "
                "(`nim4 evaluate --phonemes`)."
            )

    def hear_phonemes(self, audio: Frames) -> list[tuple[int, ...]]:
        """Greedy CTC phoneme ids of each row; needs no LLM.

        Args:
            audio: samples in [-1, 1), Float [B, S] at 16 kHz.
        """
        heard = _hear(self.model, self.params, audio, self.chunking)
        return _collapse(*jax.device_get((heard.ids, heard.starts)))

    def score_phonemes(self, audio: Frames) -> list[np.ndarray]:
        """Natural log of the phoneme posteriors of each row, float32 [U, P]; no LLM.

        Args:
            audio: samples in [-1, 1), Float [B, S] at 16 kHz.
        """
        heard = _hear(self.model, self.params, audio, self.chunking)
        scores, mask = jax.device_get((heard.log_probs, heard.frames.mask))
        return [row[valid] for row, valid in zip(scores, mask)]

    def transcribe(
        self,
        audio: Frames,
        *,
        hints: Sequence[Sequence[str]] | None = None,
        timings: bool = True,
    ) -> list[Transcript]:
        """Transcripts of a batch, greedily decoded; a row is the same in any batch.

        Args:
            audio: samples in [-1, 1), Float [B, S] at 16 kHz. Rows without sound, or
                shorter than one frame (25 ms), become "".
            hints: hotwords for the prompt of each row; None for none at all.
            timings: whether words get times and confidences.

        Raises:
            ValueError: the model holds no LLM, or not one list of hints per row.
        """
        self.check_writes()
        suffix = None if hints is None else self._pack_suffixes(hints, len(audio.mask))
        heard, written = _transcribe(
            self.model,
            self.prompt,
            self.tokenizer.end_id,
            self.budget,
            self.params,
            audio,
            self.chunking,
            suffix,
        )
        written, ids, starts = jax.device_get((written, heard.ids, heard.starts))
        durations = np.asarray(audio.mask).sum(axis=1) / features.SAMPLE_RATE
        rows = zip(
            written.tokens,
            written.mask,
            written.log_probs,
            _collapse(ids, starts),
            durations,
        )
        transcripts = [self._read_row(*row) for row in rows]
        if not timings:
            return transcripts
        scores, frames = jax.device_get((heard.log_probs, heard.frames.mask))
        timed = []
        for row, transcript in enumerate(transcripts):
            words = timing.time_words(
                transcript.text, scores[row][frames[row]], transcript.duration
            )
            timed.append(dataclasses.replace(transcript, words=words))
        return timed

    def _pack_suffixes(self, hints: Sequence[Sequence[str]], rows: int) -> Labels:
        """Each row's instruction with its hints; few widths, so that few compile."""
        if len(hints) != rows:
            raise ValueError(f"{len(hints)} lists of hints for {rows} rows of audio.")
        return Labels(*prompt_text.pack_suffixes(self.tokenizer, hints))

    def _read_row(
        self,
        tokens: np.ndarray,
        mask: np.ndarray,
        log_probs: np.ndarray,
        spoken: tuple[int, ...],
        seconds: float,
    ) -> Transcript:
        """One row of what the LLM wrote, as a transcript without times."""
        end_id = self.tokenizer.end_id
        kept = [int(token) for token in tokens[mask]]
        answer = tuple(token for token in kept if token != end_id)
        return Transcript(
            text=self.tokenizer.decode(answer).strip(),
            tokens=answer,
            log_prob=float(log_probs[mask].sum()),
            finished=not kept or kept[-1] == end_id,
            words=(),
            phonemes=spoken,
            duration=float(seconds),
        )


def _collapse(ids: np.ndarray, starts: np.ndarray) -> list[tuple[int, ...]]:
    """Ids at the places where a label starts, row by row."""
    return [tuple(row[begin].tolist()) for row, begin in zip(ids, starts)]
