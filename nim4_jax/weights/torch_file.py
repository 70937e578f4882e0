"""Files of `torch.save` read without torch, and without running what is in them.

Only dictionaries, plain values, tensors and an argparse Namespace are let through; any
other class or function in the pickle is refused by name.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import pickle
import zipfile
from typing import Any

import ml_dtypes
import numpy as np

_STORAGES = {
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}


class Arguments:
    """What an argparse Namespace becomes: its attributes in `vars()`."""


@dataclasses.dataclass(frozen=True)
class TensorPlace:
    """Where a tensor's elements lie in the archive.

    Attributes:
        entry: name of its storage.
        offset: first element.
        shape: sizes.
        stride: elements from one entry of an axis to the next.
        dtype: of the elements.
    """

    entry: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: np.dtype


def _rebuild_tensor(storage, offset, shape, stride, *_) -> TensorPlace:
    entry, dtype = storage
    return TensorPlace(entry, offset, tuple(shape), tuple(stride), dtype)


_ALLOWED = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("argparse", "Namespace"): Arguments,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
    **{("torch", name): dtype for name, dtype in _STORAGES.items()},
}


class _Unpickler(pickle._Unpickler):
    """Knows the names of `_ALLOWED` and no others.

    Python's own: the one in C takes memory for whatever number a damaged file states.
    """

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it wants {module}.{name}, which is refused")
        return _ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> tuple[str, np.dtype]:
        kind, dtype, entry, *_ = pid
        if kind != "storage" or not isinstance(dtype, np.dtype):
            raise pickle.UnpicklingError(f"it refers to {kind!r}, which is refused")
        return str(entry), dtype


class TorchFile:
    """A file of `torch.save`: its objects, with tensors still on the disk.

    Attributes:
        path: of the file.
        content: the saved object; a tensor is a `TensorPlace`.
    """

    def __init__(self, path: str):
        """Read everything but the tensors.

        Raises:
            ValueError: no such file, cut off, or with something else than data in it.
        """
        self.path = path
        try:
            with zipfile.ZipFile(path) as archive:
                (pickled,) = [n for n in archive.namelist() if n.endswith("/data.pkl")]
                self._root = pickled.removesuffix("data.pkl")
                with archive.open(pickled) as stream:
                    self.content = _Unpickler(stream).load()
        except pickle.UnpicklingError as error:
            raise ValueError(
                f"{path} holds more than tensors and plain values: {error}. Such a "
                "pickle can run code; it was not loaded."
            ) from error
        # A damaged pickle or archive makes its reader raise anything.
        except Exception as error:
            raise ValueError(
                f"{path} is no file of torch.save since torch 1.6, or cut off "
                f"({type(error).__name__}: {error})."
            ) from error

    def get(self, place: TensorPlace) -> np.ndarray:
        """Read one tensor.

        Raises:
            ValueError: its elements are not all there.
        """
        try:
            with zipfile.ZipFile(self.path) as archive:
                raw = archive.read(f"{self._root}data/{place.entry}")
            flat = np.frombuffer(raw, place.dtype)
            fits = _fits(place, flat.size)
        # So does a damaged archive, and what a damaged pickle takes for numbers.
        except Exception as error:
            raise ValueError(
                f"{self.path}: storage {place.entry}: {type(error).__name__}: {error}"
            ) from error
        if not fits:
            raise ValueError(
                f"{self.path}: storage {place.entry} has {flat.size} elements, in "
                f"which no tensor of shape {place.shape}, stride {place.stride} lies "
                f"from {place.offset} on."
            )
        strides = [step * flat.itemsize for step in place.stride]
        return np.lib.stride_tricks.as_strided(
            flat[place.offset :], place.shape, strides, writeable=False
        )


def _fits(place: TensorPlace, size: int) -> bool:
    """Whether a tensor lies within a storage of `size` elements, none of them twice."""
    if len(place.shape) != len(place.stride):
        return False
    numbers = (place.offset, *place.shape, *place.stride)
    if any(type(number) is not int or number < 0 for number in numbers):
        return False
    if not (count := math.prod(place.shape)):
        return place.offset <= size
    steps = ((n - 1) * step for n, step in zip(place.shape, place.stride))
    return count <= size and place.offset + sum(steps) < size
