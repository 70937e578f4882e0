"""Phoneme reader: speech tokens from phonemes, for training on text without audio.

A small LLM that has no pretrained weights is warmed up on text alone: its transcript is
phonemised, the phonemes are spread over frames as a CTC head would emit them, and
this reader takes the place of encoder and adaptor. The LLM so learns to spell what it
hears before it hears anything.

Source: ours; in the spirit of JOIST (arXiv 2210.07353).
"""

from __future__ import annotations

import einops
import flax.linen as nn
import jax.numpy as jnp

from nim4_jax.layers import Policy, linear
from nim4_jax.types import Frames


class PhonemeReader(nn.Module):
    """One linear layer over the phoneme weights of `stride` frames.

    Attributes:
        num_phonemes: P, blank included.
        width: embedding width of the LLM.
        stride: encoder frames per speech token.
    """

    num_phonemes: int
    width: int
    stride: int
    policy: Policy

    @nn.compact
    def __call__(self, classes: Frames) -> Frames:
        """Float [B, U, P] → Float [B, ⌈U/stride⌉, width]; no weight is negative."""
        stride = self.stride
        values = classes.masked().values
        extra = -values.shape[1] % stride
        values = jnp.pad(values, ((0, 0), (0, extra), (0, 0)))
        groups = einops.rearrange(values, "b (u g) p -> b u (g p)", g=stride)
        axes = (None, "embed")
        project = linear(
            stride * self.num_phonemes, self.width, axes, self.policy, name="project"
        )
        return Frames(project(groups), classes.mask[:, ::stride]).masked()
