"""The interface between a recogniser and its device programs, live or exported.

`ModelPrograms` compiles a model for it, `serving.bundle` loads what was exported. All
else of a recogniser is on the host, and the same with both.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from nim4_jax import struct
from nim4_jax.decode.live.stream_config import StreamConfig
from nim4_jax.rates import Rates
from nim4_jax.types import Frames, Labels

HEARS = ("cmvn", "encoder", "ctc_head")
"""Parts that hear phonemes."""

WRITES = {"adaptor": "adaptor", "llm": "LLM"}
"""Parts that write text, and what they are called."""


@dataclasses.dataclass(frozen=True)
class Budget:
    """Limit on the tokens of an answer: first + per_second · seconds, at most `most`.

    A model that repeats itself is stopped by it, and so is the loop over a batch.
    """

    first: int = 8
    per_second: float = 12.0
    most: int = 448

    def count(self, seconds: float) -> int:
        """Tokens for audio of that length."""
        return min(self.most, self.first + int(np.ceil(self.per_second * seconds)))


@struct.dataclass
class Heard:
    """Output of the phoneme head for recordings or chunks.

    Attributes:
        log_probs: Float[Array, "B U P"], natural log.
        mask: Bool[Array, "B U"], real frames.
        ids: Int[Array, "B U"], best class.
        starts: Bool[Array, "B U"], where a phoneme begins.
    """

    log_probs: Float[Array, "B U P"]
    mask: Bool[Array, "B U"]
    ids: Int[Array, "B U"]
    starts: Bool[Array, "B U"]


@struct.dataclass
class Generation:
    """Tokens that the LLM generated for each prompt, left aligned.

    Attributes:
        tokens: Int[Array, "B L"]; 0 behind the mask.
        mask: Bool[Array, "B L"], True for real tokens, the end token among them.
        log_probs: Float[Array, "B L"], nats, under the distribution that was sampled;
            0 behind the mask.
    """

    tokens: Int[Array, "B L"]
    mask: Bool[Array, "B L"]
    log_probs: Float[Array, "B L"]

    def lengths(self) -> Int[Array, " B"]:
        """Number of tokens of each row, the end token included."""
        return jnp.sum(self.mask, axis=1, dtype=jnp.int32)


@struct.dataclass
class Arrival:
    """Arguments of a tick; a row for each stream that takes part.

    Attributes:
        slots: Int[Array, "B"], the stream; one that does not exist fills a batch up.
            None: row i is stream i, which takes part where the row has audio. Then
            nothing is copied out of the state and back.
        audio: Frames of [B, window] samples: `rates.samples_before` the chunk, the
            chunk, and `rates.samples_after`.
        fresh: Bool[Array, "B"], whether this chunk begins an utterance.
        limits: Int[Array, "B"], tokens that the text may have; 0 for no text yet.
        suffix: Labels [B, suffix_tokens], instruction and hotwords.
    """

    slots: Int[Array, " B"] | None
    audio: Frames
    fresh: Bool[Array, " B"]
    limits: Int[Array, " B"]
    suffix: Labels

    @property
    def active(self) -> Bool[Array, " B"]:
        """Rows that have audio."""
        return jnp.any(self.audio.mask, axis=1)

    def number_rows(self) -> Arrival:
        """The same with slots."""
        if self.slots is not None:
            return self
        rows = self.fresh.shape[0]
        own = jnp.arange(rows, dtype=jnp.int32)
        return dataclasses.replace(self, slots=jnp.where(self.active, own, rows))


@struct.dataclass
class Request:
    """Arguments of a second pass; a row for each complete utterance.

    Attributes:
        slots: Int[Array, "B"], the stream; one that does not exist fills a batch up.
        limits: Int[Array, "B"], tokens that the text may have.
        kept: Int[Array, "B"], tokens that calls before this one wrote: 0 for the first.
        suffix: Labels [B, suffix_tokens], instruction and all hotwords.
    """

    slots: Int[Array, " B"]
    limits: Int[Array, " B"]
    kept: Int[Array, " B"]
    suffix: Labels


@struct.dataclass
class Written:
    """The text of each row.

    Attributes:
        tokens: Int[Array, "B L"]; 0 behind the last.
        length: Int[Array, "B"], tokens without the end token.
        stable: Int[Array, "B"], tokens at the front that stay.
        log_prob: Float[Array, "B"], nats, of the tokens that were predicted (all, in
            the second pass) and the end token.
        finished: Bool[Array, "B"], False where the limit ended the text, or
            `StreamConfig.new_tokens` broke it off.
        accepted: Int[Array, "B"], tokens of the draft that stayed.
        passes: Int[Array, ""], sequential passes of the LLM, the first included.
    """

    tokens: Int[Array, "B L"]
    length: Int[Array, " B"]
    stable: Int[Array, " B"]
    log_prob: Float[Array, " B"]
    finished: Bool[Array, " B"]
    accepted: Int[Array, " B"]
    passes: Int[Array, ""]


class Programs(Protocol):
    """A model's programs. One is compiled for each shape of the arguments.

    Attributes:
        parts: of the model, see HEARS and WRITES.
        rates: how samples, frames and tokens follow each other.
        budget: longest answers.
    """

    @property
    def parts(self) -> tuple[str, ...]: ...

    @property
    def rates(self) -> Rates: ...

    @property
    def budget(self) -> Budget: ...

    def hear(self, audio: Frames) -> Heard:
        """Phonemes of whole recordings, Float [B, S] at 16 kHz."""
        ...

    def transcribe(
        self, audio: Frames, suffix: Labels | None
    ) -> tuple[Heard, Generation]:
        """The same and texts; suffix: each row's own, None where no row has hints."""
        ...

    def start(self, config: StreamConfig, streams: int) -> Any:
        """State of so many streams, with the prompt's start in every cache."""
        ...

    def tick(
        self, config: StreamConfig, width: int, state: Any, arrival: Arrival
    ) -> tuple[Any, Heard, Written]:
        """The next chunk of some streams, see `stream.tick`; the state is donated."""
        ...

    def finish(
        self,
        config: StreamConfig,
        width: int,
        state: Any,
        request: Request,
    ) -> tuple[Any, Written]:
        """Second passes over utterances, see `stream.finish`; the state is donated."""
        ...
