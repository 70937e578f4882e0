"""Optimizer by regex rules: which parameters train, and how fast.

The first rule whose regex matches a parameter's whole path ("encoder/stack/…") decides;
its value is a multiple of the learning rate, one such multiple for each layer of a
scanned stack, or None for frozen. Frozen parameters get neither a gradient nor
optimizer slots.
"""

from __future__ import annotations

import dataclasses
import re
from typing import cast

import flax.traverse_util
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from nim4_jax.types import Params

Rate = float | tuple[float, ...] | None
Rules = tuple[tuple[str, Rate], ...]
FlatParams = dict[str, Array]


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Adam with linear warm-up, cosine decay and global-norm clipping.

    Attributes:
        peak_rate: learning rate at the end of the warm-up.
        warmup_steps: steps of linear warm-up.
        final_share: last learning rate over the peak.
        beta1: decay of the first moment.
        beta2: decay of the second moment.
        weight_decay: decoupled, on matrices only.
        clip_norm: largest global gradient norm.
    """

    peak_rate: float
    warmup_steps: int
    final_share: float = 0.05
    beta1: float = 0.9
    beta2: float = 0.98
    weight_decay: float = 0.0
    clip_norm: float = 1.0

    def schedule(self, steps: int) -> optax.Schedule:
        """Step → learning rate over a run of `steps`."""
        warmup = min(self.warmup_steps, max(steps - 1, 0))
        return optax.warmup_cosine_decay_schedule(
            0.0, self.peak_rate, warmup, steps, self.peak_rate * self.final_share
        )


def flatten(params: Params) -> FlatParams:
    """Nested dict → {"a/b/c": leaf}."""
    return cast(FlatParams, flax.traverse_util.flatten_dict(params, sep="/"))


def unflatten(flat: FlatParams) -> Params:
    """{"a/b/c": leaf} → nested dict."""
    return flax.traverse_util.unflatten_dict(flat, sep="/")


def match_known(paths: list[str], rules: Rules) -> dict[str, Rate]:
    """`match_rules` for the paths that some rule matches, and no others."""
    compiled = [re.compile(pattern) for pattern, _ in rules]
    known = [path for path in paths if any(regex.fullmatch(path) for regex in compiled)]
    return match_rules(known, rules)


def match_rules(paths: list[str], rules: Rules) -> dict[str, Rate]:
    """Path → value of the first rule that matches it whole.

    Raises:
        ValueError: a path that no rule matches, by name.
    """
    compiled = [(re.compile(pattern), value) for pattern, value in rules]
    found, missing = {}, []
    for path in paths:
        values = [value for regex, value in compiled if regex.fullmatch(path)]
        if not values:
            missing.append(path)
        else:
            found[path] = values[0]
    if missing:
        raise ValueError(
            f"no rule of {[pattern for pattern, _ in rules]} says whether to train "
            f"{missing}; add one, with None to freeze."
        )
    return found


def split_params(params: Params, rules: Rules) -> tuple[FlatParams, FlatParams]:
    """(trainable, frozen), both flat."""
    flat = flatten(params)
    rates = match_rules(sorted(flat), rules)
    trainable = {path: leaf for path, leaf in flat.items() if rates[path] is not None}
    return trainable, {
        path: leaf for path, leaf in flat.items() if path not in trainable
    }


def make_optimizer(
    config: OptimizerConfig, rules: Rules, steps: int
) -> optax.GradientTransformation:
    """The transformation for the trainable, flat part of the parameters."""

    def scale_by_rule(updates: FlatParams, params: FlatParams | None) -> FlatParams:
        rates = match_rules(sorted(updates), rules)
        return {path: _scale(path, leaf, rates[path]) for path, leaf in updates.items()}

    def is_matrix(params: FlatParams) -> dict[str, bool]:
        return {path: path.endswith(("kernel", "table")) for path in params}

    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.scale_by_adam(config.beta1, config.beta2),
        optax.add_decayed_weights(config.weight_decay, mask=is_matrix),
        optax.stateless(scale_by_rule),
        optax.scale_by_learning_rate(config.schedule(steps)),
    )


def _scale(path: str, update: Array, rate: Rate) -> Array:
    """An update times its rate, or each layer of it times its own.

    Raises:
        ValueError: not a rate for each layer.
    """
    if not isinstance(rate, tuple):
        return update * (rate or 0.0)
    if not update.ndim or len(rate) != update.shape[0]:
        raise ValueError(
            f"a rule gives {len(rate)} rates, one a layer, to {path} of shape "
            f"{update.shape}; give as many as its first axis has, or one for all."
        )
    factors = jnp.asarray(rate, update.dtype)
    return update * factors.reshape((-1,) + (1,) * (update.ndim - 1))


def global_norm(tree: FlatParams) -> Array:
    """√Σ leaf², in float32."""
    squares = [jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in tree.values()]
    return jnp.sqrt(sum(squares, jnp.zeros(())))


def count_parameters(tree: Params) -> int:
    """Number of scalars in a tree of arrays or shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
