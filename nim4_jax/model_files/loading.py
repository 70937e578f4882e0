"""Loading of models: parameters, config and tokenizer of a workdir or a snapshot."""

from __future__ import annotations

from importlib import resources
from typing import Any

import numpy as np

import nim4_jax
from nim4_jax import settings
from nim4_jax.models import quantisation
from nim4_jax.models.asr import AsrConfig, Prompt
from nim4_jax.text import phonemes, prompt
from nim4_jax.text.tokenizer import Tokenizer
from nim4_jax.train.checkpoints import checkpoint
from nim4_jax.types import Params
from nim4_jax.weights import snapshot

PACKAGED = ("nano", "base")
"""Tokenizers that come with the package."""


def find_tokenizer(name: str) -> str:
    """Path of a tokenizer.json: that of a name of PACKAGED, anything else is a path."""
    if name in PACKAGED:
        folder = resources.files(nim4_jax) / "text" / "resources"
        return str(folder / f"{name}_tokenizer.json")
    return name


def make_prompt(tokenizer: Tokenizer) -> Prompt:
    """Token ids around the speech, without hints."""
    return Prompt(
        tuple(prompt.encode_prefix(tokenizer)), tuple(prompt.encode_suffix(tokenizer))
    )


def build_model_config(values: dict[str, Any]) -> AsrConfig:
    """`config.model` as dataclasses, with the phoneme inventory of this package."""
    values = {"num_phonemes": len(phonemes.INVENTORY), **values}
    return settings.build(AsrConfig, values, "config.model")


def check_vocabulary(tokenizer: Tokenizer, model: AsrConfig) -> None:
    """Refuse a tokenizer with more ids than the LLM has embeddings."""
    if tokenizer.vocab_size > model.llm.vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size} ids, the LLM only "
            f"{model.llm.vocab_size} embeddings; set config.model.llm.vocab_size."
        )


def load_model(origin: str) -> tuple[Params, dict[str, Any]]:
    """Parameters and meta of a workdir or of a .safetensors snapshot.

    Raises:
        ValueError: nothing to load, or made with another phoneme inventory.
    """
    if origin.endswith(".safetensors"):
        params, meta = snapshot.read(resolve(origin))
    else:
        params, meta = checkpoint.load_params(origin)
    if meta["phonemes"] != phonemes.INVENTORY_HASH:
        raise ValueError(
            f"{origin} was made with phoneme inventory {meta['phonemes'][:12]}, this "
            f"package has {phonemes.INVENTORY_HASH[:12]}; its phoneme head means other "
            "sounds. Use the version of the package that made it."
        )
    for name, leaf in params.items():
        if not leaf or not all(np.asarray(x).size for x in _leaves(leaf)):
            raise ValueError(f"{origin} holds an empty part {name!r}.")
    return params, meta


def load_trainable(origin: str) -> Params:
    """Parameters of a workdir or snapshot to train from; int8 ones become float32.

    Raises:
        ValueError: see `load_model`.
    """
    params, meta = load_model(origin)
    policy = meta["model"].get("policy", {})
    if policy.get("weights", "float") == "int8":
        params = quantisation.dequantise(params)
    return params


def _leaves(tree: Any) -> list[Any]:
    if isinstance(tree, dict):
        return [leaf for value in tree.values() for leaf in _leaves(value)]
    return [tree]


def resolve(path: str) -> str:
    """A path; "package:NAME" is a file that comes with the package."""
    if not path.startswith("package:"):
        return path
    return str(resources.files(nim4_jax) / "pretrained" / path.removeprefix("package:"))
