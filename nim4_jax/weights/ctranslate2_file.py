"""Files of CTranslate2 (model.bin), read tensor by tensor; quantised ones in float32.

The file is one table, little-endian: uint32 version, name of the specification, uint32
revision of it, uint32 number of tensors; for each tensor its name, uint8 rank, uint32
sizes, uint8 dtype, uint32 bytes, and the bytes; then uint32 number of aliases and for
each its own name and that of the tensor it stands for. A name is uint16 length, bytes,
NUL; the length counts the NUL.

A matrix or convolution may be quantised to int8 or int16: NAME_scale beside it is then
one number a row, or one for all, and the value is stored / scale.

Source: ctranslate2 `ModelSpec._serialize`, `LayerSpec._quantize`.
"""

from __future__ import annotations

import dataclasses
import math
import os
import struct
from collections.abc import Sequence

import ml_dtypes
import numpy as np

from nim4_jax.weights.tensor_file import Spec

VERSION = 6
"""Of the table. Whisper has never been written in an older one."""

_DTYPES = tuple(
    np.dtype(kind) for kind in ("<f4", "i1", "<i2", "<i4", "<f2", ml_dtypes.bfloat16)
)
_BLOCK = 4096  # bytes read at once between two tensors
_SCALE = "_scale"
_QUANTISED = (np.dtype(np.int8), np.dtype(np.int16))


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a tensor lies.

    Attributes:
        start: first byte.
        shape: sizes.
        dtype: of the stored elements.
    """

    start: int
    shape: tuple[int, ...]
    dtype: np.dtype


class Pieces:
    """Files whose contents follow each other, read as one.

    Attributes:
        name: for messages.
        size: bytes of all.
    """

    def __init__(self, paths: Sequence[str]):
        """Measure the files.

        Raises:
            ValueError: one cannot be read.
        """
        self.name = " + ".join(paths)
        self._files: list[tuple[int, int, str]] = []
        self.size = 0
        for path in paths:
            try:
                size = os.stat(path).st_size if os.path.isfile(path) else None
            except OSError as error:
                raise ValueError(f"{path} cannot be read ({error}).") from error
            if size is None:
                raise ValueError(f"{path} is no file.")
            self._files.append((self.size, self.size + size, path))
            self.size += size

    def read(self, start: int, count: int) -> bytes:
        """Bytes from `start` on; fewer where the files end.

        Raises:
            ValueError: a file cannot be read.
        """
        parts = []
        for first, end, path in self._files:
            low, high = max(start, first), min(start + count, end)
            if low >= high:
                continue
            try:
                with open(path, "rb") as stream:
                    stream.seek(low - first)
                    parts.append(stream.read(high - low))
            except OSError as error:
                raise ValueError(f"{path} cannot be read ({error}).") from error
        return b"".join(parts)


class _Cursor:
    """Reads a table's entries in order, and skips what lies between them."""

    def __init__(self, pieces: Pieces):
        self._pieces = pieces
        self._block = b""
        self._first = 0
        self.at = 0

    def take(self, count: int, what: str) -> bytes:
        """The next bytes.

        Raises:
            ValueError: the file ends before.
        """
        low = self.at - self._first
        if not 0 <= low <= low + count <= len(self._block):
            self._block = self._pieces.read(self.at, max(count, _BLOCK))
            self._first, low = self.at, 0
        found = self._block[low : low + count]
        if len(found) < count:
            raise self.fail(f"the file ends at {self._pieces.size} within {what}")
        self.at += count
        return found

    def number(self, form: str, what: str) -> int:
        """An unsigned number, of the struct format B, H or I."""
        raw = self.take(struct.calcsize(f"<{form}"), what)
        return struct.unpack(f"<{form}", raw)[0]

    def text(self, what: str) -> str:
        """A name."""
        raw = self.take(self.number("H", f"the length of {what}"), what)
        if not raw.endswith(b"\0") or b"\0" in raw[:-1]:
            raise self.fail(f"{what} does not end with its one NUL: {raw[:80]!r}")
        try:
            return raw[:-1].decode("utf8")
        except UnicodeDecodeError as error:
            raise self.fail(f"{what} is no UTF-8: {raw[:80]!r}") from error

    def skip(self, count: int, what: str) -> None:
        """Pass over bytes that must be there."""
        if self.at + count > self._pieces.size:
            raise self.fail(
                f"{what} takes {count} bytes, but the file ends at {self._pieces.size}"
            )
        self.at += count

    def fail(self, problem: str) -> ValueError:
        """An error that names the file and the place in it."""
        return ValueError(
            f"{self._pieces.name} is no whole CTranslate2 model: at byte {self.at}, "
            f"{problem}. Cut off or damaged: fetch it again."
        )


