"""What a recogniser asks of its device, and what it gets back.

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
from nim4_jax.decode.stream_config import StreamConfig
from nim4_jax.rates import Rates
from nim4_jax.types import Frames, Labels

HEARS = ("cmvn", "encoder", "ctc_head")
"""Parts that hear phonemes."""

WRITES = {"adaptor": "adaptor", "llm": "LLM"}
"""Parts that write text, and what they are called."""


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


@struct.dataclass
class Heard:
    """What the phoneme head heard in recordings or chunks.

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
    """What the LLM wrote after each prompt, left aligned.

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
    """What a tick is given; a row each of the streams that take part.

    Attributes:
        slots: Int[Array, "B"], the stream; one that does not exist fills a batch up.
        audio: Frames of [B, window] samples: `rates.samples_before` the chunk, the
            chunk, and `rates.samples_after`.
        fresh: Bool[Array, "B"], whether this chunk begins an utterance.
        limits: Int[Array, "B"], tokens that the text may have; 0 for no text yet.
        suffix: Labels [B, suffix_tokens], instruction and hotwords.
    """

    slots: Int[Array, " B"]
    audio: Frames
    fresh: Bool[Array, " B"]
    limits: Int[Array, " B"]
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
        finished: Bool[Array, "B"], False where the limit ended the text.
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
        slots: Int[Array, " B"],
        limits: Int[Array, " B"],
        suffix: Labels,
    ) -> Written:
        """The second pass over complete utterances, see `stream.finish`."""
        ...
