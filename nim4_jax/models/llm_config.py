"""The LLM's configuration: shape, and which family it is of (Qwen3, Qwen2.5, Llama)."""

from __future__ import annotations

import dataclasses
import math

from nim4_jax import layers


@dataclasses.dataclass(frozen=True)
class LLMConfig:
    """Shape and variant of the LLM.

    variant | qk_norm | qkv_bias | tie_embeddings
    Qwen3   |    1    |    0     | by size
    Qwen2.5 |    0    |    1     | by size
    Llama   |    0    |    0     | by size

    Attributes:
        vocab_size: V.
        width: D, of the residual stream.
        num_layers: blocks.
        num_heads: N, query heads.
        num_kv_heads: K, key and value heads; divides N.
        head_dim: H, even; need not be D / N.
        ffn: F, width of the SwiGLU.
        rope_theta: base of RoPE.
        norm_epsilon: of every RMSNorm.
        qk_norm: RMSNorm on each head's query and key before RoPE.
        qkv_bias: biases on the query, key and value projections.
        tie_embeddings: logits from the embedding table, else from a head of their own.
        lora: low-rank adaptation of the projections; its matrices are named lora_a and
            lora_b, for the rules of a stage.
    """

    vocab_size: int
    width: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    ffn: int
    rope_theta: float = 1e6
    norm_epsilon: float = 1e-6
    qk_norm: bool = True
    qkv_bias: bool = False
    tie_embeddings: bool = True
    lora: layers.LoraConfig = layers.NO_LORA

    def __post_init__(self):
        sizes = ("vocab_size", "width", "num_layers", "num_heads", "num_kv_heads")
        for name in (*sizes, "head_dim", "ffn"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"llm.{name}={value!r} must be an integer ≥ 1.")
        for name in ("rope_theta", "norm_epsilon"):
            if not (value := getattr(self, name)) > 0.0 or not math.isfinite(value):
                raise ValueError(f"llm.{name}={value!r} must be a positive number.")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"llm.num_heads={self.num_heads} is no multiple of "
                f"llm.num_kv_heads={self.num_kv_heads}; each key head serves a whole "
                "group of query heads."
            )
        if self.head_dim % 2:
            raise ValueError(
                f"llm.head_dim={self.head_dim} is odd; RoPE turns pairs, use an even "
                "number."
            )
