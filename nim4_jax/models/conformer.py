"""Streaming Conformer encoder: log-mel frames (10 ms) → encoder frames (40 ms).

There is one code path. The full pass is a step from the empty state over the whole
utterance with chunk masks; a streaming step is the same call over one or more chunks
with the keys, values and convolution context of what came before.

Source: FireRedASR-AED `conformer_encoder`; streaming form of SPEC §2.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, cast

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from nim4_jax import sharding, struct
from nim4_jax.layers import (
    LayerNorm,
    Policy,
    Projection,
    add_bias,
    linear,
    rematerialise,
)
from nim4_jax.models.subsampling import OVERLAP, STRIDE, Subsampling
from nim4_jax.ops import activation, attention, conv, product, relative
from nim4_jax.ops.chunking import Chunking, chunk_mask
from nim4_jax.types import Frames

CONV_CONTEXTS = ("chunk", "causal")

_BRANCH_GAIN = 1.0 / 3.0
"""Sub-layers begin small beside their residual, or six blocks hide the input."""


@dataclasses.dataclass(frozen=True)
class ConformerConfig:
    """Shape of the encoder.

    Attributes:
        num_layers: Conformer blocks.
        width: model width D.
        num_heads: attention heads N; D must divide evenly.
        num_mels: mel channels M of the input.
        subsampling_channels: channels of the two input convolutions.
        ffn_factor: feed-forward width over D.
        conv_kernel: odd number of taps of the depthwise convolution.
        conv_expansion: depthwise width over D (FireRed 2, standard Conformer 1).
        conv_context: "chunk", symmetric taps that stop at the end of the frame's own
        chunk
            (FireRed's weights fit), or "causal", all taps to the left.
        dropout: rate on every sub-layer's output.
    """

    num_layers: int = 16
    width: int = 1280
    num_heads: int = 20
    num_mels: int = 80
    subsampling_channels: int = 32
    ffn_factor: int = 4
    conv_kernel: int = 33
    conv_expansion: int = 2
    conv_context: str = "chunk"
    dropout: float = 0.0

    frame_stride: ClassVar[int] = STRIDE
    """Feature frames per encoder frame: 40 ms."""
    frames_before: ClassVar[int] = 0
    """Feature frames before its own that an encoder frame sees."""
    frames_after: ClassVar[int] = OVERLAP
    """Feature frames behind its own."""
    products_per_pair: ClassVar[int] = 4
    """Content, two distances' worth of positions, values."""
    max_frames: ClassVar[None] = None
    """Positions are relative: utterances may have any length."""

    def __post_init__(self):
        if self.width % self.num_heads or self.width % 2:
            raise ValueError(
                f"encoder width {self.width} must be even and a multiple of num_heads "
                f"{self.num_heads}."
            )
        if self.conv_kernel % 2 == 0:
            raise ValueError(f"conv_kernel={self.conv_kernel} must be odd.")
        if self.conv_context not in CONV_CONTEXTS:
            raise ValueError(
                f"conv_context={self.conv_context!r} is unknown; "
                f"use one of {CONV_CONTEXTS}."
            )

    @property
    def head_dim(self) -> int:
        """Width H of one attention head."""
        return self.width // self.num_heads

    @property
    def conv_width(self) -> int:
        """Channels of the depthwise convolution."""
        return self.width * self.conv_expansion

    @property
    def conv_right(self) -> int:
        """Depthwise taps to the right of a frame."""
        return self.conv_kernel // 2 if self.conv_context == "chunk" else 0

    @property
    def conv_left(self) -> int:
        """Depthwise taps to the left of a frame: what a stream has to remember."""
        return self.conv_kernel - 1 - self.conv_right

    def build(
        self, policy: Policy, remat: str = "none", deterministic: bool = True
    ) -> Conformer:
        """The module, see `encoder.EncoderConfig`."""
        return Conformer(self, policy, remat, deterministic)


@struct.dataclass
class BlockState:
    """Streaming state of one block; scanned stacks have a leading "layers" axis.

    Attributes:
        keys: Float [B, C, N, H] of the C cached frames.
        values: Float [B, C, N, H].
        conv: Float [B, conv_left, conv_width], inputs of the depthwise convolution.
    """

    keys: Float[Array, "*Z B C N H"]
    values: Float[Array, "*Z B C N H"]
    conv: Float[Array, "*Z B W E"]


@struct.dataclass
class StackState:
    """State of all blocks; `mask` [B, C] tells which cached frames are real."""

    blocks: BlockState
    mask: Bool[Array, "B C"]


@struct.dataclass
class BlockContext:
    """What every block of one call shares.

    Attributes:
        mask: Bool [B, U], valid frames of this piece.
        visible: Bool [B, U, C + U], keys that each query may see.
        distances: Float [U + C + U − 1, D], sinusoids of the relative positions.
        chunking: chunk size and left chunks.
    """

    mask: Bool[Array, "B U"]
    visible: Bool[Array, "B U K"]
    distances: Float[Array, "R D"]
    chunking: Chunking


class FeedForward(nn.Module):
    """x + W₂ · swish(W₁ · LN(x)): the residual is the layer's own, as FireRed's."""

    config: ConformerConfig
    policy: Policy

    @nn.compact
    def __call__(self, inputs: Array, deterministic: bool) -> Array:
        width = self.config.width
        wide = width * self.config.ffn_factor
        drop = nn.Dropout(self.config.dropout, deterministic=deterministic)
        x = LayerNorm(self.policy, name="norm")(inputs)
        x = linear(width, wide, ("embed", "mlp"), self.policy, name="up")(x)
        x = drop(activation.swish(x))
        x = linear(
            wide, width, ("mlp", "embed"), self.policy, gain=_BRANCH_GAIN, name="down"
        )(x)
        return inputs + drop(x)


class RelativeAttention(nn.Module):
    """Multi-head attention with Transformer-XL positions and its own residual.

    score(i, j) = [(q_i + u)·k_j + (q_i + v)·W_p r_{i−j}] / √H, three separate
    LayerNorms in front of the bias-free projections. XLA's form on every platform: a
    fused kernel takes a bias that is the same for all queries of a distance, and here
    the term of the distance is a product with the query.

    Source: FireRedASR `RelPosMultiHeadAttention`.
    """

    config: ConformerConfig
    policy: Policy

    def _project(self, name: str) -> Projection:
        config = self.config
        heads = (config.num_heads, config.head_dim)
        axes = ("embed", "heads", "head_dim")
        return Projection((config.width,), heads, axes, self.policy, name=name)

    def _bias(self, name: str) -> Array:
        init = nn.with_logical_partitioning(
            nn.initializers.xavier_uniform(), ("heads", "head_dim")
        )
        shape = (self.config.num_heads, self.config.head_dim)
        return cast(Array, self.param(name, init, shape, self.policy.param_dtype))

    @nn.compact
    def __call__(
        self,
        inputs: Array,
        state: BlockState,
        context: BlockContext,
        deterministic: bool,
    ) -> tuple[Array, Array, Array]:
        norms = [LayerNorm(self.policy, name=f"norm_{n}")(inputs) for n in "qkv"]
        query = self._project("query")(norms[0])
        keys = jnp.concatenate([state.keys, self._project("key")(norms[1])], axis=1)
        values = jnp.concatenate(
            [state.values, self._project("value")(norms[2])], axis=1
        )
        position = self._project("position")(self.policy.cast(context.distances))
        near = add_bias(query, self._bias("bias_u"))
        content = product.einsum("bqnh,bknh->bnqk", near, keys)
        far = add_bias(query, self._bias("bias_v"))
        shifted = product.einsum("bqnh,rnh->bnqr", far, position)
        shifted = relative.shift_relative(shifted, keys.shape[1])
        scores = jnp.add(content, shifted) * self.config.head_dim**-0.5
        weights = attention.masked_softmax(scores, context.visible[:, None])
        mixed = jnp.einsum("bnqk,bknh->bqnh", self.policy.cast(weights), values)
        output = Projection(
            (self.config.num_heads, self.config.head_dim),
            (self.config.width,),
            ("heads", "head_dim", "embed"),
            self.policy,
            gain=_BRANCH_GAIN,
            name="output",
        )(mixed)
        drop = nn.Dropout(self.config.dropout, deterministic=deterministic)
        return inputs + drop(output), keys, values


class ConvModule(nn.Module):
    """x + W₂ · swish(LN(depthwise(GLU(W₁ · LN(x))))), bias-free, own residual."""

    config: ConformerConfig
    policy: Policy

    @nn.compact
    def __call__(
        self,
        inputs: Array,
        state: BlockState,
        context: BlockContext,
        deterministic: bool,
    ) -> tuple[Array, Array]:
        config, policy = self.config, self.policy
        inner = config.conv_width
        x = LayerNorm(policy, name="norm")(inputs)
        axes = ("embed", "mlp")
        x = linear(
            config.width, 2 * inner, axes, policy, bias=False, name="pointwise_in"
        )(x)
        x = activation.glu(x)
        x = jnp.where(context.mask[..., None], x, jnp.zeros((), x.dtype))
        history = jnp.concatenate([state.conv, x], axis=1)
        kernel = self.param(
            "depthwise",
            nn.with_logical_partitioning(
                nn.initializers.variance_scaling(
                    1.0, "fan_in", "uniform", in_axis=0, out_axis=()
                ),
                (None, "mlp"),
            ),
            (config.conv_kernel, inner),
            policy.param_dtype,
        )
        x = conv.depthwise(
            history,
            policy.cast(kernel),
            right=config.conv_right,
            chunk_size=context.chunking.size,
        )
        x = activation.swish(LayerNorm(policy, name="depthwise_norm")(x))
        x = linear(
            inner,
            config.width,
            ("mlp", "embed"),
            policy,
            bias=False,
            gain=_BRANCH_GAIN,
            name="pointwise_out",
        )(x)
        drop = nn.Dropout(config.dropout, deterministic=deterministic)
        return inputs + drop(x), history[:, history.shape[1] - config.conv_left :]


class Block(nn.Module):
    """½·FFN – MHSA – conv – ½·FFN – LayerNorm."""

    config: ConformerConfig
    policy: Policy
    deterministic: bool = True

    @nn.compact
    def __call__(
        self, inputs: Float[Array, "B U D"], state: BlockState, context: BlockContext
    ) -> tuple[Float[Array, "B U D"], BlockState]:
        arguments = (self.config, self.policy)
        valid = context.mask[..., None]
        x = jnp.where(valid, inputs, jnp.zeros((), inputs.dtype))
        x = 0.5 * x + 0.5 * FeedForward(*arguments, name="ffn1")(x, self.deterministic)
        x, keys, values = RelativeAttention(*arguments, name="attention")(
            x, state, context, self.deterministic
        )
        x, history = ConvModule(*arguments, name="conv")(
            x, state, context, self.deterministic
        )
        x = 0.5 * x + 0.5 * FeedForward(*arguments, name="ffn2")(x, self.deterministic)
        x = LayerNorm(self.policy, name="norm")(x)
        fresh = keys.shape[1] - state.keys.shape[1]
        state = BlockState(keys[:, fresh:], values[:, fresh:], history)
        x = jnp.where(valid, x, jnp.zeros((), x.dtype))
        return sharding.constrain(x, "batch", "sequence", None), state


class ConformerStack(nn.Module):
    """N scanned blocks over encoder frames."""

    config: ConformerConfig
    policy: Policy
    remat: str = "none"
    deterministic: bool = True

    @nn.nowrap
    def init_state(self, batch: int, cached: int) -> StackState:
        """State before the first frame, with room for `cached` earlier frames."""
        config, dtype = self.config, self.policy.dtype
        heads = (batch, cached, config.num_heads, config.head_dim)
        shape = (config.num_layers, *heads)
        history = (config.num_layers, batch, config.conv_left, config.conv_width)
        blocks = BlockState(
            jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.zeros(history, dtype)
        )
        return StackState(blocks, jnp.zeros((batch, cached), bool))

    @nn.compact
    def __call__(
        self,
        frames: Frames,
        chunking: Chunking,
        state: StackState | None = None,
    ) -> tuple[Frames, StackState]:
        """Whole utterances (`state` None), or the next whole chunks of streams."""
        batch, length = frames.mask.shape
        if state is None:
            state = self.init_state(batch, 0)
        cached = state.mask.shape[1]
        known = jnp.concatenate([state.mask, frames.mask], axis=1)
        visible = chunk_mask(length, cached, chunking)[None] & known[:, None]
        table = relative.sinusoids(length, cached + length, self.config.width)
        distances = jnp.asarray(table)
        context = BlockContext(frames.mask, visible, distances, chunking)
        block = rematerialise(Block, self.remat)
        values, blocks = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(0, nn.broadcast),
            out_axes=0,
            length=self.config.num_layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(
            self.config, self.policy, self.deterministic, name="blocks"
        )(frames.values, state.blocks, context)
        state = StackState(blocks, known[:, known.shape[1] - cached :])
        return Frames(values, frames.mask), state


class Conformer(nn.Module):
    """Subsampling by 4, then the stack of blocks; an `encoder.Encoder`."""

    config: ConformerConfig
    policy: Policy
    remat: str = "none"
    deterministic: bool = True

    def setup(self):
        self.subsampling = Subsampling(
            self.config.width,
            self.config.num_mels,
            self.config.subsampling_channels,
            self.policy,
        )
        self.stack = ConformerStack(
            self.config, self.policy, self.remat, self.deterministic
        )

    @nn.nowrap
    def init_state(self, batch: int, cached: int) -> StackState:
        """State before the first frame; `cached` = left chunks × chunk size."""
        return ConformerStack(self.config, self.policy).init_state(batch, cached)

    def __call__(self, features: Frames, chunking: Chunking) -> Frames:
        """Encode whole utterances, see `encoder.Encoder`."""
        return self.stack(self.subsampling(features), chunking)[0]

    def advance(
        self, features: Frames, state: StackState, chunking: Chunking
    ) -> tuple[Frames, StackState]:
        """Encode the next chunk of each stream, see `encoder.Encoder`."""
        return self.stack(self.subsampling.cut(features), chunking, state)
