"""Phoneme head: encoder frames → phoneme scores for CTC."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from nim4_jax.layers import Policy, linear


class PhonemeHead(nn.Module):
    """Three-layer MLP with Swish; class 0 is the CTC blank.

    Not ReLU: CTC's first steps push every frame towards the blank, and units that die
    then leave a head that no longer depends on its input.

    Attributes:
        width: encoder width D, also the width between the layers.
        num_phonemes: P, blank included.
    """

    width: int
    num_phonemes: int
    policy: Policy

    @nn.compact
    def __call__(self, frames: Float[Array, "B U D"]) -> Float[Array, "B U P"]:
        """float32 scores, not normalised."""
        axes = ("embed", "mlp")
        x = frames
        for name in ("hidden1", "hidden2"):
            hidden = linear(
                self.width, self.width, axes, self.policy, gain=2.0, name=name
            )
            x = nn.swish(hidden(x))
        axes = ("embed", None)
        scores = linear(
            self.width,
            self.num_phonemes,
            axes,
            self.policy,
            float32=True,
            name="output",
        )
        return scores(x).astype(jnp.float32)
