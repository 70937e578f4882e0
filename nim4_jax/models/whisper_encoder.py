"""Whisper's audio encoder, made streaming: log-mel (10 ms) → encoder frames (20 ms).

A stem of two convolutions, fixed sinusoidal positions, pre-norm Transformer blocks and
a final LayerNorm. Chunk masks and cached keys and values are the Conformer's; the full
pass is a step from the empty state over the whole utterance. The stem looks two feature
frames back and one ahead, and no further, so only attention needs a cache.

Source: `transformers` `WhisperEncoder`; arXiv 2212.04356.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import ClassVar, cast

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from nim4_jax import sharding, struct
from nim4_jax.layers import LayerNorm, Policy, Projection, linear, rematerialise
from nim4_jax.ops import activation, attention, product
from nim4_jax.ops.chunking import Chunking, chunk_mask
from nim4_jax.types import Frames

_TAPS = 3  # of both convolutions
_LONGEST_WAVE = 10_000.0  # the slowest sinusoid's, over 2π


@dataclasses.dataclass(frozen=True)
class WhisperEncoderConfig:
    """Shape of the encoder; the defaults are Whisper base's.

    Attributes:
        num_layers: Transformer blocks.
        width: model width D.
        num_heads: attention heads N; D must divide evenly.
        num_mels: mel channels M of the input: 80, of large-v3 128.
        ffn_factor: feed-forward width over D.
        max_frames: positions, and so the longest utterance in encoder frames.
        dropout: rate on every sub-layer's output.
    """

    num_layers: int = 6
    width: int = 512
    num_heads: int = 8
    num_mels: int = 80
    ffn_factor: int = 4
    max_frames: int = 1500
    dropout: float = 0.0

    frame_stride: ClassVar[int] = 2
    """Feature frames per encoder frame: 20 ms."""
    frames_before: ClassVar[int] = 2
    """Feature frames before its own that an encoder frame sees."""
    frames_after: ClassVar[int] = 1
    """Feature frames behind its own."""
    products_per_pair: ClassVar[int] = 2
    """Content, values."""

    def __post_init__(self):
        if self.width % self.num_heads or self.width % 2:
            raise ValueError(
                f"encoder width {self.width} must be even and a multiple of num_heads "
                f"{self.num_heads}."
            )
        if self.max_frames < 1:
            raise ValueError(f"max_frames={self.max_frames} must be at least 1.")

    @property
    def head_dim(self) -> int:
        """Width H of one attention head."""
        return self.width // self.num_heads

    def build(
        self, policy: Policy, remat: str = "none", deterministic: bool = True
    ) -> WhisperEncoder:
        """The module, see `EncoderConfig`."""
        return WhisperEncoder(self, policy, remat, deterministic)


@functools.lru_cache
def sinusoids(count: int, width: int) -> np.ndarray:
    """Whisper's position embeddings: sines, then cosines, of growing wavelengths.

    Returns:
        float32 [count, width].
    """
    half = width // 2
    rates = np.exp(-np.log(_LONGEST_WAVE) / max(half - 1, 1) * np.arange(half))
    angles = np.arange(count)[:, None] * rates[None]
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


@struct.dataclass
class LayerCache:
    """Keys and values of the C cached frames, Float [B, C, N, H] a layer."""

    keys: Float[Array, "*Z B C N H"]
    values: Float[Array, "*Z B C N H"]


@struct.dataclass
class WhisperState:
    """State of the encoder between two chunks of streams.

    Attributes:
        blocks: caches with a leading axis "layers".
        mask: Bool [B, C], which cached frames are real.
        position: Int [B], encoder frames of the utterance so far.
    """

    blocks: LayerCache
    mask: Bool[Array, "B C"]
    position: Int[Array, " B"]


@struct.dataclass
class BlockContext:
    """What every block of one call shares.

    Attributes:
        mask: Bool [B, U], valid frames of this piece.
        visible: Bool [B, U, C + U], keys that each query may see.
    """

    mask: Bool[Array, "B U"]
    visible: Bool[Array, "B U K"]


def _windows(inputs: Float[Array, "B S E"], stride: int) -> Float[Array, "B U W E"]:
    """Three neighbours each, U = (S − 3) // stride + 1: a convolution is a product."""
    count = (inputs.shape[1] - _TAPS) // stride + 1
    span = (count - 1) * stride + 1
    return jnp.stack([inputs[:, k : k + span : stride] for k in range(_TAPS)], axis=2)


