"""Packing of a model into one file: chosen parts, LoRA merged, weights in int8."""

from __future__ import annotations

import dataclasses
from typing import Any

from nim4_jax.model_files import loading
from nim4_jax.models import lora, quantisation
from nim4_jax.train import optim, parameter_count
from nim4_jax.types import Params
from nim4_jax.weights import snapshot


def run(
    model: str, out: str, dtype: str, parts: list[str], merge_lora: bool = False
) -> None:
    """Write the chosen parts of a model.

    Raises:
        ValueError: a part that the model does not have, or no LoRA to merge.
    """
    if not out.endswith(".safetensors"):
        raise ValueError(f"--out={out} must end in .safetensors.")
    params, meta = loading.load_model(model)
    if unknown := sorted(set(parts) - set(params)):
        raise ValueError(f"{model} has no part {unknown}; it has {sorted(params)}.")
    if merge_lora:
        if not meta["model"]["llm"]["lora"]["rank"] or "llm" not in params:
            raise ValueError(f"{model} has no LoRA to merge.")
        params, meta = merge(params, meta)
    kept = {name: params[name] for name in parts or sorted(params)}
    if dtype == "int8":
        kept, meta = quantise(kept, meta)
    snapshot.write(out, kept, meta, dtype)
    print(f"{out}: {optim.count_parameters(kept) / 1e6:.2f} M parameters")


def merge(params: Params, meta: dict[str, Any]) -> tuple[Params, dict[str, Any]]:
    """Parameters and meta of the same model with LoRA's products in its kernels."""
    config = loading.build_model_config(meta["model"]).llm.lora
    llm = meta["model"]["llm"]
    llm = {**llm, "lora": {**llm["lora"], "rank": 0}}
    merged = {**params, "llm": lora.merge(params["llm"], config)}
    return merged, {**meta, "model": {**meta["model"], "llm": llm}}


def quantise(params: Params, meta: dict[str, Any]) -> tuple[Params, dict[str, Any]]:
    """Parameters and meta of the same model with int8 weights."""
    config = loading.build_model_config(meta["model"])
    policy = dataclasses.replace(config.policy, weights="int8")
    traced = parameter_count.trace_params(dataclasses.replace(config, policy=policy))
    shapes = {path: leaf.shape for path, leaf in optim.flatten(traced).items()}
    model = {**meta["model"], "policy": dataclasses.asdict(policy)}
    params = {name: part for name, part in params.items() if name in traced}
    return quantisation.quantise(params, shapes), {**meta, "model": model}
