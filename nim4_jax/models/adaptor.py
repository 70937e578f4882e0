"""Adaptor: encoder frames → speech tokens (160 ms) in the LLM's space."""

from __future__ import annotations

import einops
import flax.linen as nn
import jax.numpy as jnp

from nim4_jax.layers import Policy, linear
from nim4_jax.types import Frames

_EMBEDDING_VARIANCE = 2.5e-3
"""Speech tokens begin as small as text embeddings, or they drown the LLM's layers."""


class Adaptor(nn.Module):
    """Concatenate `stride` frames, then linear → ReLU → linear.

    A last group that is not full is filled with zeros, so no speech is dropped. Groups
    do not overlap: pieces of whole groups give what the whole gives, without a state.

    Attributes:
        width_in: encoder width.
        width_hidden: width between the two layers.
        width_out: embedding width of the LLM.
        stride: encoder frames per speech token.
    """

    width_in: int
    width_hidden: int
    width_out: int
    stride: int
    policy: Policy

    @nn.compact
    def __call__(self, frames: Frames) -> Frames:
        """Float [B, U, D] → Float [B, ⌈U/stride⌉, width_out]."""
        stride = self.stride
        values = frames.masked().values
        extra = -values.shape[1] % stride
        values = jnp.pad(values, ((0, 0), (0, extra), (0, 0)))
        groups = einops.rearrange(values, "b (u g) d -> b u (g d)", g=stride)
        up = linear(
            stride * self.width_in,
            self.width_hidden,
            ("embed", "mlp"),
            self.policy,
            gain=2.0,
            name="up",
        )
        down = linear(
            self.width_hidden,
            self.width_out,
            ("mlp", "embed"),
            self.policy,
            gain=_EMBEDDING_VARIANCE,
            name="down",
        )
        x = down(nn.relu(up(groups)))
        return Frames(x, frames.mask[:, ::stride]).masked()