class Stem(nn.Module):
    """gelu(conv₂(gelu(conv₁))), three taps each, the second of stride 2."""

    config: WhisperEncoderConfig
    policy: Policy

    def setup(self):
        self.conv1 = self._convolve(self.config.num_mels)
        self.conv2 = self._convolve(self.config.width)

    def _convolve(self, channels: int) -> Projection:
        taps, out = (_TAPS, channels), (self.config.width,)
        axes = (None, None, "embed")
        return Projection(taps, out, axes, self.policy, bias=True, gain=2.0)

    def __call__(self, features: Frames) -> Frames:
        """Whole utterances: Float [B, T, M] → Float [B, ⌈T/2⌉, D]."""
        config = self.config
        stride, after = config.frame_stride, config.frames_after
        length = features.mask.shape[1]
        pads = (config.frames_before, -length % stride + after)
        return self.cut(
            Frames(
                jnp.pad(features.values, ((0, 0), pads, (0, 0))),
                jnp.pad(features.mask, ((0, 0), pads)),
            )
        )

    def cut(self, features: Frames) -> Frames:
        """A piece, 2 + 2·n + 1 feature frames → n encoder frames.

        Raises:
            ValueError: another number of feature frames.
        """
        config = self.config
        before, after = config.frames_before, config.frames_after
        length = features.mask.shape[1] - before - after
        if length < 0 or length % config.frame_stride:
            raise ValueError(
                f"a piece of {length + before + after} feature frames does not end "
                f"with a window; feed {config.frame_stride}·n + {before + after}."
            )
        x = activation.gelu(self.conv1(_windows(features.masked().values, 1)))
        # The second convolution pads with zeros, not with what the first makes of them.
        inner = features.mask[:, 1:-1]
        x = Frames(x, inner).masked().values
        x = activation.gelu(self.conv2(_windows(x, config.frame_stride)))
        mask = features.mask[:, before : before + length : config.frame_stride]
        return Frames(x, mask)


class Attention(nn.Module):
    """x + W_o · softmax(q·k / √H) v of LN(x); keys have no bias."""

    config: WhisperEncoderConfig
    policy: Policy

    def _project(self, name: str, bias: bool) -> Projection:
        config = self.config
        heads = (config.num_heads, config.head_dim)
        axes = ("embed", "heads", "head_dim")
        return Projection(
            (config.width,), heads, axes, self.policy, bias=bias, name=name
        )

    @nn.compact
    def __call__(
        self,
        inputs: Array,
        cache: LayerCache,
        context: BlockContext,
        deterministic: bool,
    ) -> tuple[Array, LayerCache]:
        config = self.config
        x = LayerNorm(self.policy, name="norm")(inputs)
        query = self._project("query", bias=True)(x)
        keys = self._project("key", bias=False)(x)
        keys = jnp.concatenate([cache.keys, keys], axis=1)
        values = self._project("value", bias=True)(x)
        values = jnp.concatenate([cache.values, values], axis=1)
        scores = product.einsum("bqnh,bknh->bnqk", query, keys)
        scores = scores * config.head_dim**-0.5
        weights = attention.masked_softmax(scores, context.visible[:, None])
        mixed = jnp.einsum("bnqk,bknh->bqnh", self.policy.cast(weights), values)
        output = Projection(
            (config.num_heads, config.head_dim),
            (config.width,),
            ("heads", "head_dim", "embed"),
            self.policy,
            bias=True,
            name="output",
        )(mixed)
        drop = nn.Dropout(config.dropout, deterministic=deterministic)
        fresh = keys.shape[1] - cache.keys.shape[1]
        cache = LayerCache(keys[:, fresh:], values[:, fresh:])
        return inputs + drop(output), cache


class FeedForward(nn.Module):
    """x + W₂ · gelu(W₁ · LN(x))."""

    config: WhisperEncoderConfig
    policy: Policy

    @nn.compact
    def __call__(self, inputs: Array, deterministic: bool) -> Array:
        width, policy = self.config.width, self.policy
        wide = width * self.config.ffn_factor
        drop = nn.Dropout(self.config.dropout, deterministic=deterministic)
        x = LayerNorm(policy, name="norm")(inputs)
        x = activation.gelu(linear(width, wide, ("embed", "mlp"), policy, name="up")(x))
        x = linear(wide, width, ("mlp", "embed"), policy, name="down")(x)
        return inputs + drop(x)


