"""Shardings of parameters and optimizer state on the mesh."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.tree_util import DictKey

from nim4_jax import sharding
from nim4_jax.models.asr import AsrConfig, abstract_params
from nim4_jax.train import optim
from nim4_jax.train.state import REFERENCE

PathAxes = dict[str, tuple[str | None, ...]]
"""Path of a parameter → a logical name for each of its axes."""


def find_axes(config: AsrConfig) -> PathAxes:
    """Logical axes of every parameter that a model of that shape can have."""
    specs = optim.flatten(nn.get_partition_spec(abstract_params(config)))
    return {path: tuple(spec) for path, spec in specs.items()}


def to_shardings(mesh: Mesh, tree: Any, axes: PathAxes) -> Any:
    """A sharding for every leaf of a train state, of parameters, or of their shapes.

    Optimizer slots lie as their parameters do, and so does the frozen copy of a policy;
    what is no parameter's (counters) is whole on every device.

    Args:
        mesh: to place it on.
        tree: arrays or shapes; dict keys on the way to a leaf spell its path.
        axes: from `find_axes`.

    Raises:
        ValueError: a parameter that does not divide over the mesh.
    """
    shapes: dict[str, tuple[int, ...]] = {}

    def choose(route: tuple[Any, ...], leaf: Any) -> NamedSharding:
        path = _spell(route)
        if path not in axes or len(axes[path]) != len(leaf.shape):
            return NamedSharding(mesh, PartitionSpec())
        shapes[path] = leaf.shape
        return NamedSharding(mesh, sharding.to_spec(axes[path]))

    chosen = jax.tree_util.tree_map_with_path(choose, tree)
    sharding.check_divisible(mesh, shapes, axes)
    return chosen


def _spell(route: tuple[Any, ...]) -> str:
    """ "llm/layers/…" of a leaf, wherever in the state it stands."""
    path = "/".join(str(key.key) for key in route if isinstance(key, DictKey))
    return path.removeprefix(f"{REFERENCE}/")


def choose(tree: Any, config: AsrConfig) -> Any:
    """`to_shardings` on the current mesh; None for each leaf without one."""
    mesh = sharding.current_mesh()
    if mesh.empty:
        return None
    return to_shardings(mesh, tree, find_axes(config))


def annotate(tree: Any, config: AsrConfig) -> Any:
    """Shapes that say where their arrays shall lie, to restore a checkpoint with."""
    mesh = sharding.current_mesh()
    return jax.tree.map(
        lambda leaf, placed: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=placed
        ),
        tree,
        to_shardings(mesh, tree, find_axes(config)),
    )


def place(tree: Any, config: AsrConfig) -> Any:
    """Whole arrays → the same ones, cut as the current mesh wants them."""
    chosen = choose(tree, config)
    return jax.device_put(tree) if chosen is None else sharding.place(tree, chosen)
