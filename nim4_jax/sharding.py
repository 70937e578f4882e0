"""The device mesh, and the one table from logical axes to mesh axes.

    mesh axis | what is cut along it
    data      | rows of a batch; the only axis that may cross slices (slow network)
    fsdp      | rows of a batch, and every parameter and optimizer slot with it
    tensor    | heads, feed-forward widths and the vocabulary of each parameter

A parameter is gathered over fsdp where it is used and its gradient scattered again, so
memory falls with data × fsdp × tensor while the arithmetic stays that of one device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

MESH_AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")
"""Mesh axes that the rows of a batch are split over."""

Axes = Sequence[str | None]
"""A logical name per axis of an array."""

LOGICAL_RULES: dict[str | None, str | tuple[str, ...] | None] = {
    # Parameters.
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",
    "head_dim": None,
    "norm": None,
    "layers": None,
    None: None,
    # Activations.
    "batch": BATCH_AXES,
    "sequence": "tensor",
}


def make_mesh(
    shape: Sequence[int] | None = None,
    devices: Sequence[Any] | None = None,
    slices: int = 1,
) -> Mesh:
    """A (data, fsdp, tensor) mesh; by default all devices on the data axis.

    Args:
        shape: sizes of the axes, of which one may be −1: what the others leave. Where
            they want fewer devices than there are, the first ones are taken.
        devices: to choose from; None for all.
        slices: pod slices that the devices belong to; each holds an equal part of the
            data axis, so that only gradients cross the network between them.

    Raises:
        ValueError: the shape does not fit the number of devices, or of slices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = fill_shape(tuple(shape or (len(devices), 1, 1)), len(devices))
    types = (AxisType.Auto,) * len(MESH_AXES)
    if slices == 1:
        chosen = devices[: int(np.prod(sizes))]
        return jax.make_mesh(sizes, MESH_AXES, axis_types=types, devices=chosen)
    if sizes[0] % slices:
        raise ValueError(
            f"the data axis has size {sizes[0]}, but there are {slices} slices, each "
            "of which holds an equal part of it; make config.mesh's first size a "
            f"multiple of {slices}."
        )
    within = (sizes[0] // slices, *sizes[1:])
    across = (slices, 1, 1)
    by_slice = all(hasattr(device, "slice_index") for device in devices)
    arranged = mesh_utils.create_hybrid_device_mesh(
        within, across, devices, process_is_granule=not by_slice
    )
    return Mesh(arranged, MESH_AXES, axis_types=types)


def fill_shape(shape: tuple[int, ...], count: int) -> tuple[int, ...]:
    """The sizes with −1 replaced by what `count` devices leave for it.

    Raises:
        ValueError: sizes that `count` devices do not have, with those that would do.
    """
    named = dict(zip(MESH_AXES, shape))
    if len(shape) != len(MESH_AXES) or any(size < 1 and size != -1 for size in shape):
        raise ValueError(
            f"mesh {tuple(shape)} must have a size ≥ 1 for each of {MESH_AXES}, or −1 "
            f"for one of them: the rest; there are {count} devices."
        )
    free = [axis for axis, size in named.items() if size == -1]
    known = int(np.prod([size for size in shape if size != -1]))
    if len(free) > 1:
        raise ValueError(f"mesh {named}: only one axis can take the rest; not {free}.")
    if free and count % known:
        raise ValueError(
            f"mesh {named}: {known} does not divide {count} devices, so nothing whole "
            f"is left for {free[0]}; {_divisors(count)} would do."
        )
    if free:
        return tuple(count // known if size == -1 else size for size in shape)
    if known > count:
        raise ValueError(
            f"mesh {named} wants {known} devices, there are {count}; sizes whose "
            f"product is one of {_divisors(count)} would do, or −1 for one axis."
        )
    return tuple(shape)


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]


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


def to_spec(axes: Axes) -> PartitionSpec:
    """Logical names → the partition of an array's axes.

    Raises:
        ValueError: a name that the table lacks.
    """
    if unknown := [axis for axis in axes if axis not in LOGICAL_RULES]:
        raise ValueError(
            f"logical axes {unknown} are not in the table; use some of "
            f"{sorted(filter(None, LOGICAL_RULES))} or None."
        )
    return PartitionSpec(*(LOGICAL_RULES[axis] for axis in axes))


def count_shards(mesh: Any, entry: str | tuple[str, ...] | None) -> int:
    """Into how many parts one entry of a partition cuts an axis."""
    names = (entry,) if isinstance(entry, str) else entry or ()
    return int(np.prod([mesh.shape[name] for name in names], dtype=int))


def count_batch_shards(mesh: Any) -> int:
    """Into how many parts the rows of a batch are cut."""
    return count_shards(mesh, BATCH_AXES)


def constrain(array: jax.Array, *axes: str | None) -> jax.Array:
    """Tell the compiler how an activation lies on the mesh; the values stay the same.

    An axis that does not divide over its part of the mesh stays whole; nothing is said
    without a mesh, nor of mesh axes that `shard_map` has split already.

    Args:
        array: of any shape.
        axes: a logical name or None for each of its axes.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return array

    def keep(size: int, entry: str | tuple[str, ...] | None) -> Any:
        names = (entry,) if isinstance(entry, str) else entry or ()
        fits = size % count_shards(mesh, entry) == 0
        return entry if fits and not set(names) & set(mesh.manual_axes) else None

    kept = [keep(*pair) for pair in zip(array.shape, to_spec(axes), strict=True)]
    if mesh.manual_axes and not any(kept):
        return array
    return jax.lax.with_sharding_constraint(array, PartitionSpec(*kept))


def are_rows_spread() -> bool:
    """Whether rows of the batch that is traced may lie on other devices."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and count_batch_shards(mesh) > 1 and not mesh.manual_axes


def split_rows(
    function: Callable[..., Any], count: int, shared: int = 0
) -> Callable[..., Any]:
    """The function, on each device for its own rows.

    For what the compiler would not divide: Fourier transforms, scatters into rows. As
    it is, where there is but one device, or rows that do not divide: the compiler then
    does what it can. The tensor axis is the compiler's.

    Args:
        function: (shared arguments …, arrays whose rows are those of the batch, or
            equally many for each …) → arrays of such rows.
        count: B.
        shared: how many arguments are shared: cut along data or fsdp they are gathered
            once, before the function begins.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not are_rows_spread() or count % count_batch_shards(mesh):
        return function
    rows, whole = PartitionSpec(BATCH_AXES), PartitionSpec()

    def run(*arguments: Any) -> Any:
        specs = (whole,) * shared + (rows,) * (len(arguments) - shared)
        split = jax.shard_map(
            function,
            in_specs=specs,
            out_specs=rows,
            axis_names=set(BATCH_AXES),
            check_vma=False,
        )
        return split(*arguments)

    return run


def sum_rows(function: Callable[..., Any], count: int) -> Callable[..., Any]:
    """The function, on each device for its own rows, and the sum of what they found.

    For sums over rows that are written as a loop over them: the compiler would send
    each row to every device. As it is, where `split_rows` leaves a function as it is.

    Args:
        function: (shared, *arrays) → arrays without rows, which add up over the rows of
            `arrays`; `shared` is the same for all of them.
        count: B.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not are_rows_spread() or count % count_batch_shards(mesh):
        return function

    def add_up(shared: Any, *arrays: Any) -> Any:
        return jax.lax.psum(function(shared, *arrays), BATCH_AXES)

    def run(shared: Any, *arrays: Any) -> Any:
        rows, whole = PartitionSpec(BATCH_AXES), PartitionSpec()
        split = jax.shard_map(
            add_up,
            in_specs=(whole, *(rows for _ in arrays)),
            out_specs=whole,
            axis_names=set(BATCH_AXES),
            check_vma=False,
        )
        return split(shared, *arrays)

    return run


def check_divisible(
    mesh: Mesh, shapes: Mapping[str, tuple[int, ...]], axes: Mapping[str, Axes]
) -> None:
    """Refuse a mesh that cannot cut the parameters evenly.

    Args:
        mesh: to be trained on.
        shapes: path → shape.
        axes: path → logical axes.

    Raises:
        ValueError: a mesh axis with a parameter that does not divide over it, and the
            sizes that would do for all parameters.
    """
    lengths: dict[str, dict[int, str]] = {name: {} for name in MESH_AXES}
    for path, shape in shapes.items():
        for length, entry in zip(shape, to_spec(axes.get(path, (None,) * len(shape)))):
            if isinstance(entry, str):
                lengths[entry].setdefault(length, path)
    for name, found in lengths.items():
        wrong = {n: path for n, path in found.items() if n % mesh.shape[name]}
        if wrong:
            length, path = next(iter(wrong.items()))
            raise ValueError(
                f"the mesh axis {name!r} has size {mesh.shape[name]}, which does not "
                f"divide the {length} of {path}; sizes that would do: "
                f"{_divisors(int(np.gcd.reduce(list(found))))}. Set config.mesh."
            )


def share_of_rows(mesh: Any) -> tuple[int, int]:
    """(rank, hosts): which part of every global batch this process loads.

    Processes whose devices hold the same rows (because the tensor axis crosses them)
    load the same part.

    Raises:
        ValueError: a process whose rows are no part of their own.
    """
    if mesh.empty or jax.process_count() == 1:
        return 0, 1
    grid = mesh.devices.reshape(count_batch_shards(mesh), -1)
    held: dict[int, set[int]] = {}
    for row, devices in enumerate(grid):
        for device in devices:
            held.setdefault(device.process_index, set()).add(row)
    parts = sorted({tuple(sorted(rows)) for rows in held.values()})
    even = len({len(rows) for rows in parts}) == 1
    if not even or sum(map(len, parts)) != len(grid):
        raise ValueError(
            f"mesh {dict(mesh.shape)} gives the {jax.process_count()} processes "
            "overlapping or unequal rows; choose a tensor axis that divides the "
            "devices of a host, or is a multiple of them."
        )
    return parts.index(tuple(sorted(held[jax.process_index()]))), len(parts)


def put_batch(batch: Any) -> Any:
    """Host arrays → device arrays, rows split over the data and fsdp axes.

    Each process gives its own rows of the global batch.

    Raises:
        ValueError: the rows do not divide over the mesh.
    """
    mesh = current_mesh()
    if mesh.empty:
        return jax.device_put(batch)
    _, hosts = share_of_rows(mesh)
    shards = count_batch_shards(mesh)
    rows = jax.tree.leaves(batch)[0].shape[0]
    if rows * hosts % shards:
        raise ValueError(
            f"{rows * hosts} rows do not divide over {shards} data shards "
            f"({dict(mesh.shape)}); set a batch size that is a multiple of {shards}."
        )
    placed = NamedSharding(mesh, PartitionSpec(BATCH_AXES))

    def put(array: np.ndarray) -> jax.Array:
        whole = (rows * hosts, *array.shape[1:])
        return jax.make_array_from_process_local_data(placed, array, whole)

    return jax.tree.map(put, batch)


def describe_batch(batch: Any) -> Any:
    """Shapes of what `put_batch` makes of the host arrays, and where it puts them."""
    mesh = current_mesh()
    if mesh.empty:
        placed, hosts = None, 1
    else:
        placed = NamedSharding(mesh, PartitionSpec(BATCH_AXES))
        _, hosts = share_of_rows(mesh)

    def describe(array: np.ndarray) -> jax.ShapeDtypeStruct:
        whole = (array.shape[0] * hosts, *array.shape[1:])
        return jax.ShapeDtypeStruct(whole, array.dtype, sharding=placed)

    return jax.tree.map(describe, batch)


def fetch_rows(batch: Any) -> Any:
    """Device arrays → this process's rows on the host: `put_batch` the other way."""

    def fetch(array: jax.Array) -> np.ndarray:
        if array.is_fully_addressable:
            return np.asarray(array)
        parts = {part.index[0].start: part.data for part in array.addressable_shards}
        return np.concatenate([np.asarray(parts[first]) for first in sorted(parts)])

    return jax.tree.map(fetch, batch)


def place(tree: Any, shardings: Any) -> Any:
    """Arrays that every process holds whole → the same arrays, cut as `shardings` say.

    Args:
        tree: host or device arrays.
        shardings: one for each.
    """

    def put(array: Any, sharding: Any) -> jax.Array:
        spread = isinstance(array, jax.Array) and not array.is_fully_addressable
        if spread or jax.process_count() == 1:
            return jax.device_put(array, sharding)
        host = np.asarray(array)
        part: Callable[[Any], np.ndarray] = host.__getitem__
        return jax.make_array_from_callback(host.shape, sharding, part)

    return jax.tree.map(put, tree, shardings)


def gather(tree: Any) -> Any:
    """Arrays on any devices of any hosts → the same ones in this host's memory.

    Leaf by leaf, so that no more than one is whole on a device; all hosts call it.
    """

    def fetch(leaf: Any) -> np.ndarray:
        spread = isinstance(leaf, jax.Array) and not leaf.is_fully_addressable
        if spread and not leaf.is_fully_replicated:
            mesh = cast(NamedSharding, leaf.sharding).mesh
            whole = NamedSharding(mesh, PartitionSpec())
            leaf = jax.jit(lambda array: array, out_shardings=whole)(leaf)
        return np.asarray(leaf)

    return jax.tree.map(fetch, tree)


def replicated() -> NamedSharding | None:
    """Whole on every device of the current mesh; None without one."""
    mesh = current_mesh()
    return None if mesh.empty else NamedSharding(mesh, PartitionSpec())


def replicate(tree: Any) -> Any:
    """The same arrays on every device of the current mesh."""
    whole = replicated()
    if whole is None:
        return jax.device_put(tree)
    return place(tree, jax.tree.map(lambda _: whole, tree))
