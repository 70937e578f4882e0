"""Storage of frozen parameters: written once, linked from all checkpoints of a run.

    checkpoints/frozen/NAME/arrays        one part of the parameters (encoder, llm, …)
    checkpoints/frozen/NAME/index.json    path of a leaf → its shape, dtype and checksum

A piece is named by the SHA-256 of its index, so whoever knows the name can tell whether
the content is still the one that was meant, and the same content is never written
twice. Pieces lie beside the steps that need them, not where the parameters came from:
earlier runs move, and delete their own steps. A part is a piece of its own, so that
another encoder does not write the LLM again.

The index is written last and removed first: a piece with an index is whole, in an
object store too, which has no renames.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from nim4_jax import whole_file
from nim4_jax.train import optim
from nim4_jax.train.checkpoints.stored_arrays import (
    CorruptError,
    StoredArrays,
    read_json,
)
from nim4_jax.train.multihost import consensus
from nim4_jax.train.optim import FlatParams
from nim4_jax.types import Params

FOLDER = "frozen"
"""In WORKDIR/checkpoints, and of the item in each step that has the link."""

LINK = f"{FOLDER}/metadata"
"""In a step's folder: the file of the link, as Orbax writes a JSON item."""

Link = dict[str, str]
"""Part of the parameters → name of the piece that holds what is frozen of it."""

Index = dict[str, dict[str, Any]]
"""Path of a leaf → "shape", "dtype" and "checksum"."""

_INDEX = "index.json"
_ITEMS = "_CHECKPOINT_METADATA"  # where Orbax lists what a step holds


