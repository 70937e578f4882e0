"""Causal attention by the fused kernels of TPUs and of NVIDIA GPUs.

Neither keeps the [B, N, L, L] logits in memory, forward or backward. Both take the
queries, keys and values of L tokens of which some are padding, and both let a real
query see the real keys at or before it. What they give for padding is finite and means
nothing.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention
from jaxtyping import Array, Bool, Float, Int

from nim4_jax import sharding

_LANES = 128
"""Blocks of the splash kernel are multiples of a TPU register's width."""

_LARGEST_BLOCK = 640
"""Tokens a block at most. Work on blocks that causality hides is skipped, but a block
costs about as much to start as 200² logits; more than this does not fit beside the
backward pass's other operands."""

CUDNN_HEAD_DIM = 128
"""Widest head that cuDNN's backward pass takes on every GPU with flash attention."""


def count_blocks(length: int) -> tuple[int, int]:
    """(blocks, tokens a block) that cover `length` tokens with the least padding."""
    count = -(-length // _LARGEST_BLOCK)
    return count, -(-length // (count * _LANES)) * _LANES


def splash(
    queries: Float[Array, "B L N H"],
    keys: Float[Array, "B L K H"],
    values: Float[Array, "B L K H"],
    mask: Bool[Array, "B L"],
    scale: float,
    *,
    interpret: bool = False,
) -> Float[Array, "B L N H"]:
    """Pallas splash attention; padding is a segment of its own.

    XLA cannot cut a Pallas call, so on a mesh each device runs its own rows and heads
    under `shard_map`. Rows, or key heads, that do not divide over their mesh axes are
    computed whole by every device of them.

    Args:
        queries: of N heads.
        keys: of K heads; K divides N.
        values: beside the keys.
        mask: True where the token is real.
        scale: factor on the logits.
        interpret: run block by block without the TPU's compiler, for tests.

    Returns:
        Weighted values in the queries' dtype.
    """
    attend = partial(_splash_on_device, scale=scale, interpret=interpret)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or mesh.manual_axes:
        return attend(queries, keys, values, mask)

    def cut(axis: str, size: int) -> str | None:
        (entry,) = sharding.to_spec((axis,))
        return axis if size % sharding.count_shards(mesh, entry) == 0 else None

    rows, heads = cut("batch", mask.shape[0]), cut("kv_heads", keys.shape[2])
    operand = sharding.to_spec((rows, None, heads, None))
    return jax.shard_map(
        attend,
        mesh=mesh,
        in_specs=(operand, operand, operand, sharding.to_spec((rows, None))),
        out_specs=operand,
        check_vma=False,
    )(queries, keys, values, mask)


def _splash_on_device(queries, keys, values, mask, *, scale, interpret):
    length, heads = queries.shape[1:3]
    count, block = count_blocks(length)
    padded = count * block
    # The kernel has no factor on the logits.
    queries = (queries.astype(jnp.float32) * scale).astype(queries.dtype)

    def arrange(array: Array) -> Array:
        array = jnp.pad(array, ((0, 0), (0, padded - length), (0, 0), (0, 0)))
        return jnp.swapaxes(array, 1, 2)

    causal = splash_attention.CausalMask((padded, padded))
    # One backward kernel for all three gradients: it computes the logits once, not
    # twice, and its price, one part of the queries' gradient per block of keys, is
    # small for so few blocks.
    kernel = splash_attention.make_splash_mha(
        splash_attention.MultiHeadMask([causal] * heads),
        block_sizes=splash_attention.BlockSizes(
            block_q=block,
            block_kv=block,
            block_q_dkv=block,
            block_kv_dkv=block,
            use_fused_bwd_kernel=True,
        ),
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )
    segments = jnp.pad(mask, ((0, 0), (0, padded - length))).astype(jnp.int32)
    outputs = jax.vmap(kernel)(
        *map(arrange, (queries, keys, values)),
        splash_attention.SegmentIds(segments, segments),
    )
    return jnp.swapaxes(outputs, 1, 2)[:, :length]


def cudnn(
    queries: Float[Array, "B L N H"],
    keys: Float[Array, "B L K H"],
    values: Float[Array, "B L K H"],
    lengths: Int[Array, " B"],
    scale: float,
    *,
    implementation: Literal["xla", "cudnn"] = "cudnn",
) -> Float[Array, "B L N H"]:
    """cuDNN's flash attention over rows whose real tokens come first.

    Lengths and not a mask: cuDNN adds a mask to the logits as [B, 1, L, L] numbers,
    writes a gradient of that size, and cannot skip what it hides.

    Args:
        queries: of N heads, bfloat16; H a multiple of 8 up to `CUDNN_HEAD_DIM`.
        keys: of K heads; K divides N.
        values: beside the keys.
        lengths: number of real tokens of each row.
        scale: factor on the logits.
        implementation: of `jax.nn.dot_product_attention`.

    Returns:
        Weighted values in the queries' dtype; zeros for padding.
    """
    real = jnp.arange(queries.shape[1], dtype=jnp.int32)[None] < lengths[:, None]

    def keep(array: Array) -> Array:
        return jnp.where(real[:, :, None, None], array, jnp.zeros((), array.dtype))

    # What cuDNN leaves behind the lengths, in outputs and in gradients, may be NaN:
    # this `where` and its transpose stop it. A row without tokens counts one of zeros.
    lengths = jnp.maximum(lengths, 1)
    outputs = jax.nn.dot_product_attention(
        keep(queries),
        keep(keys),
        keep(values),
        scale=scale,
        is_causal=True,
        query_seq_lengths=lengths,
        key_value_seq_lengths=lengths,
        implementation=implementation,
    )
    return keep(outputs)
