"""A file-like view for decoders: ranges of the stored file and synthesised bytes."""

from __future__ import annotations

import bisect
import io
from collections.abc import Sequence
from typing import BinaryIO

Piece = bytes | tuple[int, int]
"""Bytes, or [start, stop) of the stored file."""


class View:
    """Pieces of a file, one after the other, as a file to read.

    It is called from C code, which cannot pass exceptions on: places outside are
    clamped, and bytes that cannot be read are missing.
    """

    def __init__(self, base: BinaryIO, pieces: Sequence[Piece]):
        """Open at the beginning.

        Args:
            base: what ranges refer to; must stay open, and be read by nobody else
                meanwhile.
            pieces: neighbouring ranges are merged, empty ones dropped.
        """
        self._base = base
        self._pieces: list[Piece] = []
        for piece in pieces:
            last = self._pieces[-1] if self._pieces else b""
            if _measure(piece) <= 0:
                continue
            both = isinstance(piece, tuple) and isinstance(last, tuple)
            if both and last[1] == piece[0]:
                self._pieces[-1] = (last[0], piece[1])
            else:
                self._pieces.append(piece)
        self._starts, size = [], 0
        for piece in self._pieces:
            self._starts.append(size)
            size += _measure(piece)
        self.size = size
        self._place = 0

    @classmethod
    def of(cls, audio: bytes | BinaryIO) -> View:
        """The whole of a file or of its bytes."""
        base = io.BytesIO(audio) if isinstance(audio, bytes) else audio
        size = base.seek(0, io.SEEK_END)
        return cls(base, [(0, size)])

    def cut(self, pieces: Sequence[Piece]) -> View:
        """A view of this view: ranges are places in this one."""
        flat: list[Piece] = []
        for piece in pieces:
            if isinstance(piece, bytes):
                flat.append(piece)
            else:
                flat.extend(self._locate(*piece))
        return View(self._base, flat)

    def _locate(self, start: int, stop: int) -> list[Piece]:
        """Pieces of the stored file that lie in [start, stop) of this view."""
        start, stop = max(0, start), min(stop, self.size)
        found: list[Piece] = []
        number = max(0, bisect.bisect_right(self._starts, start) - 1)
        while start < stop:
            piece, begin = self._pieces[number], self._starts[number]
            length = min(stop, begin + _measure(piece)) - start
            first = start - begin
            if isinstance(piece, bytes):
                found.append(piece[first : first + length])
            else:
                found.append((piece[0] + first, piece[0] + first + length))
            start, number = start + length, number + 1
        return found

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place; one outside becomes the nearest end."""
        origin = {io.SEEK_CUR: self._place, io.SEEK_END: self.size}.get(whence, 0)
        self._place = min(max(origin + offset, 0), self.size)
        return self._place

    def tell(self) -> int:
        """The place of the next byte."""
        return self._place

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes, all that are left if it is negative."""
        stop = self.size if size < 0 else min(self.size, self._place + size)
        parts = []
        for piece in self._locate(self._place, stop):
            if isinstance(piece, bytes):
                parts.append(piece)
                continue
            try:
                self._base.seek(piece[0])
                parts.append(self._base.read(piece[1] - piece[0]))
            except (OSError, ValueError):  # the disk fails: as if the file ended
                break
        made = b"".join(parts)
        self._place += len(made)
        return made

    def read_at(self, place: int, size: int) -> bytes:
        """Up to `size` bytes from a place on."""
        self.seek(place)
        return self.read(size)

    def write(self, _data: bytes) -> int:
        """Nothing is written; decoders ask for the method."""
        return 0


def _measure(piece: Piece) -> int:
    return len(piece) if isinstance(piece, bytes) else piece[1] - piece[0]