class Piece:
    """What is frozen of one part of the parameters, as it lies on disk."""

    def __init__(self, folder: epath.Path, owner: object):
        """Take checkpoints/frozen/NAME, and which step asks, for errors."""
        self._folder, self._owner = folder, owner
        self._arrays = StoredArrays(folder / "arrays", f"{owner}: its {folder}")

    def is_whole(self) -> bool:
        """Whether all of it was written."""
        return (self._folder / _INDEX).exists()

    def write(self, params: FlatParams, index: Index) -> None:
        """Write it, in place of what a killed run has left; all hosts call it.

        Raises:
            OSError: it could not be written; then it does not count as whole.
        """
        consensus.lead(self._clear)
        writer = ocp.Checkpointer(ocp.StandardCheckpointHandler())
        arrays = ocp.args.StandardSave(optim.unflatten(params))
        writer.save(self._folder / "arrays", args=arrays)
        writer.close()
        text = json.dumps(index, indent=1)
        consensus.lead(lambda: whole_file.write_text(self._folder / _INDEX, text))

    def _clear(self) -> None:
        if self._folder.exists():
            self._folder.rmtree()
        self._folder.mkdir(parents=True)

    def remove(self) -> None:
        """Delete it; half deleted, it does not count as whole."""
        (self._folder / _INDEX).unlink(missing_ok=True)
        self._folder.rmtree()

    def read_index(self) -> Index:
        """Path → shape, dtype and checksum.

        Raises:
            CorruptError: the piece is missing, or the index is another than was meant.
        """
        if not self.is_whole():
            raise CorruptError(self._miss("is missing"))
        index = read_json(self._folder / _INDEX, self._owner)
        if identify(index) != self._folder.name:
            raise CorruptError(self._miss(f"has another {_INDEX} than its name says"))
        return index

    def read_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Path → shape and dtype.

        Raises:
            CorruptError: see `read_index`.
        """
        return {
            path: jax.ShapeDtypeStruct(tuple(leaf["shape"]), np.dtype(leaf["dtype"]))
            for path, leaf in self.read_index().items()
        }

    def read(self, wanted: Mapping[str, Any], how: Callable[[Any], Any]) -> FlatParams:
        """The wanted leaves.

        Args:
            wanted: path → shape.
            how: tree of shapes → Orbax's restore arguments.

        Raises:
            CorruptError: some are missing or have changed, by path.
        """
        sums = {path: leaf["checksum"] for path, leaf in self.read_index().items()}
        tree = optim.unflatten(dict(wanted))
        try:
            return optim.flatten(self._arrays.read(tree, how(tree), sums))
        except CorruptError as error:
            raise CorruptError(f"{error}. {_CURE}") from error

    def _miss(self, what: str) -> str:
        return (
            f"{self._owner} needs the frozen parameters in {self._folder}, which {what}"
            f". {_CURE}"
        )


_CURE = (
    "Put that folder back from a copy of this workdir; a run that is begun anew with "
    "the same config.init_from, or one that took the same encoder, has it under the "
    "same name"
)


def identify(index: Index) -> str:
    """The name of the piece with that index."""
    text = json.dumps(index, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


class FrozenStore:
    """The pieces of one run."""

    def __init__(self, checkpoints: epath.Path):
        """Take WORKDIR/checkpoints."""
        self._checkpoints = checkpoints

    def find(self, name: str, owner: object) -> Piece:
        """The piece of that name, which need not be there."""
        return Piece(self._checkpoints / FOLDER / name, owner)

    def put(self, frozen: FlatParams, sums: Mapping[str, int]) -> Link:
        """Write what is not there yet; when this returns, it is whole.

        On several hosts all call it.

        Args:
            frozen: path → array.
            sums: path → checksum.

        Raises:
            OSError: something could not be written.
        """
        parts: dict[str, FlatParams] = {}
        for path, leaf in frozen.items():
            parts.setdefault(path.split("/")[0], {})[path] = leaf
        indices = {
            part: {path: _describe(leaf, sums[path]) for path, leaf in leaves.items()}
            for part, leaves in parts.items()
        }
        link = {part: identify(index) for part, index in indices.items()}
        pieces = {part: self.find(name, "the run") for part, name in link.items()}
        for part in consensus.lead(
            lambda: [name for name in pieces if not pieces[name].is_whole()]
        ):
            size = sum(leaf.nbytes for leaf in parts[part].values())
            logging.info(
                "%s is frozen: its %.3f GB are written once, to %s",
                part,
                size / 1e9,
                self._checkpoints / FOLDER / link[part],
            )
            pieces[part].write(parts[part], indices[part])
        return link

    def sweep(self, kept: Iterable[str] = ()) -> None:
        """Remove the pieces that no checkpoint links to; host 0 does it.

        Broken checkpoints that were set aside count as well. Nothing is removed while
        some link cannot be read, or before all that is being written is whole.

        Args:
            kept: names of pieces that are about to be linked to.
        """
        folder = self._checkpoints / FOLDER
        if not consensus.leads() or not folder.is_dir():
            return
        names = {path.name for path in folder.iterdir()} - set(kept)
        if not names:
            return
        try:
            for name in sorted(names - self._find_linked()):
                self.find(name, "the run").remove()
        except (CorruptError, OSError) as error:
            logging.warning("frozen parameters of old checkpoints stay: %s", error)

    def _find_linked(self) -> set[str]:
        found: set[str] = set()
        for step in self._checkpoints.iterdir():
            if step.name != FOLDER and step.is_dir():
                found |= set(read_link(step).values())
        return found


def _describe(leaf: Any, checksum: int) -> dict[str, Any]:
    return {
        "shape": list(leaf.shape),
        "dtype": str(leaf.dtype),
        "checksum": checksum,
    }


def read_link(step: epath.Path) -> Link:
    """The link of a step; of checkpoints of earlier versions, which hold all, {}.

    Raises:
        CorruptError: it cannot be read, or was lost.
    """
    described = step / _ITEMS
    facts = read_json(described, step) if described.exists() else {}
    items = facts.get("item_handlers")
    named = isinstance(items, dict) and FOLDER in items
    linked = named or (step / FOLDER).exists()
    return read_json(step / LINK, step, str) if linked else {}


def split(params: Params, rules: optim.Rules) -> tuple[Params, FlatParams]:
    """(what is saved with every step, what is frozen); without rules nothing is."""
    if not rules:
        return params, {}
    trainable, frozen = optim.split_params(params, rules)
    return optim.unflatten(trainable), frozen
