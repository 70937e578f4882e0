"""Arrays on disk in Orbax's format, read leaf by leaf with checksums."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from nim4_jax.train.checkpoints import checksums

_SHOWN = 4


class CorruptError(ValueError):
    """A checkpoint cannot be read as it was written; says which part of which step."""


def describe_error(error: Exception) -> str:
    """What it says, in one line that is not too long."""
    return " ".join(str(error).split())[:200]


def read_json(path: epath.Path, owner: object, kind: type = object) -> dict[str, Any]:
    """A JSON file of a checkpoint.

    Args:
        path: of the file.
        owner: what it belongs to, for the error.
        kind: of all its values.

    Raises:
        CorruptError: the file is missing or holds no object of such values.
    """
    try:
        value = json.loads(path.read_text())
        if not isinstance(value, dict):
            raise ValueError(f"it holds {type(value).__name__}, expected an object")
        for key, inner in value.items():
            if not isinstance(inner, kind):
                raise ValueError(f"{key!r} is {inner!r}, expected {kind.__name__}")
        return value
    # Brackets in brackets, thousands deep, are a RecursionError.
    except (OSError, ValueError, RecursionError) as error:
        reason = describe_error(error)
        raise CorruptError(
            f"{owner}: the file {path} cannot be read ({reason})"
        ) from error


class StoredArrays:
    """Reads arrays and compares their checksums. Nothing here waits for other hosts."""

    def __init__(self, folder: epath.Path, owner: object):
        """Take the folder, and what it belongs to, which errors begin with."""
        self._folder, self._owner = folder, owner

    def read_shapes(self) -> dict[str, Any]:
        """The tree as a nested dict of shapes and dtypes; tuples are lists.

        Raises:
            CorruptError: the description of the arrays cannot be read.
        """
        try:
            tree = ocp.PyTreeCheckpointHandler().metadata(self._folder).tree
            if not tree:
                raise ValueError("it lists no arrays")
        except Exception as error:
            what = f"the list of its arrays ({self._folder.name})"
            raise self._corrupt(what, error) from error
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree
        )

    def read(self, wanted: Any, how: Any, sums: Mapping[str, int] | None) -> Any:
        """Arrays like `wanted`, of the bits that were saved.

        Args:
            wanted: tree of shapes; a part of what was saved will do.
            how: Orbax's restore arguments for each.
            sums: path → checksum; None where none is kept.

        Raises:
            CorruptError: leaves are missing, unreadable, or have changed since they
                were written, by path.
        """
        try:
            found = self._read(wanted, how)
        except Exception as error:
            names = self._find_unreadable(wanted, how)[:_SHOWN]
            raise self._corrupt(", ".join(names) or "the state", error) from error
        if changed := _find_changed(found, sums):
            raise CorruptError(
                f"{self._owner}: the bits of {', '.join(changed[:_SHOWN])} are not "
                "those that were saved"
            )
        return found

    def _read(self, wanted: Any, how: Any) -> Any:
        arguments = ocp.args.PyTreeRestore(
            item=wanted, restore_args=how, partial_restore=True
        )
        return ocp.PyTreeCheckpointHandler().restore(self._folder, args=arguments)

    def _find_unreadable(self, wanted: Any, how: Any) -> list[str]:
        """Paths of the leaves that cannot be read, tried one by one."""
        leaves, structure = jax.tree.flatten(wanted)
        found = []
        for place, name in enumerate(checksums.name_leaves(wanted)):
            alone = [ocp.PLACEHOLDER] * len(leaves)
            alone[place] = leaves[place]
            try:
                self._read(structure.unflatten(alone), how)
            except Exception:
                found.append(name)
        return found

    def _corrupt(self, what: str, error: Exception) -> CorruptError:
        reason = describe_error(error)
        return CorruptError(f"{self._owner}: {what} cannot be read ({reason})")


def _find_changed(tree: Any, sums: Mapping[str, int] | None) -> list[str]:
    """Paths of the leaves whose checksum is another; none where none is kept."""
    if sums is None:
        return []
    got = checksums.sum_leaves(tree)
    return [name for name, checksum in got.items() if sums.get(name) != checksum]
