"""The legend of axis letters, and the structs that modules exchange.

Axis letters, used in every annotation, einsum and docstring of this project:

    B batch            S audio samples      T feature frames (10 ms)
    U encoder frames (40 ms)                L text tokens    C cache slots
    D model width      N query heads        K key/value heads
    H head width       F ffn width          M mel channels
    V vocabulary       P phonemes           G group
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from nim4_jax import struct

Params = dict[str, Any]
"""A plain nested dict of arrays: what `nn.unbox(module.init(...))["params"]` gives."""


@struct.dataclass
class Frames:
    """A padded batch of sequences; padding never travels without its mask.

    Attributes:
        values: Float[Array, "B T *D"], audio samples, feature frames or embeddings.
        mask: Bool[Array, "B T"], True where the position is real.
    """

    values: Float[Array, "B T *D"]
    mask: Bool[Array, "B T"]

    def masked(self) -> Frames:
        """The same frames with zeros behind the mask, whatever stood there."""
        mask = self.mask.reshape(self.mask.shape + (1,) * (self.values.ndim - 2))
        zero = jnp.zeros((), self.values.dtype)
        return dataclasses.replace(self, values=jnp.where(mask, self.values, zero))

    def lengths(self) -> Int[Array, " B"]:
        """Number of real positions of each row."""
        return jnp.sum(self.mask, axis=1, dtype=jnp.int32)


@struct.dataclass
class Labels:
    """A padded batch of id sequences (phonemes or text tokens), left aligned.

    Attributes:
        ids: Int[Array, "B L"]; 0 behind the mask.
        mask: Bool[Array, "B L"], True where the id is real.
    """

    ids: Int[Array, "B L"]
    mask: Bool[Array, "B L"]

    def lengths(self) -> Int[Array, " B"]:
        """Number of real ids of each row."""
        return jnp.sum(self.mask, axis=1, dtype=jnp.int32)


@struct.dataclass
class AsrBatch:
    """One batch of training or evaluation examples, every array of fixed shape.

    Attributes:
        audio: Frames of [B, S] float32 samples in [-1, 1) at 16 kHz.
        phonemes: Labels, CTC targets (no blanks).
        tokens: Labels, the transcript's tokens followed by `<|im_end|>`.
        suffix: Labels, what follows the speech in each row's prompt, where rows have
            hints of their own.
        wanted: Labels, names that each transcript should have, as `prompt.encode_names`
            writes them; for rewards.
    """

    audio: Frames
    phonemes: Labels
    tokens: Labels
    suffix: Labels | None = None
    wanted: Labels | None = None
