"""Grouped-query attention under masks, and the choice of its kernel by platform."""

from __future__ import annotations

import einops
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from nim4_jax.ops import fused_attention

KERNELS = ("auto", "xla", "splash", "cudnn")
"""What `Policy.kernels` may say."""

HIDDEN = -1e30
"""Logit of an invisible key: finite, so that a row that sees nothing stays finite."""


def kernels_for(platform: str) -> str:
    """The kernel of causal attention for a platform: "tpu", "gpu", "cuda" or "cpu"."""
    return {"tpu": "splash", "gpu": "cudnn", "cuda": "cudnn"}.get(platform, "xla")


def platform_in_use() -> str:
    """Platform of the mesh's devices, else of JAX's default ones.

    A mesh of devices that are not here, entered with `jax.set_mesh`, compiles for them.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def choose_kernel(wanted: str, dtype: jnp.dtype, head_dim: int) -> str:
    """The kernel that `attend_causal` shall use: "xla", "splash" or "cudnn".

    wanted         | devices in use | operands that cuDNN takes | kernel
    "auto"         | TPU            | any                       | "splash"
    "auto"         | GPU            | yes                       | "cudnn"
    "auto"         | GPU            | no                        | "xla"
    "auto"         | others         | any                       | "xla"
    "xla"          | any            | any                       | "xla"
    another one    | its own        | yes                       | that one

    cuDNN takes bfloat16 and heads of 8, 16, … 128; splash attention takes everything.

    Args:
        wanted: one of `KERNELS`.
        dtype: of queries, keys and values.
        head_dim: H.

    Raises:
        ValueError: a kernel asked for by name that these devices or operands do not
            have.
    """
    platform = platform_in_use()
    fitting = kernels_for(platform)
    narrow = head_dim % 8 == 0 and head_dim <= fused_attention.CUDNN_HEAD_DIM
    takes = fitting != "cudnn" or (dtype == jnp.bfloat16 and narrow)
    if wanted == "auto":
        return fitting if takes else "xla"
    if wanted not in ("xla", fitting):
        raise ValueError(
            f"policy.kernels={wanted!r} does not run on {platform!r}, the platform in "
            f'use; set it to "auto" or {fitting!r}, or enter a mesh of the devices to '
            "compile for (jax.set_mesh)."
        )
    if wanted == "cudnn" and not takes:
        raise ValueError(
            f'policy.kernels="cudnn" with {jnp.dtype(dtype).name} heads of {head_dim}: '
            "cuDNN takes bfloat16 heads of a multiple of 8 up to "
            f"{fused_attention.CUDNN_HEAD_DIM}; set policy.compute to bfloat16, or "
            'policy.kernels to "auto" or "xla".'
        )
    return wanted


def left_align(
    mask: Bool[Array, "B L"],
) -> tuple[Int[Array, "B L"], Int[Array, "B L"]]:
    """Permutations that move the real tokens of each row to the front, and back.

    mask    1 0 1 1     order   0 2 3 1 (take: real tokens, then padding)
                        places  0 0 1 2 (take: where each real token went)

    Returns:
        (order, places), for `jnp.take_along_axis` along the tokens.
    """
    order = jnp.argsort(~mask, axis=1, stable=True).astype(jnp.int32)
    places = jnp.cumsum(mask, axis=1, dtype=jnp.int32) - 1
    return order, jnp.maximum(places, 0)


def causal_mask(mask: Bool[Array, "B L"]) -> Bool[Array, "B L L"]:
    """Causal attention mask of L tokens in layout order.

    key real | key at or before the query | visible
       1     |             1              |    1
       1     |             0              |    0
       0     |            any             |    0

    Args:
        mask: True where the token is real.

    Returns:
        [query, key] True where the query sees the key.
    """
    slots = jnp.arange(mask.shape[1])
    return (slots[None, :] <= slots[:, None])[None] & mask[:, None, :]


@jax.custom_vjp
def masked_softmax(
    logits: Float[Array, "*B L C"], visible: Bool[Array, "*#B #L #C"]
) -> Float[Array, "*B L C"]:
    """softmax over the visible logits of each row; zeros elsewhere.

    The gradient keeps the weights alone; autodiff would keep the exponentials too.
    Reverse mode only.

    Args:
        logits: float32; anything but NaN where they are not visible.
        visible: axes of size 1 stand for all of the logits'.

    Returns:
        Weights that sum to 1, or zeros for a row that sees nothing.
    """
    logits = jnp.where(visible, logits, jnp.float32(HIDDEN))
    peak = jnp.max(logits, axis=-1, keepdims=True)
    weights = jnp.where(visible, jnp.exp(logits - peak), jnp.float32(0.0))
    total = jnp.sum(weights, axis=-1, keepdims=True)
    return weights / jnp.where(total > 0.0, total, jnp.float32(1.0))


def _softmax_forward(logits, visible):
    weights = masked_softmax(logits, visible)
    return weights, weights


def _softmax_backward(weights, gradient):
    inner = weights * gradient
    return inner - weights * jnp.sum(inner, axis=-1, keepdims=True), None


masked_softmax.defvjp(_softmax_forward, _softmax_backward)


def attend_causal(
    queries: Float[Array, "B L N H"],
    keys: Float[Array, "B L K H"],
    values: Float[Array, "B L K H"],
    mask: Bool[Array, "B L"],
    scale: float,
    kernel: str,
) -> Float[Array, "B L N H"]:
    """Self-attention of L tokens under `causal_mask(mask)`, as in training.

    Args:
        queries: of N heads.
        keys: of K heads; K divides N.
        values: beside the keys.
        mask: True where the token is real; for "cudnn" a prefix, see `left_align`.
        scale: factor on the logits.
        kernel: from `choose_kernel`.

    Returns:
        Weighted values in the queries' dtype; finite and without meaning for padding.
    """
    if kernel == "splash":
        return fused_attention.splash(queries, keys, values, mask, scale)
    if kernel == "cudnn":
        lengths = jnp.sum(mask, axis=1, dtype=jnp.int32)
        return fused_attention.cudnn(queries, keys, values, lengths, scale)
    keys, values = jnp.swapaxes(keys, 1, 2), jnp.swapaxes(values, 1, 2)
    return attend(queries, keys, values, causal_mask(mask), scale)


def attend(
    queries: Float[Array, "B L N H"],
    keys: Float[Array, "B K C H"],
    values: Float[Array, "B K C H"],
    mask: Bool[Array, "B L C"],
    scale: float,
) -> Float[Array, "B L N H"]:
    """softmax(scale · q kᵀ) v; query head n reads key head n // (N / K).

    The softmax is float32 whatever the operands are. XLA's form on every platform: few
    queries over a cache fill no block of a fused kernel.

    Args:
        queries: of N heads.
        keys: of K heads, never repeated in memory; finite also behind the mask.
        values: beside the keys; finite also behind the mask.
        mask: True where the query sees the key.
        scale: factor on the logits, usually 1/√H.

    Returns:
        Weighted values in the queries' dtype; zeros for a query that sees no key.

    Raises:
        ValueError: the query heads do not divide into groups, or the mask's shape
            does not fit.

    Source: Ainslie et al. 2023 (arXiv 2305.13245).
    """
    batch, length, heads, _ = queries.shape
    _, kv_heads, slots, _ = keys.shape
    if heads % kv_heads:
        raise ValueError(
            f"{heads} query heads do not divide into groups over {kv_heads} key heads; "
            "use a multiple."
        )
    if mask.shape != (batch, length, slots):
        raise ValueError(
            f"attention mask has shape {mask.shape}; queries {queries.shape} and keys "
            f"{keys.shape} need {(batch, length, slots)}."
        )
    return _attend_xla(queries, keys, values, mask, scale)


def _attend_xla(queries, keys, values, mask, scale):
    length, kv_heads = queries.shape[1], keys.shape[1]
    # Two plain batched products, queries and weights on the left: einsum puts the cache
    # there, and XLA's CPU then multiplies values by a naive loop.
    grouped = einops.rearrange(queries, "b l (k g) h -> b k (l g) h", k=kv_heads)
    logits = jax.lax.dot_general(
        keys,
        grouped,
        (((3,), (3,)), ((0, 1), (0, 1))),
        preferred_element_type=jnp.float32,
    )
    logits = einops.rearrange(logits, "b k c (l g) -> b k l g c", l=length)
    weights = masked_softmax(logits * jnp.float32(scale), mask[:, None, :, None])
    weights = weights.astype(values.dtype)
    weights = einops.rearrange(weights, "b k l g c -> b k (l g) c")
    outputs = jax.lax.dot_general(weights, values, (((3,), (2,)), ((0, 1), (0, 1))))
    outputs = einops.rearrange(outputs, "b k (l g) h -> b l (k g) h", l=length)
    return outputs.astype(queries.dtype)
