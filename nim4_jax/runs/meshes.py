"""The device mesh of a run: the config's, or the default for stage and accelerator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jax.sharding import Mesh

from nim4_jax import accelerators, sharding

Shapes = Mapping[str, tuple[int, ...]]
"""Accelerator's name → sizes of the mesh within one slice or node; −1: the rest."""

WHOLE = (-1, 1, 1)
"""All devices on the data axis: what a model that fits one device needs."""


def choose(
    wanted: Sequence[int],
    by_accelerator: Shapes,
    devices: Sequence[Any],
) -> Mesh:
    """The mesh of a run.

    Args:
        wanted: sizes from the config; empty for the accelerator's.
        by_accelerator: defaults of the stage.
        devices: that the run may use.

    Raises:
        ValueError: sizes that the devices do not have.
    """
    slices = _count_slices(devices)
    if wanted:
        return sharding.make_mesh(wanted, devices, slices)
    known = accelerators.find(devices[0].device_kind)
    shape = by_accelerator.get(known.name, WHOLE) if known else WHOLE
    groups = max(slices, _count_nodes(devices))
    data, fsdp, tensor = sharding.fill_shape(tuple(shape), len(devices) // groups)
    return sharding.make_mesh((data * groups, fsdp, tensor), devices, slices)


def _count_slices(devices: Sequence[Any]) -> int:
    """TPU slices that are joined by a slower network."""
    if devices[0].platform != "tpu":
        return 1
    return len({getattr(device, "slice_index", 0) for device in devices})


def _count_nodes(devices: Sequence[Any]) -> int:
    """GPU nodes, the devices of which are close to each other.

    Where each GPU has a process of its own, only what the driver says of their links
    tells nodes apart.
    """
    if devices[0].platform != "gpu":
        return 1
    linked = {getattr(device, "slice_index", 0) for device in devices}
    processes = {device.process_index for device in devices}
    if len(linked) > 1 or len(processes) == len(devices):
        return len(linked)
    return len(processes)
