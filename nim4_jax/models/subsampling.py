"""Convolutional subsampling: feature frames (10 ms) → encoder frames (40 ms).

Source: FireRedASR `Conv2dSubsampling`.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from nim4_jax.layers import Policy, Projection, add_bias
from nim4_jax.ops import strided
from nim4_jax.types import Frames

STRIDE = 4
"""Feature frames per encoder frame."""

WINDOW = 7
"""Feature frames under one encoder frame: encoder frame u covers 4·u … 4·u + 6."""

OVERLAP = WINDOW - STRIDE
"""Feature frames that an encoder frame shares with the next."""


class Conv2d(nn.Module):
    """3 × 3 convolution over time and frequency, stride 2, no padding, with bias."""

    channels_in: int
    channels_out: int
    policy: Policy

    @nn.compact
    def __call__(self, inputs: Float[Array, "B T M E"]) -> Float[Array, "B Y Z F"]:
        kernel = self.param(
            "kernel",
            nn.with_logical_partitioning(
                nn.initializers.he_normal(), (None, None, None, None)
            ),
            (3, 3, self.channels_in, self.channels_out),
            self.policy.param_dtype,
        )
        bias = self.param(
            "bias",
            nn.with_logical_partitioning(nn.initializers.zeros, (None,)),
            (self.channels_out,),
            self.policy.param_dtype,
        )
        outputs = strided.convolve(self.policy.cast(inputs), self.policy.cast(kernel))
        return add_bias(outputs, bias)


class Subsampling(nn.Module):
    """Two strided convolutions with ReLU, then a linear layer to the model width."""

    width: int
    num_mels: int
    channels: int
    policy: Policy

    def setup(self):
        self.conv1 = Conv2d(1, self.channels, self.policy)
        self.conv2 = Conv2d(self.channels, self.channels, self.policy)
        bands = ((self.num_mels - 1) // 2 - 1) // 2
        self.output = Projection(
            (bands, self.channels),
            (self.width,),
            (None, None, "embed"),
            self.policy,
            bias=True,
            # Masked features are exact zeros; a LayerNorm multiplies the gradient of a
            # zero vector by 300, and a stack of them overflows.
            bias_init=nn.initializers.normal(0.1),
        )

    def _convolve(self, values: Array) -> Array:
        x = nn.relu(self.conv1(values[..., None]))
        return self.output(nn.relu(self.conv2(x)))

    def __call__(self, features: Frames) -> Frames:
        """Float [B, T, M] → Float [B, ⌈T/4⌉, D]; valid where its first frame is."""
        padding = ((0, 0), (0, WINDOW - 1), (0, 0))
        values = jnp.pad(features.masked().values, padding)
        return Frames(self._convolve(values), features.mask[:, ::STRIDE])

    def cut(self, features: Frames) -> Frames:
        """4·n + 3 feature frames, of which the next piece sees the last 3 → n frames.

        Raises:
            ValueError: another number of feature frames.
        """
        length = features.mask.shape[1] - OVERLAP
        if length < STRIDE or length % STRIDE:
            raise ValueError(
                f"a piece of {length + OVERLAP} feature frames does not end with a "
                f"window; feed {STRIDE}·n + {OVERLAP}."
            )
        values = self._convolve(features.masked().values)
        return Frames(values, features.mask[:, :length:STRIDE])
