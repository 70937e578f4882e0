"""The device mesh, and the one table from logical axes to mesh axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

MESH_AXES = ("data", "fsdp", "tensor")

LOGICAL_RULES: dict[str | None, str | None] = {
    "batch": "data",
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",
    "head_dim": None,
    "norm": None,
    "layers": None,
    None: None,
}


def make_mesh(
    shape: tuple[int, int, int] | None = None, devices: Sequence[Any] | None = None
) -> Mesh:
    """A (data, fsdp, tensor) mesh; by default all devices on the data axis.

    Args:
        shape: sizes of the axes; where they want fewer devices than there are, the
            first ones are taken.
        devices: to choose from; None for all.

    Raises:
        ValueError: the shape does not fit the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    count = len(devices)
    shape = shape or (count, 1, 1)
    if int(np.prod(shape)) > count or min(shape) < 1:
        raise ValueError(
            f"mesh {dict(zip(MESH_AXES, shape))} wants {int(np.prod(shape))} devices, "
            f"there are {count}."
        )
    types = (AxisType.Auto,) * len(MESH_AXES)
    chosen = devices[: int(np.prod(shape))]
    return jax.make_mesh(shape, MESH_AXES, axis_types=types, devices=chosen)


def split_devices(rollout: int) -> tuple[list[Any], list[Any]]:
    """(devices that train, the last `rollout` ones, which sample).

    Raises:
        ValueError: nobody would be left to train, or there are several processes.
    """
    devices = jax.devices()
    if not 0 <= rollout < len(devices):
        raise ValueError(
            f"rollout_devices={rollout}, but there are {len(devices)} devices and one "
            f"at least has to train; give 0 (sample where it trains) to "
            f"{len(devices) - 1}."
        )
    if rollout and jax.process_count() > 1:
        raise ValueError(
            f"rollout_devices={rollout} with {jax.process_count()} processes: a "
            "rollout mesh is of one process; give 0 to sample where each one trains."
        )
    left = len(devices) - rollout
    return devices[:left], devices[left:]


def current_mesh() -> Any:
    """The mesh entered with `jax.set_mesh`; empty when none was."""
    return jax.sharding.get_mesh()


def put_batch(batch: Any) -> Any:
    """Host arrays → device arrays, rows split over the data axis.

    Each process gives its own rows of the global batch.

    Raises:
        ValueError: the number of rows does not divide over the data axis.
    """
    mesh = current_mesh()
    if mesh.empty:
        return jax.device_put(batch)
    local = mesh.shape["data"] // jax.process_count() or 1
    rows = jax.tree.leaves(batch)[0].shape[0]
    if rows % local:
        raise ValueError(
            f"{rows} rows do not divide over {local} local data shards; set a "
            f"batch size that is a multiple of {mesh.shape['data']}."
        )
    placed = NamedSharding(mesh, PartitionSpec("data"))

    def put(array: np.ndarray) -> jax.Array:
        return jax.make_array_from_process_local_data(placed, array)

    return jax.tree.map(put, batch)


def replicate(tree: Any) -> Any:
    """The same arrays on every device of the current mesh."""
    mesh = current_mesh()
    if mesh.empty:
        return jax.device_put(tree)
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))
