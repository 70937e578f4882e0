"""Jitted programs of a live model: audio to phonemes and tokens, whole or streamed."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nim4_jax import layers
from nim4_jax.decode import offline, stream
from nim4_jax.decode.live.stream_config import StreamConfig
from nim4_jax.decode.programs import (
    HEARS,
    WRITES,
    Arrival,
    Budget,
    Generation,
    Heard,
    Request,
    Written,
)
from nim4_jax.decode.stream import PassSettings, StreamState
from nim4_jax.features import SAMPLE_RATE
from nim4_jax.models import lora, qwen3
from nim4_jax.models.asr import Asr, AsrConfig, Prompt
from nim4_jax.models.qwen3 import Qwen3
from nim4_jax.ops import ctc
from nim4_jax.ops.chunking import Chunking
from nim4_jax.rates import Rates
from nim4_jax.types import Frames, Labels, Params

SILENCE_PEAK = 3e-4
"""Audio whose loudest sample is below this (−70 dBFS) is silence: the empty string."""


def _listen(
    asr: Asr, audio: Frames, chunking: Chunking
) -> tuple[Frames, Heard, Float[Array, " B"]]:
    """Samples to encoder frames, phoneme posteriors and seconds.

    Rows that are silent, or hold a sample that is no number, are masked throughout.
    """
    samples = audio.masked().values
    # Compilers may order NaN either way in a maximum: it is asked for by itself.
    finite = jnp.all(jnp.isfinite(samples), axis=1)
    loud = finite & (jnp.max(jnp.abs(samples), axis=1) > SILENCE_PEAK)
    audio = dataclasses.replace(audio, mask=audio.mask & loud[:, None])
    frames = asr.encode(asr.extract(audio), chunking)
    logits = asr.score_phonemes(frames)
    ids, starts = ctc.greedy(logits, frames.mask)
    seconds = audio.lengths().astype(jnp.float32) / SAMPLE_RATE
    heard = Heard(jax.nn.log_softmax(logits), frames.mask, ids, starts)
    return frames, heard, seconds


@functools.partial(jax.jit, static_argnums=(0,))
def hear(model: Asr, params: Params, audio: Frames, chunking: Chunking) -> Heard:
    """Phonemes of whole recordings."""
    made = model.apply({"params": params}, audio, chunking, method=_listen)
    return cast(Any, made)[1]


@dataclasses.dataclass(frozen=True)
class AnswerSettings:
    """Static arguments of the program that transcribes whole recordings.

    Attributes:
        prompt: token ids around the speech.
        end_id: token that ends a text.
        budget: longest answers.
    """

    prompt: Prompt
    end_id: int
    budget: Budget


@functools.partial(jax.jit, static_argnums=(0, 1))
def transcribe(
    model: Asr,
    settings: AnswerSettings,
    params: Params,
    audio: Frames,
    chunking: Chunking,
    suffix: Labels | None,
) -> tuple[Heard, Generation]:
    """The whole recogniser in one program per batch shape."""

    def prepare(asr: Asr):
        frames, heard, seconds = _listen(asr, audio, chunking)
        speech = asr.adapt(frames)
        return heard, seconds, asr.assemble(speech, settings.prompt, suffix=suffix)

    made = model.apply({"params": params}, method=prepare)
    heard, seconds, sequence = cast(Any, made)
    config, budget = model.config, settings.budget
    most = budget.count(audio.values.shape[1] / SAMPLE_RATE)
    allowed = budget.first + jnp.ceil(budget.per_second * seconds)
    spoken = jnp.any(heard.mask, axis=1)
    generation = offline.generate(
        Qwen3(config.llm, config.policy, packed=model.packed),
        params["llm"],
        sequence.frames(),
        offline.Stop(
            most, settings.end_id, jnp.where(spoken, allowed, 0.0).astype(jnp.int32)
        ),
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
class ModelPrograms:
    """A live model as `Programs`.

    Attributes:
        model: shapes.
        params: parameters on the device.
        prompt: token ids around the speech.
        end_id: token that ends a text.
        chunking: how far the encoder sees in whole recordings.
        budget: longest answers.
    """

    model: Asr
    params: Params
    prompt: Prompt
    end_id: int
    chunking: Chunking
    budget: Budget = Budget()

    @classmethod
    def create(
        cls,
        config: AsrConfig,
        params: Params,
        prompt: Prompt,
        end_id: int,
        *,
        chunking: Chunking | None = None,
        budget: Budget | None = None,
    ) -> ModelPrograms:
        """Programs from what a checkpoint holds.

        Args:
            config: shapes of the model.
            params: nested dict; parts that recognition does not use are left out.
            prompt: token ids around the speech.
            end_id: token that ends a text.
            chunking: None for the full pass; `Chunking.of(16, 4)` gives the numbers
                that streaming with 640 ms chunks gives.
            budget: None for the default.

        Raises:
            ValueError: the parameters hold no encoder.
        """
        missing = [part for part in HEARS if part not in params]
        if missing:
            raise ValueError(
                f"the model holds {sorted(params)} but no {', '.join(missing)}: train "
                "stage 1 first, or name a checkpoint of a stage that has an encoder."
            )
        used = {part: params[part] for part in (*HEARS, *WRITES) if part in params}
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
            prompt,
            end_id,
            chunking or Chunking.full(),
            budget or Budget(),
        )

    @property
    def parts(self) -> tuple[str, ...]:
        """Parts of the model that there are."""
        return tuple(self.params)

    @property
    def rates(self) -> Rates:
        """How samples, frames and tokens follow each other."""
        return self.model.config.rates

    @property
    def answer(self) -> AnswerSettings:
        """What whole recordings are answered with."""
        return AnswerSettings(self.prompt, self.end_id, self.budget)

    def hear(self, audio: Frames) -> Heard:
        """See `Programs.hear`."""
        return hear(self.model, self.params, audio, self.chunking)

    def transcribe(
        self, audio: Frames, suffix: Labels | None
    ) -> tuple[Heard, Generation]:
        """See `Programs.transcribe`."""
        return transcribe(
            self.model, self.answer, self.params, audio, self.chunking, suffix
        )

    def settings(self, config: StreamConfig, width: int) -> PassSettings:
        """What the programs of a stream are compiled for."""
        return PassSettings(config, len(self.prompt.prefix), self.end_id, width)

    def start(self, config: StreamConfig, streams: int) -> StreamState:
        """See `Programs.start`."""
        return stream.init(self.model, self.params, self.prompt, config, streams)

    def tick(
        self, config: StreamConfig, width: int, state: StreamState, arrival: Arrival
    ) -> tuple[StreamState, Heard, Written]:
        """See `Programs.tick`."""
        settings = self.settings(config, width)
        return stream.tick(self.model, settings, self.params, state, arrival)

    def finish(
        self,
        config: StreamConfig,
        width: int,
        state: StreamState,
        request: Request,
    ) -> tuple[StreamState, Written]:
        """See `Programs.finish`."""
        settings = self.settings(config, width)
        return stream.finish(self.model, settings, self.params, state, request)
