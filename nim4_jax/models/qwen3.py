"""The decoder-only LLM: Qwen3, and by its switches Qwen2.5 and Llama."""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from nim4_jax import layers, sharding, struct
from nim4_jax.models import kv_cache, llm_config
from nim4_jax.ops import activation, attention, rotary
from nim4_jax.types import Params

PACKED_HEADS, PACKED_FFN = "heads", "gate_up"
"""Modules of a packed block in place of query, key and value, of gate and up."""

Cached = tuple[Array, Array] | None
"""Keys and values, of all layers under a scan, else of one; None without a cache."""


@struct.dataclass
class Context:
    """What every layer needs beside the hidden states.

    Attributes:
        angles: cosines and sines of the new tokens.
        mask: Bool[Array, "B L"], which new tokens are real.
        visible: Bool[Array, "B L C"], which slots each new token sees; None without a
            cache: then the real ones at or before it.
        start: Int[Array, "B"], slot of the first new token; None without a cache.
        kernel: of the attention without a cache.
    """

    angles: tuple[Array, Array]
    mask: Bool[Array, "B L"]
    visible: Bool[Array, "B L C"] | None = None
    start: Int[Array, " B"] | None = None
    kernel: str = struct.static(default="xla")


class Attention(nn.Module):
    """Causal grouped-query self-attention with RoPE over the cache and the new tokens.

    Attributes:
        config: LLMConfig.
        policy: dtypes.
        packed: products joined, as `pack` joins their kernels.
    """

    config: llm_config.LLMConfig
    policy: layers.Policy
    packed: bool = False

    def _project(self, hidden: Array, heads: int, axis: str | None, name: str) -> Array:
        return layers.Projection(
            (self.config.width,),
            (heads, self.config.head_dim),
            ("embed", axis, "head_dim"),
            self.policy,
            bias=self.config.qkv_bias,
            lora=self.config.lora,
            name=name,
        )(hidden)

    def _project_all(self, hidden: Array) -> tuple[Array, Array, Array]:
        """Queries, keys and values."""
        own, shared = self.config.num_heads, self.config.num_kv_heads
        if self.packed:
            heads = self._project(hidden, own + 2 * shared, None, PACKED_HEADS)
            queries, keys, values = jnp.split(heads, (own, own + shared), axis=2)
            return queries, keys, values
        return (
            self._project(hidden, own, "heads", "query"),
            self._project(hidden, shared, "kv_heads", "key"),
            self._project(hidden, shared, "kv_heads", "value"),
        )

    def _read(self, cached: tuple[Array, Array], layer: Array | None):
        if layer is None:
            return cached
        pick = functools.partial(jax.lax.dynamic_index_in_dim, keepdims=False)
        return pick(cached[0], layer), pick(cached[1], layer)

    @nn.compact
    def __call__(
        self,
        hidden: Float[Array, "B L D"],
        cached: Cached,
        layer: Int[Array, ""] | None,
        context: Context,
    ) -> tuple[Float[Array, "B L D"], Cached]:
        """Write the new keys and values into the cache, if any, and attend.

        Returns:
            (outputs, what was cached with this layer's new tokens).
        """
        c = self.config
        queries, keys, values = self._project_all(hidden)
        if c.qk_norm:
            norm = layers.RMSNorm
            queries = norm(self.policy, c.norm_epsilon, name="query_norm")(queries)
            keys = norm(self.policy, c.norm_epsilon, name="key_norm")(keys)
        queries = rotary.rotate(queries, *context.angles)
        keys = rotary.rotate(keys, *context.angles)
        scale = 1.0 / math.sqrt(c.head_dim)
        if cached is not None:
            cached = (
                kv_cache.write(cached[0], keys, context.start, layer),
                kv_cache.write(cached[1], values, context.start, layer),
            )
            keys, values = map(self.policy.cast, self._read(cached, layer))
            outputs = attention.attend(queries, keys, values, context.visible, scale)
        else:
            outputs = attention.attend_causal(
                queries, keys, values, context.mask, scale, context.kernel
            )
        outputs = layers.Projection(
            (c.num_heads, c.head_dim),
            (c.width,),
            ("heads", "head_dim", "embed"),
            self.policy,
            lora=c.lora,
            name="output",
        )(outputs)
        return outputs, cached


