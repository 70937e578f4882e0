"""Hugging Face checkpoints of the Qwen3, Qwen2 and Llama families ↔ our LLM.

Sources: transformers `Qwen3ForCausalLM`, `Qwen2ForCausalLM`, `LlamaForCausalLM` (names
of tensors and of config keys).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nim4_jax.models.llm_config import LLMConfig
from nim4_jax.weights.rules import BIAS, Rule, linear

FAMILIES = {
    "qwen3": {"qk_norm": True, "qkv_bias": False},
    "qwen2": {"qk_norm": False, "qkv_bias": True},
    "llama": {"qk_norm": False, "qkv_bias": False},
}
_CLASSES = {
    "qwen3": "Qwen3ForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "llama": "LlamaForCausalLM",
}
# What our blocks do not have: each key must be absent or have one of these values.
_REFUSED = {
    "hidden_act": ("silu",),
    "mlp_bias": (False,),
    "rope_scaling": (None,),
    "use_sliding_window": (False,),
    "quantization_config": (None,),
}

_OURS, _THEIRS = "llm/layers/", "model.layers.{layer}."
_ATTENTION = {"query": "q", "key": "k", "value": "v"}
RULES = (
    Rule("llm/embedding/table", "model.embed_tokens.weight"),
    *(
        Rule(
            f"{_OURS}attention/{ours}/kernel",
            f"{_THEIRS}self_attn.{theirs}_proj.weight",
            linear(),
        )
        for ours, theirs in _ATTENTION.items()
    ),
    *(
        Rule(
            f"{_OURS}attention/{ours}/bias",
            f"{_THEIRS}self_attn.{theirs}_proj.bias",
            BIAS,
        )
        for ours, theirs in _ATTENTION.items()
    ),
    Rule(
        f"{_OURS}attention/output/kernel",
        f"{_THEIRS}self_attn.o_proj.weight",
        linear(inputs=2),
    ),
    Rule(f"{_OURS}attention/query_norm/scale", f"{_THEIRS}self_attn.q_norm.weight"),
    Rule(f"{_OURS}attention/key_norm/scale", f"{_THEIRS}self_attn.k_norm.weight"),
    *(
        Rule(f"{_OURS}mlp/{name}/kernel", f"{_THEIRS}mlp.{name}_proj.weight", linear())
        for name in ("gate", "up", "down")
    ),
    Rule(f"{_OURS}attention_norm/scale", f"{_THEIRS}input_layernorm.weight"),
    Rule(f"{_OURS}mlp_norm/scale", f"{_THEIRS}post_attention_layernorm.weight"),
    Rule("llm/final_norm/scale", "model.norm.weight"),
    Rule("llm/head/table", "lm_head.weight"),
)


def read_config(folder: str, name: str = "config.json") -> dict[str, Any]:
    """config.json, or another JSON file, of a model folder.

    Raises:
        ValueError: it is missing or no JSON object.
    """
    path = Path(folder, name)
    try:
        config = json.loads(path.read_text("utf8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read ({error}).") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds no JSON object.")
    return config


def to_llm_config(config: dict[str, Any]) -> LLMConfig:
    """Their config.json as our LLMConfig.

    Raises:
        ValueError: an unknown family, a missing key, or a variant that our blocks lack.
    """
    family = config.get("model_type")
    if family not in FAMILIES:
        raise ValueError(
            f"config.json: model_type {family!r} is unknown; "
            f"convertible are {sorted(FAMILIES)}."
        )
    for key, allowed in _REFUSED.items():
        if config.get(key, allowed[0]) not in allowed:
            raise ValueError(
                f"config.json: {key}={config[key]!r} is not supported, only "
                f"{allowed[0]!r}."
            )
    if config.get("attention_bias", False) and family != "qwen2":
        raise ValueError("config.json: attention_bias is not supported with an output.")
    rope = config.get("rope_parameters") or {}
    if rope.get("rope_type", "default") != "default":
        raise ValueError(
            f"config.json: rope_type={rope['rope_type']!r} is not supported, only "
            "'default'."
        )
    try:
        heads = config["num_attention_heads"]
        return LLMConfig(
            vocab_size=config["vocab_size"],
            width=config["hidden_size"],
            num_layers=config["num_hidden_layers"],
            num_heads=heads,
            num_kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or config["hidden_size"] // heads,
            ffn=config["intermediate_size"],
            rope_theta=float(
                rope.get("rope_theta") or config.get("rope_theta", 10_000.0)
            ),
            norm_epsilon=float(config.get("rms_norm_eps", 1e-6)),
            tie_embeddings=bool(config.get("tie_word_embeddings", False)),
            **FAMILIES[family],
        )
    except KeyError as error:
        raise ValueError(f"config.json lacks {error}.") from error


def find_family(config: LLMConfig) -> str:
    """The family whose switches a config has.

    Raises:
        ValueError: QK-norm together with QKV biases, which no family has.
    """
    for family, switches in FAMILIES.items():
        if all(getattr(config, name) == value for name, value in switches.items()):
            return family
    raise ValueError("no family has both QK-norm and QKV biases.")


def from_llm_config(config: LLMConfig, dtype: str) -> dict[str, Any]:
    """Our LLMConfig as a config.json that transformers loads."""
    family = find_family(config)
    made = {
        "architectures": [_CLASSES[family]],
        "model_type": family,
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.ffn,
        "rope_theta": config.rope_theta,
        "rms_norm_eps": config.norm_epsilon,
        "tie_word_embeddings": config.tie_embeddings,
        "hidden_act": "silu",
        "attention_bias": config.qkv_bias,
        "max_position_embeddings": 32_768,
        "torch_dtype": dtype,
    }
    if family == "qwen2" and config.head_dim * config.num_heads != config.width:
        raise ValueError(
            f"transformers' Qwen2 has head_dim = width / heads; {config.head_dim} · "
            f"{config.num_heads} is not {config.width}."
        )
    return made


def is_ignored(name: str, config: LLMConfig) -> bool:
    """Tensors that hold nothing of their own: RoPE tables and a tied head."""
    tied = config.tie_embeddings and name == "lm_head.weight"
    return tied or name.endswith(".rotary_emb.inv_freq")
