"""Weight-only int8 for inference: kernels and embedding tables, a scale per output.

kernel ≈ kernel_int8 · kernel_scale, symmetric; what is multiplied is in the compute
dtype, so activations keep their precision. `layers.Projection` and `layers.Embed` read
the two leaves under `Policy(weights="int8")`. Plain arrays and not a library's own
types, so that snapshots, exports and sharding rules need to know nothing of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from nim4_jax.types import Params

_INT8, _SCALE = "_int8", "_scale"
_LARGEST = 127


def quantise(params: Params, shapes: Mapping[str, tuple[int, ...]]) -> Params:
    """Parameters of a float model → those of the same model with int8 weights.

    Args:
        params: nested dict of arrays; parts that `shapes` lacks stay as they are.
        shapes: by path, of the parameters of the model with int8 weights.

    Raises:
        ValueError: a kernel is missing or of another shape, by path.
    """
    flat: dict[str, Any] = traverse_util.flatten_dict(params, sep="/")
    made = dict(flat)
    for path, shape in shapes.items():
        name = path.removesuffix(_INT8)
        if name == path or path.split("/")[0] not in params:
            continue
        if name not in flat or flat[name].shape != shape:
            found = flat[name].shape if name in flat else "nothing"
            raise ValueError(
                f"{name}: found {found}, expected a kernel {shape}; is the "
                "model quantised already?"
            )
        scale = shapes[name + _SCALE]
        reduced = tuple(
            axis
            for axis, (size, kept) in enumerate(zip(shape, scale))
            if kept == 1 and size > 1
        )
        made[path], made[name + _SCALE] = _round(np.asarray(made.pop(name)), reduced)
    return traverse_util.unflatten_dict(made, sep="/")


def dequantise(params: Params) -> Params:
    """Parameters with int8 weights → float32 ones of the same model, nested dict."""
    flat: dict[str, Any] = traverse_util.flatten_dict(params, sep="/")
    made = {}
    for path, leaf in flat.items():
        name = path.removesuffix(_INT8)
        if name != path:
            made[name] = np.asarray(leaf, np.float32) * np.asarray(flat[name + _SCALE])
        elif path.removesuffix(_SCALE) + _INT8 not in flat:
            made[path] = leaf
    return traverse_util.unflatten_dict(made, sep="/")


def _round(kernel: np.ndarray, axes: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """int8 values and float32 scales; the largest of each output becomes ±127."""
    kernel = kernel.astype(np.float32)
    peak = np.abs(kernel).max(axis=axes, keepdims=True)
    scale = np.where(peak > 0.0, peak, 1.0).astype(np.float32) / _LARGEST
    return np.rint(kernel / scale).astype(np.int8), scale