class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate(x)) · up(x)), without biases.

    Attributes:
        config: LLMConfig.
        policy: dtypes.
        packed: products joined, as `pack` joins their kernels.
    """

    config: llm_config.LLMConfig
    policy: layers.Policy
    packed: bool = False

    @nn.compact
    def __call__(self, hidden: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        width, ffn = self.config.width, self.config.ffn

        def project(size_in, size_out, axes, name):
            return layers.linear(
                size_in,
                size_out,
                axes,
                self.policy,
                bias=False,
                lora=self.config.lora,
                name=name,
            )

        if self.packed:
            both = project(width, 2 * ffn, ("embed", None), PACKED_FFN)(hidden)
            gate, up = jnp.split(both, 2, axis=-1)
        else:
            gate = project(width, ffn, ("embed", "mlp"), "gate")(hidden)
            up = project(width, ffn, ("embed", "mlp"), "up")(hidden)
        gated = activation.swiglu(gate, up)
        return project(ffn, width, ("mlp", "embed"), "down")(gated)


class Block(nn.Module):
    """x + attention(norm(x)), then x + ffn(norm(x)).

    Attributes:
        config: LLMConfig.
        policy: dtypes.
        packed: products joined, as `pack` joins their kernels.
    """

    config: llm_config.LLMConfig
    policy: layers.Policy
    packed: bool = False

    @nn.compact
    def __call__(
        self,
        carry: tuple[Float[Array, "B L D"], Cached],
        layer: Int[Array, ""] | None,
        context: Context,
    ) -> tuple[tuple[Float[Array, "B L D"], Cached], None]:
        """One layer, as the body of the scan over layers; `layer` None: packed."""
        hidden, cached = carry
        epsilon = self.config.norm_epsilon
        normed = layers.RMSNorm(self.policy, epsilon, name="attention_norm")(hidden)
        made = (self.config, self.policy, self.packed)
        outputs, cached = Attention(*made, name="attention")(
            normed, cached, layer, context
        )
        hidden = hidden + outputs
        normed = layers.RMSNorm(self.policy, epsilon, name="mlp_norm")(hidden)
        hidden = hidden + FeedForward(*made, name="mlp")(normed)
        hidden = sharding.constrain(hidden, "batch", "sequence", None)
        return (hidden, cached), None


def _stack(config: llm_config.LLMConfig, policy: layers.Policy, remat: str):
    """All blocks as one scanned module, parameters with a leading axis "layers"."""
    scanned = nn.scan(
        layers.rematerialise(Block, remat),
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=(0, nn.broadcast),
        length=config.num_layers,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )
    return scanned(config, policy)


def pack(params: Params) -> Params:
    """Parameters of a scanned `Qwen3` → those of a packed one.

    Raises:
        ValueError: LoRA matrices stand beside the kernels.
    """
    stacked = params["layers"]
    attention, mlp = dict(stacked["attention"]), dict(stacked["mlp"])
    for part in (attention, mlp):
        if adapted := sorted(name for name in part if "lora_a" in part[name]):
            raise ValueError(
                f"{adapted} hold LoRA matrices; merge them before packing."
            )

    def join(part: Params, names: tuple[str, ...], axis: int) -> Params:
        parts = [part.pop(name) for name in names]
        return jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis), *parts)

    attention[PACKED_HEADS] = join(attention, ("query", "key", "value"), -2)
    mlp[PACKED_FFN] = join(mlp, ("gate", "up"), -1)
    stacked = {**stacked, "attention": attention, "mlp": mlp}
    count = len(jax.tree.leaves(stacked)[0])
    made = {name: part for name, part in params.items() if name != "layers"}
    for number in range(count):
        take = operator.itemgetter(number)
        made[f"layer_{number}"] = jax.tree.map(take, stacked)
    return made


def _take_tokens(array: Shaped[Array, "B L ..."], index: Int[Array, "B L"]) -> Array:
    """Each row's tokens in another order, chosen once for all layers."""
    index = index.reshape(*index.shape, *(1 for _ in array.shape[2:]))
    return jnp.take_along_axis(array, index, axis=1)


