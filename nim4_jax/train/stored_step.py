"""One complete checkpoint as it lies on disk, and what is wrong with a broken one.

The folder is WORKDIR/checkpoints/STEP, with an item in each folder there:

    state        arrays
    checksums    path of a leaf → its checksum
    data         where the data iterator stood
    meta         facts of the run
"""

from __future__ import annotations

import json
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from nim4_jax.train import checksums
from nim4_jax.train.state import describe_misfits
from nim4_jax.types import Params

_JSON = "metadata"  # the file that Orbax writes a JSON item into
_SHOWN = 4


class CorruptError(ValueError):
    """A checkpoint cannot be read as it was written; says which part of which step."""


class StoredStep:
    """Reads one step. Nothing here waits for other hosts."""

    def __init__(self, folder: epath.Path):
        """Take WORKDIR/checkpoints/STEP."""
        self._folder = folder

    def __str__(self) -> str:
        """Where it lies."""
        return str(self._folder)

    def read_meta(self) -> dict[str, Any]:
        """The facts that were saved with it.

        Raises:
            CorruptError: the file is missing or is no JSON.
        """
        return self._read_json(self._folder / "meta" / _JSON)

    def read_position(self) -> dict[str, Any]:
        """State of the data iterator, the same on every host.

        Raises:
            CorruptError: the file is missing or is no JSON.
        """
        path = self._folder / "data" / _JSON
        if not path.exists():
            # Once each host wrote a file of its own, all of the same content.
            path = min(self._folder.glob("data/process_0-of-*.json"), default=path)
        return self._read_json(path)

    def read_shapes(self) -> dict[str, Any]:
        """The state as a nested dict of shapes and dtypes; tuples are lists.

        Raises:
            CorruptError: the description of the arrays cannot be read.
        """
        try:
            described = ocp.PyTreeCheckpointHandler().metadata(self._folder / "state")
            tree = described.tree
            if not tree["params"]:
                raise ValueError("it lists no parameters")
        except Exception as error:
            raise self._corrupt("the list of its arrays (state)", error) from error
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree
        )

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
        return self._read(wanted, ocp.checkpoint_utils.construct_restore_args(wanted))

    def read_params(self) -> Params:
        """The parameters in the host's memory.

        Raises:
            CorruptError: as `read_state`.
        """
        wanted = {"params": self.read_shapes()["params"]}
        on_host = ocp.RestoreArgs(restore_type=np.ndarray)
        return self._read(wanted, jax.tree.map(lambda _: on_host, wanted))["params"]

    def _read(self, wanted: Any, how: Any) -> Any:
        """Arrays whose checksums are those that were saved."""
        try:
            state = self._read_arrays(wanted, how)
        except Exception as error:
            names = self._find_unreadable(wanted, how)[:_SHOWN]
            raise self._corrupt(", ".join(names) or "the state", error) from error
        if changed := self._find_changed(state):
            raise CorruptError(
                f"{self._folder}: the bits of {', '.join(changed[:_SHOWN])} are not "
                "those that were saved"
            )
        return state

    def _read_arrays(self, wanted: Any, how: Any) -> Any:
        arguments = ocp.args.PyTreeRestore(
            item=wanted, restore_args=how, partial_restore=True
        )
        reader = ocp.PyTreeCheckpointHandler()
        return reader.restore(self._folder / "state", args=arguments)

    def _find_unreadable(self, wanted: Any, how: Any) -> list[str]:
        """Paths of the leaves that cannot be read, tried one by one."""
        leaves, structure = jax.tree.flatten(wanted)
        found = []
        for place, name in enumerate(checksums.name_leaves(wanted)):
            alone = [ocp.PLACEHOLDER] * len(leaves)
            alone[place] = leaves[place]
            try:
                self._read_arrays(structure.unflatten(alone), how)
            except Exception:
                found.append(name)
        return found

    def _find_changed(self, state: Any) -> list[str]:
        """Paths of the leaves whose checksum is another; none where none is kept."""
        if not (self._folder / "checksums").exists():
            return []
        saved = self._read_json(self._folder / "checksums" / _JSON)
        got = checksums.sum_leaves(state)
        return [name for name, checksum in got.items() if saved.get(name) != checksum]

    def _read_json(self, path: epath.Path) -> dict[str, Any]:
        try:
            return json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise self._corrupt(f"the file {path}", error) from error

    def _corrupt(self, what: str, error: Exception) -> CorruptError:
        reason = " ".join(str(error).split())[:200]
        return CorruptError(f"{self._folder}: {what} cannot be read ({reason})")


def _place(leaf: Any) -> jax.ShapeDtypeStruct:
    """Shape, dtype and where to."""
    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(
        jax.local_devices()[0]
    )
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