class Block(nn.Module):
    """Attention, then feed-forward."""

    config: WhisperEncoderConfig
    policy: Policy
    deterministic: bool = True

    @nn.compact
    def __call__(
        self, inputs: Float[Array, "B U D"], cache: LayerCache, context: BlockContext
    ) -> tuple[Float[Array, "B U D"], LayerCache]:
        arguments = (self.config, self.policy)
        valid = context.mask[..., None]
        x = jnp.where(valid, inputs, jnp.zeros((), inputs.dtype))
        x, cache = Attention(*arguments, name="attention")(
            x, cache, context, self.deterministic
        )
        x = FeedForward(*arguments, name="ffn")(x, self.deterministic)
        x = jnp.where(valid, x, jnp.zeros((), x.dtype))
        return sharding.constrain(x, "batch", "sequence", None), cache


class Stack(nn.Module):
    """N scanned blocks over the stem's frames."""

    config: WhisperEncoderConfig
    policy: Policy
    remat: str = "none"
    deterministic: bool = True

    @nn.compact
    def __call__(
        self, frames: Frames, state: WhisperState, chunking: Chunking
    ) -> tuple[Frames, WhisperState]:
        """The next whole chunks of streams; whole utterances from an empty state."""
        config = self.config
        length, cached = frames.mask.shape[1], state.mask.shape[1]
        known = jnp.concatenate([state.mask, frames.mask], axis=1)
        visible = chunk_mask(length, cached, chunking)[None] & known[:, None]
        context = BlockContext(frames.mask, visible)
        table = jnp.asarray(sinusoids(config.max_frames, config.width))
        place = state.position[:, None] + jnp.arange(length, dtype=jnp.int32)[None]
        positions = jnp.take(table, place, axis=0, mode="clip")
        values = frames.values + self.policy.cast(positions)
        values, blocks = nn.scan(
            rematerialise(Block, self.remat),
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(0, nn.broadcast),
            out_axes=0,
            length=config.num_layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(
            config, self.policy, self.deterministic, name="blocks"
        )(values, state.blocks, context)
        mask = known[:, known.shape[1] - cached :]
        state = WhisperState(blocks, mask, state.position + length)
        return Frames(values, frames.mask), state


class WhisperEncoder(nn.Module):
    """Stem, blocks, LayerNorm; an `encoder.Encoder`."""

    config: WhisperEncoderConfig
    policy: Policy
    remat: str = "none"
    deterministic: bool = True

    def setup(self):
        arguments = (self.config, self.policy)
        self.stem = Stem(*arguments)
        self.stack = Stack(*arguments, self.remat, self.deterministic)
        self.norm = LayerNorm(self.policy)

    @nn.nowrap
    def init_state(self, batch: int, cached: int) -> WhisperState:
        """State before the first frame, with room for `cached` earlier frames."""
        config, dtype = self.config, self.policy.dtype
        heads = (batch, cached, config.num_heads, config.head_dim)
        shape = (config.num_layers, *heads)
        return WhisperState(
            LayerCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)),
            jnp.zeros((batch, cached), bool),
            jnp.zeros((batch,), jnp.int32),
        )

    def __call__(self, features: Frames, chunking: Chunking) -> Frames:
        """Encode whole utterances, see `encoder.Encoder`.

        Raises:
            ValueError: the batch is longer than there are positions.
        """
        frames = self.stem(features)
        batch, length = frames.mask.shape
        if length > self.config.max_frames:
            raise ValueError(
                f"an utterance of {length} encoder frames is longer than the encoder's "
                f"{self.config.max_frames} positions; cut recordings into segments, or "
                "lower data.bucket_seconds."
            )
        return self._finish(frames, self.init_state(batch, 0), chunking)[0]

    def advance(
        self, features: Frames, state: WhisperState, chunking: Chunking
    ) -> tuple[Frames, WhisperState]:
        """Encode the next chunk of each stream, see `encoder.Encoder`."""
        return self._finish(self.stem.cut(features), state, chunking)

    def _finish(
        self, frames: Frames, state: WhisperState, chunking: Chunking
    ) -> tuple[Frames, WhisperState]:
        frames, state = self.stack(frames, state, chunking)
        values = cast(Array, self.norm(frames.values))
        return Frames(values, frames.mask).masked(), state