class Qwen3(nn.Module):
    """Embedding, scanned decoder blocks, final norm and (tied) logits.

    Causality is layout order (the slot index); positions drive RoPE alone. So a masked
    gap between two segments changes nothing, if positions count real tokens only
    (`rotary.count_positions`).

    Attributes:
        config: LLMConfig.
        policy: dtypes.
        remat: what the backward pass recomputes: "none", "full" (each block whole) or
            "dots" (all but the products with parameters).
        packed: for decoding on one device, with parameters from `pack`: blocks stand
            one after the other, and query, key and value (gate and up) are one product.
            A scan copies each layer's kernels out of the stack before it multiplies,
            which costs more than the product itself when the rows are few. Not for
            int8 weights, of which a scan converts one layer at a time.
    """

    config: llm_config.LLMConfig
    policy: layers.Policy
    remat: str = "none"
    packed: bool = False

    def setup(self):
        c = self.config
        self.embedding = layers.Embed(c.vocab_size, c.width, self.policy)
        if self.packed:
            self.layer = [
                Block(c, self.policy, packed=True) for _ in range(c.num_layers)
            ]
        else:
            self.layers = _stack(c, self.policy, self.remat)
        self.final_norm = layers.RMSNorm(self.policy, c.norm_epsilon)
        if not c.tie_embeddings:
            self.head = layers.Embed(c.vocab_size, c.width, self.policy)

    def embed(self, tokens: Int[Array, "B L"]) -> Float[Array, "B L D"]:
        """Embedding vectors of token ids in the compute dtype."""
        return sharding.constrain(self.embedding(tokens), "batch", None, None)

    def __call__(
        self,
        embeddings: Float[Array, "B L D"],
        positions: Int[Array, "B L"],
        mask: Bool[Array, "B L"],
        cache: kv_cache.KVCache | None = None,
    ) -> tuple[Float[Array, "B L D"], kv_cache.KVCache | None]:
        """Run the blocks over L new tokens, after those in the cache if there is one.

        Args:
            embeddings: of tokens or of speech; anything, NaN too, behind the mask.
            positions: for RoPE.
            mask: True where the token is real; others are never attended to.
            cache: earlier tokens; must have room for L more.

        Returns:
            (hidden states after the final norm, meaningless behind the mask; the cache
            with the new tokens, None if none came).
        """
        zero = jnp.zeros((), self.policy.dtype)
        hidden = jnp.where(mask[:, :, None], self.policy.cast(embeddings), zero)
        hidden = sharding.constrain(hidden, "batch", "sequence", None)
        c = self.config
        kernel = attention.choose_kernel(
            self.policy.kernels, self.policy.dtype, c.head_dim
        )
        start = visible = places = None
        if cache is not None:
            start = cache.length
            cache = kv_cache.extend(cache, mask)
            visible = kv_cache.visible_slots(cache, mask.shape[1])
        elif kernel == "cudnn":
            order, places = attention.left_align(mask)
            hidden = _take_tokens(hidden, order)
            positions, mask = _take_tokens(positions, order), _take_tokens(mask, order)
        angles = rotary.rotary_angles(positions, c.head_dim, c.rope_theta)
        context = Context(angles, mask, visible, start, kernel)
        run = self._run_packed if self.packed else self._run_scanned
        hidden, cache = run(hidden, cache, context)
        if places is not None:
            hidden = _take_tokens(hidden, places)
        return self.final_norm(hidden), cache

    def _run_scanned(
        self, hidden: Array, cache: kv_cache.KVCache | None, context: Context
    ) -> tuple[Array, kv_cache.KVCache | None]:
        """All blocks; the cache is the scan's carry, so that it changes in place."""
        cached = None if cache is None else (cache.keys, cache.values)
        numbers = jnp.arange(self.config.num_layers, dtype=jnp.int32)
        (hidden, cached), _ = self.layers((hidden, cached), numbers, context)
        if cache is not None and cached is not None:
            cache = dataclasses.replace(cache, keys=cached[0], values=cached[1])
        return hidden, cache

    def _run_packed(
        self, hidden: Array, cache: kv_cache.KVCache | None, context: Context
    ) -> tuple[Array, kv_cache.KVCache | None]:
        """All blocks, each with its own part of the cache."""
        kept: list[Any] = [None] * self.config.num_layers
        if cache is not None:
            kept = list(zip(cache.keys, cache.values))
        for number, block in enumerate(self.layer):
            (hidden, kept[number]), _ = block((hidden, kept[number]), None, context)
        if cache is not None:
            keys, values = zip(*kept)
            cache = dataclasses.replace(cache, keys=keys, values=values)
        return hidden, cache

    def unembed(self, hidden: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        """float32 logits over the vocabulary."""
        table = self.embedding if self.config.tie_embeddings else self.head
        return table.attend(hidden)

    def logits(
        self, tokens: Int[Array, "B L"], mask: Bool[Array, "B L"]
    ) -> Float[Array, "B L V"]:
        """Teacher-forced logits of plain text: embed, run, unembed."""
        positions = rotary.count_positions(mask)
        hidden, _ = self(self.embed(tokens), positions, mask)
        return self.unembed(hidden)
