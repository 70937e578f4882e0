"""Merging of LoRA matrices into the kernels that they adapt: kernel + α/r · A·B.

The forward pass is `layers.Projection`'s.
"""

from __future__ import annotations

import numpy as np

from nim4_jax.layers import LoraConfig
from nim4_jax.types import Params

A, B = "lora_a", "lora_b"


def merge(params: Params, config: LoraConfig) -> Params:
    """Every adapted kernel with its product added; A and B are gone.

    Args:
        params: nested dict of arrays; parts without A and B stay as they are.
        config: with which they were trained.
    """
    if A not in params:
        return {
            name: merge(part, config) if isinstance(part, dict) else part
            for name, part in params.items()
        }
    kept = {name: leaf for name, leaf in params.items() if name not in (A, B)}
    return {**kept, "kernel": _add(params, config.scale)}


def _add(params: Params, scale: float) -> np.ndarray:
    """kernel + scale · A·B, float64 inside; layers on a leading axis."""
    kernel = np.asarray(params["kernel"])
    down, up = (np.asarray(params[name], np.float64) for name in (A, B))
    layers, rank = down.shape[0], down.shape[-1]
    product = down.reshape(layers, -1, rank) @ up.reshape(layers, rank, -1)
    return (kernel + scale * product.reshape(kernel.shape)).astype(kernel.dtype)
