"""The weighted mean of several models."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nim4_jax.model_files import loading
from nim4_jax.train import optim
from nim4_jax.types import Params
from nim4_jax.weights import snapshot


def run(
    models: Sequence[str], weights: Sequence[float], out: str, dtype: str = "bfloat16"
) -> None:
    """Write the weighted mean of models.

    Args:
        models: what `loading.load_model` loads; facts are those of the first.
        weights: positive, one for each, of any sum; () for equal ones.
        out: file, *.safetensors.
        dtype: of matrices.

    Raises:
        ValueError: weights that do not fit the models, or parameters of other shapes.
    """
    if not out.endswith(".safetensors"):
        raise ValueError(f"--out={out} must end in .safetensors.")
    weights = tuple(weights) or (1.0,) * len(models)
    if len(weights) != len(models) or not all(
        weight > 0 and np.isfinite(weight) for weight in weights
    ):
        raise ValueError(
            f"--weights={','.join(map(str, weights))} must be {len(models)} positive "
            "numbers, one for each model."
        )
    facts = loading.load_model(models[0])[1]
    policy = {**facts["model"].get("policy", {}), "weights": "float"}
    facts = {**facts, "model": {**facts["model"], "policy": policy}}
    mean = average([loading.load_trainable(model) for model in models], weights)
    snapshot.write(out, mean, facts, dtype)
    print(f"{out}: {optim.count_parameters(mean) / 1e6:.2f} M parameters")


def average(models: Sequence[Params], weights: Sequence[float]) -> Params:
    """The mean of each parameter over the models that have its part, float32.

    Raises:
        ValueError: a part whose parameters differ in name or shape, by name.
    """
    made: Params = {}
    for part in dict.fromkeys(name for model in models for name in model):
        pairs = [pair for pair in zip(models, weights, strict=True) if part in pair[0]]
        flats = [optim.flatten({part: model[part]}) for model, _ in pairs]
        shapes = [{path: np.shape(x) for path, x in flat.items()} for flat in flats]
        for other in shapes[1:]:
            if wrong := sorted(shapes[0].items() ^ other.items()):
                raise ValueError(
                    f"{wrong[0][0]} is not the same in all models ({wrong[0][1]} in "
                    "some); average models of one shape."
                )
        shares = np.array([weight for _, weight in pairs]) / sum(w for _, w in pairs)
        made |= optim.unflatten({path: _mean(path, flats, shares) for path in flats[0]})
    return made


def _mean(path: str, flats: Sequence[Params], shares: Sequence[float]) -> np.ndarray:
    leaves = [np.asarray(flat[path], np.float64) for flat in flats]
    total = np.sum([x * share for x, share in zip(leaves, shares)], axis=0)
    return total.astype(np.float32)
