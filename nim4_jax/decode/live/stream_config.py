"""Sizes of a stream: chunk, left context, caches and lengths of texts."""

from __future__ import annotations

import dataclasses

from nim4_jax.ops.chunking import Chunking
from nim4_jax.rates import SAMPLE_RATE, Rates

_UTTERANCE_SECONDS = 30.72


@dataclasses.dataclass(frozen=True)
class StreamConfig:
    """Fixed sizes of a stream: its chunks, caches and texts.

    Attributes:
        chunk: encoder frames per chunk, a multiple of the speech stride.
        left: chunks before its own that a frame sees.
        unstable_tokens: tokens at the end of the text that the next chunk may change;
            the paper's rollback. The text before them stays, so they are the draft of
            that chunk's pass.
        free_chunks: first chunks of an utterance whose text may change altogether.
        draft_tokens: most tokens of the draft that a tick verifies, at least
            `unstable_tokens`; what follows them is written anew. A draft is longer only
            where all the text may change (`free_chunks`).
        new_tokens: most tokens that one call of the device writes for a stream behind
            what it verified. The next call goes on, so that a text that runs away
            holds up no other stream.
        chunks: longest utterance.
        text_tokens: longest text.
        suffix_tokens: room for instruction and hotwords.
        rates: of the model.

    Raises:
        ValueError: sizes that do not fit each other.
    """

    chunk: int = 16
    left: int = 4
    unstable_tokens: int = 5
    free_chunks: int = 2
    draft_tokens: int = 8
    new_tokens: int = 32
    chunks: int = 48
    text_tokens: int = 192
    suffix_tokens: int = 64
    rates: Rates = Rates()

    @classmethod
    def of(
        cls, chunk_ms: int = 640, left: int = 4, rates: Rates | None = None
    ) -> StreamConfig:
        """Sizes for another chunk or model; utterances may last as long with any.

        Args:
            chunk_ms: length of a chunk.
            left: chunks.
            rates: of the model; None for the defaults. Utterances are no longer than
                its encoder allows.

        Raises:
            ValueError: see above.
        """
        rates = rates or Rates()
        chunk = rates.frames_of_chunk(chunk_ms)
        frames = round(_UTTERANCE_SECONDS / rates.frame_seconds)
        frames = min(frames, rates.max_frames or frames)
        return cls(chunk=chunk, left=left, chunks=max(1, frames // chunk), rates=rates)

    def __post_init__(self):
        rates = self.rates
        if self.chunk < 1 or self.chunk % rates.speech_stride:
            raise ValueError(
                f"a chunk of {self.chunk} encoder frames is no whole number of speech "
                f"tokens; use a multiple of {rates.speech_stride} "
                f"({rates.frames_of_chunk(640)} for 640 ms)."
            )
        if self.hop < rates.samples_before:
            raise ValueError(
                f"a chunk of {self.hop} samples is shorter than what it sees before it "
                f"({rates.samples_before}); use a longer one."
            )
        if rates.max_frames and self.chunk * self.chunks > rates.max_frames:
            raise ValueError(
                f"{self.chunks} chunks of {self.chunk} frames are more than the "
                f"encoder's {rates.max_frames} positions; allow fewer chunks."
            )
        if min(self.left, self.unstable_tokens, self.free_chunks) < 0:
            raise ValueError(
                f"got {self}; left, unstable_tokens and free_chunks must be ≥ 0."
            )
        fewest = max(1, self.unstable_tokens)
        if not fewest <= self.draft_tokens <= self.text_tokens:
            raise ValueError(
                f"draft_tokens={self.draft_tokens} must be at least 1 and "
                f"unstable_tokens ({self.unstable_tokens}), at most text_tokens "
                f"({self.text_tokens})."
            )
        if min(self.chunks, self.suffix_tokens, self.new_tokens) < 1:
            raise ValueError(
                f"got {self}; chunks, suffix_tokens and new_tokens must be ≥ 1."
            )

    @property
    def hop(self) -> int:
        """Samples from one chunk's beginning to the next's."""
        return self.chunk * self.rates.frame_samples

    @property
    def chunk_ms(self) -> int:
        """Duration of a chunk in milliseconds."""
        return 1000 * self.hop // SAMPLE_RATE

    @property
    def seconds(self) -> float:
        """Duration of a chunk."""
        return self.hop / SAMPLE_RATE

    @property
    def speech_tokens(self) -> int:
        """Speech tokens of a chunk."""
        return self.chunk // self.rates.speech_stride

    @property
    def chunking(self) -> Chunking:
        """What the encoder sees."""
        return Chunking.of(self.chunk, self.left)

    @property
    def window(self) -> int:
        """Samples that a tick reads: a chunk, and what its frames see around it."""
        return self.rates.samples_before + self.hop + self.rates.samples_after

    def widths(self) -> tuple[int, ...]:
        """Tokens of suffix and old text for which programs exist, growing."""
        most, width, found = self.suffix_tokens + self.text_tokens, 32, []
        while width < most:
            found.append(width)
            width *= 3
        return (*found, most)

    def slots(self, prefix: int) -> int:
        """Cache slots of a stream."""
        # Where speech ends just behind the last chunk, its rest is one chunk more.
        speech = (self.chunks + 1) * self.speech_tokens
        return prefix + speech + self.suffix_tokens + self.text_tokens
