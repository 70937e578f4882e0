"""Exact zeros at the input (masked features) do not blow gradients up."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from nim4_jax.layers import Policy
from nim4_jax.models.conformer import Conformer, ConformerConfig
from nim4_jax.ops.chunking import Chunking
from nim4_jax.types import Frames


def test_gradient_of_silence_without_context_is_moderate():
    """A frame that sees only itself stays what the subsampling made of zeros."""
    config = ConformerConfig(
        num_layers=6, width=32, num_heads=2, subsampling_channels=4, conv_kernel=7
    )
    model = Conformer(config, Policy())
    frames = Frames(jnp.zeros((1, 32, 80)), jnp.ones((1, 32), bool))
    alone = Chunking.of(1, 0)
    params = nn.unbox(model.init(jax.random.key(0), frames, alone))

    def loss(tree):
        return jnp.sum(model.apply(tree, frames, alone).values[..., 0])

    norms = [jnp.abs(leaf).max() for leaf in jax.tree.leaves(jax.grad(loss)(params))]
    assert jnp.max(jnp.stack(norms)) < 1e4
