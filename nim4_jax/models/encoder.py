"""The contract of a streaming encoder: feature frames → encoder frames.

One law binds every encoder: feeding an utterance chunk by chunk gives what the whole
pass gives under the same `Chunking`, to 1e-5 in float32, and what stands behind a mask
changes nothing, NaN included.

A chunk of n encoder frames that begins at encoder frame u sees the feature frames from
`frame_stride · u − frames_before` to `frame_stride · (u + n) + frames_after − 1`.
"""

from __future__ import annotations

from typing import Any, Protocol

from jaxtyping import Array, Bool

from nim4_jax.layers import Policy
from nim4_jax.ops.chunking import Chunking
from nim4_jax.types import Frames


class EncoderState(Protocol):
    """Streaming state of an encoder for B streams; zeros at the start.

    Attributes:
        blocks: tree of arrays [layers, B, …].
        mask: Bool [B, C], which of the C cached frames are real.

    All other leaves are arrays [B, …].
    """

    @property
    def blocks(self) -> Any: ...

    @property
    def mask(self) -> Bool[Array, "B C"]: ...


class Encoder(Protocol):
    """A Linen module that turns feature frames into encoder frames."""

    def __call__(self, features: Frames, chunking: Chunking) -> Frames:
        """Encode whole utterances under a chunk mask.

        Args:
            features: normalised log-mel, Float [B, T, M].
            chunking: how far frames see; `Chunking.full()` for no limit.

        Returns:
            Frames of Float [B, ⌈T / frame_stride⌉, D].
        """
        ...

    def init_state(self, batch: int, cached: int) -> EncoderState:
        """State before the first frame, with room for `cached` earlier frames."""
        ...

    def advance(
        self, features: Frames, state: EncoderState, chunking: Chunking
    ) -> tuple[Frames, EncoderState]:
        """Encode the next chunk of each stream, from a piece that overlaps the next.

        Args:
            features: Float [B, T, M], T = frames_before + frame_stride · size +
                frames_after; what lies before an utterance is masked.
            state: from `init_state` or the last call.
            chunking: the same at every call of a stream.

        Returns:
            Frames of Float [B, size, D], and the new state.
        """
        ...


class EncoderConfig(Protocol):
    """Shape of an encoder; its type says which encoder it is.

    Attributes:
        width: D.
        num_mels: M.
        num_layers: blocks.
        frame_stride: feature frames per encoder frame.
        frames_before: feature frames before its own that an encoder frame sees.
        frames_after: feature frames behind its own.
        products_per_pair: products of width D for a query and a key in each block.
        max_frames: longest utterance in encoder frames; None for any.
    """

    width: int
    num_mels: int
    num_layers: int

    @property
    def frame_stride(self) -> int: ...

    @property
    def frames_before(self) -> int: ...

    @property
    def frames_after(self) -> int: ...

    @property
    def products_per_pair(self) -> int: ...

    @property
    def max_frames(self) -> int | None: ...

    def build(
        self, policy: Policy, remat: str = "none", deterministic: bool = True
    ) -> Encoder:
        """The module.

        Args:
            policy: dtypes.
            remat: what the backward pass computes again, one of `layers.REMATS`.
            deterministic: False switches dropout on.
        """
        ...
