"""Phoneme reader: speech tokens made from phonemes, where there is no speech.

A small LLM that has no pretrained weights is warmed up on text alone: its transcript is
phonemised, the phonemes are spread over 40 ms frames as a CTC head would emit them, and
this reader takes the place of encoder and adaptor. The LLM so learns to spell what it
hears before it hears anything.

Source: ours; in the spirit of JOIST (arXiv 2210.07353).
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from nim4_jax.layers import Policy, linear
from nim4_jax.rates import SPEECH_STRIDE as STRIDE
from nim4_jax.types import Frames


class PhonemeReader(nn.Module):
    """Concatenate the phoneme weights of 4 frames and project them: one linear layer.

    Attributes:
        num_phonemes: P, blank included.
        width: embedding width of the LLM.
    """

    num_phonemes: int
    width: int
    policy: Policy

    @nn.compact
    def __call__(self, classes: Frames) -> Frames:
        """Float [B, U, P] → Float [B, ⌈U/4⌉, width]; non-negative weights per class."""
        values = classes.masked().values
        batch, length, count = values.shape
        values = jnp.pad(values, ((0, 0), (0, -length % STRIDE), (0, 0)))
        groups = values.reshape(batch, -1, STRIDE * count)
        axes = (None, "embed")
        project = linear(
            STRIDE * self.num_phonemes, self.width, axes, self.policy, name="project"
        )
        return Frames(project(groups), classes.mask[:, ::STRIDE]).masked()
