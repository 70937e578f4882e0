"""One complete checkpoint on disk: read, and diagnosed where it is broken.

The folder is WORKDIR/checkpoints/STEP, with an item in each folder there:

    state        arrays, without frozen parameters
    checksums    path of a leaf → its checksum
    frozen       part of the parameters → name of the piece beside the steps that holds
                 what is frozen of it, see `train/frozen.py`
    data         where the data iterator stood
    meta         facts of the run

Checkpoints of earlier versions have all arrays in `state`, and no `frozen`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from nim4_jax.train import optim
from nim4_jax.train.checkpoints import checksums, frozen
from nim4_jax.train.checkpoints.frozen import FrozenStore, Piece
from nim4_jax.train.checkpoints.stored_arrays import (
    CorruptError,
    StoredArrays,
    read_json,
)
from nim4_jax.train.state import describe_misfits
from nim4_jax.types import Params

_JSON = "metadata"  # the file that Orbax writes a JSON item into


class StoredStep:
    """Reads one step. Nothing here waits for other hosts."""

    def __init__(self, folder: epath.Path):
        """Take WORKDIR/checkpoints/STEP."""
        self._folder = folder
        self._state = StoredArrays(folder / "state", folder)

    def __str__(self) -> str:
        """Where it lies."""
        return str(self._folder)

    def is_whole(self) -> bool:
        """Whether it is there, and was written to its end."""
        return self._folder.is_dir() and ocp.utils.is_checkpoint_finalized(self._folder)

    def read_meta(self) -> dict[str, Any]:
        """The facts that were saved with it.

        Raises:
            CorruptError: the file is missing or is no JSON.
        """
        return read_json(self._folder / "meta" / _JSON, self)

    def read_position(self) -> dict[str, Any]:
        """State of the data iterator, the same on every host.

        Raises:
            CorruptError: the file is missing or is no JSON.
        """
        path = self._folder / "data" / _JSON
        if not path.exists():
            # Once each host wrote a file of its own, all of the same content.
            path = min(self._folder.glob("data/process_0-of-*.json"), default=path)
        return read_json(path, self)

    def read_shapes(self) -> dict[str, Any]:
        """The state as a nested dict of shapes and dtypes; tuples are lists.

        Raises:
            CorruptError: the description of the arrays cannot be read.
        """
        shapes = self._state.read_shapes()
        params: dict[str, Any] = {**optim.flatten(shapes.get("params") or {})}
        for piece in self._find_pieces():
            params.update(piece.read_shapes())
        if not params:
            raise CorruptError(f"{self}: it lists no parameters")
        return {**shapes, "params": optim.unflatten(params)}

    def read_state(self, wanted: Any) -> Any:
        """Arrays like `wanted`: its shapes, its dtypes, on its shardings.

        Args:
            wanted: tree of arrays or ShapeDtypeStructs; what has no sharding goes to
                this process's first device. A part of what was saved will do.

        Raises:
            CorruptError: leaves are missing, unreadable, or have changed since they
                were written, by path.
            ValueError: the checkpoint is of a state of other shapes, by path.
        """
        stored = checksums.name_leaves(self.read_shapes())
        if wrong := describe_misfits(checksums.name_leaves(wanted), stored):
            raise ValueError(f"{self._folder} holds a state of another model: {wrong}.")
        wanted = jax.tree.map(_place, wanted)
        how = ocp.checkpoint_utils.construct_restore_args
        whole = functools.partial(dataclasses.replace, wanted)
        params, rest = self._read(wanted.params, how, whole)
        return dataclasses.replace(rest, params=params)

    def read_params(self) -> Params:
        """The parameters in the host's memory.

        Raises:
            CorruptError: as `read_state`.
        """
        on_host = ocp.RestoreArgs(restore_type=np.ndarray)

        def how(tree: Any) -> Any:
            return jax.tree.map(lambda _: on_host, tree)

        return self._read(self.read_shapes()["params"], how, dict)[0]

    def _read(
        self, wanted: Params, how: Callable[[Any], Any], wrap: Callable[..., Any]
    ) -> tuple[Params, Any]:
        """(parameters, what `wrap` made of those that lie in the step), verified.

        Args:
            wanted: parameters of the step and of its pieces.
            how: tree of shapes → Orbax's restore arguments.
            wrap: called with params=…; the tree to be read from the step.
        """
        left, found = optim.flatten(wanted), {}
        for piece in self._find_pieces():
            there = left.keys() & piece.read_index().keys()
            if there:
                part = {path: left.pop(path) for path in there}
                found.update(piece.read(part, how))
        tree = wrap(params=optim.unflatten(left))
        rest = self._state.read(tree, how(tree), self._read_sums())
        params = rest["params"] if isinstance(rest, dict) else rest.params
        return optim.unflatten({**optim.flatten(params), **found}), rest

    def _find_pieces(self) -> list[Piece]:
        """Where frozen parameters lie, in the folder beside the steps."""
        store = FrozenStore(self._folder.parent)
        link = frozen.read_link(self._folder)
        return [store.find(name, self) for name in link.values()]

    def _read_sums(self) -> dict[str, int] | None:
        """Path → checksum of what lies in the step; None where none is kept."""
        if not (self._folder / "checksums").exists():
            return None
        return read_json(self._folder / "checksums" / _JSON, self, int)


def _place(leaf: Any) -> jax.ShapeDtypeStruct:
    """Shape, dtype and where to."""
    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(
        jax.local_devices()[0]
    )
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
