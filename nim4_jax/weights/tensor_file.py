"""Safetensors files larger than memory: read and written one tensor at a time."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
import safetensors

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}

Spec = tuple[tuple[int, ...], np.dtype]
"""Shape and dtype of one tensor."""


class Reader:
    """The tensors of a folder, in one file or in shards; nothing is read ahead."""

    def __init__(self, folder: str):
        """Look at every header.

        Raises:
            ValueError: no safetensors there, a shard is missing, or a file is cut off.
        """
        self.folder = folder
        self._files: dict[str, str] = {}
        self.specs: dict[str, Spec] = {}
        for file in _find_files(folder):
            with _open(file) as tensors:
                for name in tensors.keys():
                    part = tensors.get_slice(name)
                    self._files[name] = file
                    self.specs[name] = (
                        tuple(part.get_shape()),
                        _find_dtype(part.get_dtype(), file, name),
                    )

    def get(self, name: str) -> np.ndarray:
        """One tensor, in the dtype in which it is stored."""
        with _open(self._files[name]) as tensors:
            return tensors.get_tensor(name)


def _find_files(folder: str) -> list[str]:
    index = Path(folder, INDEX)
    if not index.exists():
        single = Path(folder, SINGLE)
        if not single.exists():
            raise ValueError(
                f"{folder} holds neither {SINGLE} nor {INDEX}; name the folder of a "
                "model in safetensors format."
            )
        return [str(single)]
    try:
        shards = sorted(set(json.loads(index.read_text("utf8"))["weight_map"].values()))
        missing = [name for name in shards if not Path(folder, name).exists()]
    except (
        OSError,  # a name that no file can have
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
    ) as error:
        raise ValueError(f"{index} is no index of shards: {error!r}.") from error
    if missing:
        raise ValueError(f"{folder} lacks the shards {missing} that {INDEX} names.")
    return [str(Path(folder, name)) for name in shards]


@contextlib.contextmanager
def _open(file: str) -> Iterator:
    try:
        with safetensors.safe_open(file, framework="numpy") as tensors:
            yield tensors
    except (OSError, safetensors.SafetensorError) as error:
        raise ValueError(
            f"{file} cannot be read as safetensors ({error}): corrupt or cut off; "
            "fetch it again."
        ) from error


def _find_dtype(name: str, file: str, tensor: str) -> np.dtype:
    if name not in _DTYPES:
        raise ValueError(
            f"{file}: tensor {tensor} has dtype {name}; use one of {sorted(_DTYPES)}."
        )
    return _DTYPES[name]


class Writer:
    """A safetensors file whose tensors come one by one, or one layer at a time.

    It grows under a temporary name and takes its own when every tensor is complete;
    left early, nothing remains.
    """

    def __init__(
        self, path: str, specs: Mapping[str, Spec], metadata: Mapping[str, str]
    ):
        """Write the header and reserve the space."""
        self._path = path
        self._temporary = f"{path}.tmp"
        self._specs = dict(specs)
        self._left = {
            name: set(range(shape[0])) if shape else {0}
            for name, (shape, _) in specs.items()
        }
        header: dict = {"__metadata__": dict(metadata)}
        end = 0
        places = {}
        for name, (shape, dtype) in specs.items():
            start, end = end, end + int(np.prod(shape)) * dtype.itemsize
            places[name] = start
            header[name] = {
                "dtype": _NAMES[dtype],
                "shape": list(shape),
                "data_offsets": [start, end],
            }
        text = json.dumps(header, ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        self._places = {name: 8 + len(text) + at for name, at in places.items()}
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self._temporary, "w+b")  # noqa: SIM115 (__exit__ closes)
        self._file.write(len(text).to_bytes(8, "little") + text)
        self._file.truncate(8 + len(text) + end)

    def put(self, name: str, array: np.ndarray, layer: int | None = None) -> None:
        """Write a whole tensor, or the entry `layer` of its first axis.

        Raises:
            ValueError: another shape or dtype than announced.
        """
        shape, dtype = self._specs[name]
        part = shape if layer is None else shape[1:]
        if array.shape != part or array.dtype != dtype:
            raise ValueError(
                f"{name} was announced as {part} {dtype}, got {array.shape} "
                f"{array.dtype}; all layers of a parameter must have one dtype."
            )
        size = int(np.prod(part)) * dtype.itemsize
        self._file.seek(self._places[name] + (layer or 0) * size)
        self._file.write(np.ascontiguousarray(array).tobytes())
        if layer is None:
            self._left[name].clear()
        else:
            self._left[name].discard(layer)

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind, error, trace) -> None:
        self._file.close()
        holes = sorted(name for name, left in self._left.items() if left)
        if kind is None and not holes:
            os.replace(self._temporary, self._path)
            return
        os.unlink(self._temporary)
        if kind is None:
            raise ValueError(f"{self._path} was left without all of {holes}.")