class CTranslate2File:
    """The tensors of a model.bin by name, unread.

    Attributes:
        path: of the file, or of its pieces, for messages.
        spec: name of the specification, as "WhisperSpec".
        revision: of the specification.
        specs: shape and dtype of each tensor, aliases included and scales left out; a
            quantised one is float32.
    """

    def __init__(self, paths: Sequence[str]):
        """Read the table.

        Args:
            paths: the file, or pieces that were cut from one.

        Raises:
            ValueError: unreadable, cut off, damaged, or of another version.
        """
        self._pieces = Pieces(paths)
        self.path = self._pieces.name
        cursor = _Cursor(self._pieces)
        version = cursor.number("I", "the version")
        if version != VERSION:
            raise ValueError(
                f"{self.path} begins with version {version}, expected {VERSION}: no "
                "CTranslate2 model, of another version, or a Git LFS pointer in its "
                "place (git lfs pull fetches the file)."
            )
        self.spec = cursor.text("the name of the specification")
        self.revision = cursor.number("I", "the revision")
        self._places = _read_places(cursor)
        self._aliases = _read_aliases(cursor, self._places)
        if cursor.at != self._pieces.size:
            raise cursor.fail(f"{self._pieces.size - cursor.at} bytes are left over")
        self._scales = self._pair_scales()
        self.specs: dict[str, Spec] = {}
        for name in (*self._places, *self._aliases):
            place = self._places[self._resolve(name)]
            if place not in self._scales.values():
                quantised = self.is_quantised(name)
                dtype = np.dtype(np.float32) if quantised else place.dtype
                self.specs[name] = place.shape, dtype

    def get(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """One tensor, or the rows from `start` to before `stop` of it.

        Raises:
            ValueError: the file became shorter, or a scale is not above 0.
        """
        name = self._resolve(name)
        stored = self._read(self._places[name], start, stop)
        if name not in self._scales:
            return stored
        place = self._scales[name]
        scale = self._read(place, start, stop) if place.shape else self._read(place)
        if not (np.isfinite(scale).all() and (scale > 0).all()):
            raise ValueError(
                f"{self.path}: {name}{_SCALE} holds numbers that are not above 0; the "
                "file is damaged: fetch it again."
            )
        scale = scale.reshape(scale.shape + (1,) * (stored.ndim - scale.ndim))
        return stored.astype(np.float32) / scale.astype(np.float32)

    def is_quantised(self, name: str) -> bool:
        """Whether a tensor has a scale."""
        return self._resolve(name) in self._scales

    def _resolve(self, name: str) -> str:
        return self._aliases.get(name, name)

    def _read(
        self, place: Place, start: int = 0, stop: int | None = None
    ) -> np.ndarray:
        shape = place.shape
        if shape:
            start, stop, _ = slice(start, stop).indices(shape[0])
            shape = (max(stop - start, 0), *shape[1:])
        else:
            start = 0
        row = math.prod(shape[1:]) * place.dtype.itemsize
        count = math.prod(shape) * place.dtype.itemsize
        raw = self._pieces.read(place.start + start * row, count)
        if len(raw) != count:
            raise ValueError(f"{self.path} became shorter while it was read.")
        return np.frombuffer(raw, place.dtype).reshape(shape)

    def _pair_scales(self) -> dict[str, Place]:
        """Scales by the names of what they scale.

        Raises:
            ValueError: a scale does not fit its tensor.
        """
        scales = {}
        for name, place in self._places.items():
            owner = name.removesuffix(_SCALE)
            if owner == name or owner not in self._places:
                continue
            scaled = self._places[owner]
            fits = place.shape in ((), (1,), scaled.shape[:1]) and scaled.shape
            if place.dtype != np.float32 or scaled.dtype not in _QUANTISED or not fits:
                raise ValueError(
                    f"{self.path}: {name} is {place.dtype} {place.shape} beside "
                    f"{scaled.dtype} {scaled.shape}; expected float32, one number or "
                    "one a row, beside int8 or int16."
                )
            scales[owner] = dataclasses.replace(
                place, shape=() if place.shape == (1,) else place.shape
            )
        return scales


def _read_places(cursor: _Cursor) -> dict[str, Place]:
    """The table of tensors.

    Raises:
        ValueError: it contradicts itself or the size of the file.
    """
    places: dict[str, Place] = {}
    # Every entry takes bytes: a wrong number of them ends with the file.
    for index in range(cursor.number("I", "the number of tensors")):
        name = cursor.text(f"the name of tensor {index}")
        if name in places:
            raise cursor.fail(f"{name} comes a second time")
        rank = cursor.number("B", f"the rank of {name}")
        raw = cursor.take(4 * rank, f"the sizes of {name}")
        shape = struct.unpack(f"<{rank}I", raw)
        kind = cursor.number("B", f"the dtype of {name}")
        if kind >= len(_DTYPES):
            raise cursor.fail(
                f"{name} has dtype {kind}; known are 0 to {len(_DTYPES) - 1}"
            )
        size = cursor.number("I", f"the bytes of {name}")
        if math.prod(shape) * _DTYPES[kind].itemsize != size:
            raise cursor.fail(
                f"{name} of shape {shape} and dtype {_DTYPES[kind]} has {size} bytes"
            )
        places[name] = Place(cursor.at, shape, _DTYPES[kind])
        cursor.skip(size, name)
    return places


def _read_aliases(cursor: _Cursor, places: dict[str, Place]) -> dict[str, str]:
    """Names that stand for tensors under another name.

    Raises:
        ValueError: a name is taken, or what it stands for is not there.
    """
    aliases: dict[str, str] = {}
    for index in range(cursor.number("I", "the number of aliases")):
        alias = cursor.text(f"the name of alias {index}")
        target = cursor.text(f"what {alias} stands for")
        if alias in places or alias in aliases:
            raise cursor.fail(f"{alias} comes a second time")
        if target not in places:
            raise cursor.fail(f"{alias} stands for {target}, which is not there")
        aliases[alias] = target
    return aliases
