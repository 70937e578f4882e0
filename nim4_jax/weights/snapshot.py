"""A model in one .safetensors file: parameters, and the facts needed to rebuild it."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy
from etils import epath

from nim4_jax.types import Params

_META = "nim4"
_FILE = "snapshot.safetensors"


def write(path: str, params: Params, meta: dict[str, Any], dtype: str = "") -> None:
    """Write a snapshot under a temporary name, then rename it.

    Args:
        path: target file, local or gs://.
        params: nested dict of arrays.
        meta: JSON-able facts, stored in the header.
        dtype: "bfloat16" halves the matrices; vectors and CMVN keep full precision.
    """
    flat = {}
    for keys, leaf in jax.tree_util.tree_leaves_with_path(params):
        array = np.asarray(leaf)
        name = "/".join(key.key for key in keys)
        if dtype == "bfloat16" and is_matrix(name, array):
            array = array.astype(ml_dtypes.bfloat16)
        flat[name] = np.ascontiguousarray(array)
    if _is_remote(path):
        # An object store shows what is written only when it is whole.
        with tempfile.TemporaryDirectory() as scratch:
            local = f"{scratch}/{_FILE}"
            safetensors.numpy.save_file(flat, local, metadata=header(meta))
            target = epath.Path(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            epath.Path(local).copy(target, overwrite=True)
        return
    temporary = Path(f"{path}.tmp")
    temporary.parent.mkdir(parents=True, exist_ok=True)
    # The library's files are for their owner alone; others may have to read ours.
    temporary.touch()
    mode = temporary.stat().st_mode
    safetensors.numpy.save_file(flat, temporary, metadata=header(meta))
    temporary.chmod(mode)
    temporary.replace(path)


def round_matrices(params: Params) -> Params:
    """The float32 values that a snapshot in "bfloat16" gives back."""

    def narrow(keys, leaf):
        array = np.asarray(leaf)
        if not is_matrix("/".join(key.key for key in keys), array):
            return array
        return array.astype(ml_dtypes.bfloat16).astype(np.float32)

    return jax.tree_util.tree_map_with_path(narrow, params)


def is_matrix(name: str, array: Any) -> bool:
    """Whether "bfloat16" halves it: float32, not a vector, and not CMVN."""
    wide = array.ndim > 1 and array.dtype == np.float32
    return wide and not name.startswith("cmvn/")


def header(meta: dict[str, Any]) -> dict[str, str]:
    """Facts as the metadata of a safetensors file."""
    return {_META: json.dumps(meta, ensure_ascii=False)}


@contextlib.contextmanager
def opened(path: str) -> Iterator[tuple[Any, dict[str, Any]]]:
    """A snapshot's tensors, unread, and its meta.

    Raises:
        ValueError: the file is missing, truncated, or not one of ours.
    """
    try:
        with (
            _fetch(path) as local,
            safetensors.safe_open(local, framework="numpy") as file,
        ):
            facts = file.metadata() or {}
            if _META not in facts:
                raise ValueError(f"{path} is no snapshot of this project: no header.")
            yield file, _read_meta(path, facts[_META])
    except (OSError, safetensors.SafetensorError) as error:
        raise ValueError(
            f"{path} cannot be read as .safetensors ({error}): missing or cut off."
        ) from error


def _read_meta(path: str, text: str) -> dict[str, Any]:
    try:
        meta = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: its header is damaged ({error}).") from error
    if not isinstance(meta, dict):
        raise ValueError(f"{path}: its header is damaged: {text[:80]!r}.")
    return meta


def _is_remote(path: str) -> bool:
    return "://" in path


@contextlib.contextmanager
def _fetch(path: str) -> Iterator[str]:
    """A local file with the content of `path`."""
    with tempfile.TemporaryDirectory() as scratch:
        if _is_remote(path):
            epath.Path(path).copy(f"{scratch}/{_FILE}")
        yield f"{scratch}/{_FILE}" if _is_remote(path) else path


def read(path: str) -> tuple[Params, dict[str, Any]]:
    """Parameters (float32 host arrays, nested) and meta of a snapshot.

    Raises:
        ValueError: the file is missing, truncated, or not one of ours.
    """
    params: Params = {}
    with opened(path) as (file, meta):
        for name in file.keys():
            *folders, leaf = name.split("/")
            place = params
            for folder in folders:
                place = place.setdefault(folder, {})
                if not isinstance(place, dict):
                    raise ValueError(f"{path}: {name} lies within another tensor.")
            array = file.get_tensor(name)
            half = array.dtype in (ml_dtypes.bfloat16, np.float16)
            place[leaf] = array.astype(np.float32) if half else array
    return params, meta
