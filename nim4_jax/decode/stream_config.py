"""How a stream is cut, and how much room it has."""

from __future__ import annotations

import dataclasses

from nim4_jax import features
from nim4_jax.ops.relative import Chunking
from nim4_jax.rates import FRAME_OVERLAP, FRAME_STRIDE, SPEECH_STRIDE


@dataclasses.dataclass(frozen=True)
class StreamConfig:
    """How a stream is cut, and how much room it has. All sizes are fixed.

    Attributes:
        chunk: encoder frames (40 ms) per chunk, a multiple of the adaptor's 4.
        left: chunks before its own that a frame sees.
        rollback: tokens at the end of the text that the next chunk may change.
        free_chunks: first chunks of an utterance whose text may change altogether.
        draft: tokens of the old text that a tick verifies, at least `rollback`.
        chunks: longest utterance.
        text_tokens: longest text.
        suffix_tokens: room for instruction and hotwords.

    Raises:
        ValueError: sizes that do not fit each other.
    """

    chunk: int = 16
    left: int = 4
    rollback: int = 5
    free_chunks: int = 2
    draft: int = 8
    chunks: int = 48
    text_tokens: int = 192
    suffix_tokens: int = 64

    @classmethod
    def of(cls, chunk: int = 0, left: int = 4) -> StreamConfig:
        """Sizes for another chunk; utterances may last as long with any.

        Args:
            chunk: encoder frames, 0 for the default.
            left: chunks.

        Raises:
            ValueError: see above.
        """
        chunk = chunk or cls.chunk
        frames = cls.chunk * cls.chunks
        return cls(chunk=chunk, left=left, chunks=max(1, frames // abs(chunk)))

    def __post_init__(self):
        if self.chunk < 1 or self.chunk % SPEECH_STRIDE:
            raise ValueError(
                f"a chunk of {self.chunk} encoder frames is no whole number of speech "
                f"tokens; use a multiple of {SPEECH_STRIDE} (16 for 640 ms)."
            )
        if min(self.left, self.rollback, self.free_chunks) < 0:
            raise ValueError(f"got {self}; left, rollback and free_chunks must be ≥ 0.")
        if not self.rollback <= self.draft <= self.text_tokens or self.draft < 1:
            raise ValueError(
                f"draft={self.draft} must be at least 1 and the rollback "
                f"({self.rollback}), at most text_tokens ({self.text_tokens})."
            )
        if min(self.chunks, self.suffix_tokens) < 1:
            raise ValueError(f"got {self}; chunks and suffix_tokens must be ≥ 1.")

    @property
    def hop(self) -> int:
        """Samples from one chunk's beginning to the next's."""
        return self.chunk * FRAME_STRIDE * features.FeatureConfig.hop

    @property
    def seconds(self) -> float:
        """Duration of a chunk."""
        return self.hop / features.SAMPLE_RATE

    @property
    def speech_tokens(self) -> int:
        """Speech tokens of a chunk."""
        return self.chunk // SPEECH_STRIDE

    @property
    def chunking(self) -> Chunking:
        """What the encoder sees."""
        return Chunking.of(self.chunk, self.left)

    def window(self, config: features.FeatureConfig) -> int:
        """Samples that a tick reads: a chunk, and what its last frame looks ahead."""
        frames = self.chunk * FRAME_STRIDE + FRAME_OVERLAP
        return (frames - 1) * config.hop + config.window

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
