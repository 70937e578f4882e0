"""RIFF/WAVE files: the real extent of the data chunk, whatever the header says.

Writers of pipes leave a size of 0, 0xFFFFFFFF, 0x80000000 (arecord) or 0x7FFFF000
(sox); a recorder that crashes leaves that of its beginning. Only a data chunk with a
plausible size whose bytes are not there is truncated; the size of the whole (RIFF) says
nothing.
"""

from __future__ import annotations

import dataclasses

from nim4_jax.data.audio.containers.layout import Layout
from nim4_jax.data.audio.containers.view import Piece, View

_UNKNOWN = 0x7FFF0000
"""Stated sizes from here on that the file does not have are those of pipes."""
_STRAY = 4096  # bytes behind the end that may be anything: tags, padding
_MOST_CHUNKS = 10_000
_READ = 1 << 20


@dataclasses.dataclass(frozen=True)
class Wave:
    """One RIFF file within a file.

    Attributes:
        pieces: of it, with the sizes that it has.
        end: the place behind it.
        right: whether the header's size of the data was right.
        missing: bytes of data that are not there.
    """

    pieces: tuple[Piece, ...]
    end: int
    right: bool
    missing: int


def is_unknown(stated: int) -> bool:
    """Whether a stated size of data is one that means "until the end"."""
    return stated == 0 or stated >= _UNKNOWN


def lay_out(view: View, start: int = 0) -> Layout | None:
    """The parts of a RIFF/WAVE file, None where its chunks cannot be followed."""
    waves: list[Wave] = []
    place = start
    while is_wave(view.read_at(place, 12)):
        wave = _follow(view, place)
        if wave is None:
            break
        waves.append(wave)
        place = wave.end
    if not waves:
        return None
    missing = sum(wave.missing for wave in waves)
    return Layout(
        parts=tuple(view.cut(wave.pieces) for wave in waves),
        changed=start > 0 or len(waves) > 1 or not waves[0].right,
        damage=f"{missing} bytes of its data are missing at the end" if missing else "",
    )


def is_wave(head: bytes) -> bool:
    """Whether 12 bytes are the beginning of a RIFF/WAVE file."""
    return head[:4] == b"RIFF" and head[8:12] == b"WAVE"


def _follow(view: View, start: int) -> Wave | None:
    """The RIFF file at a place; None if it has no data chunk."""
    place = start + 12
    for _ in range(_MOST_CHUNKS):
        head = view.read_at(place, 8)
        if len(head) < 8 or not _is_name(head[:4]):
            return None
        size = int.from_bytes(head[4:], "little")
        if head[:4] == b"data":
            return _measure_data(view, start, place, size)
        place += 8 + size + size % 2
    return None


def _measure_data(view: View, start: int, place: int, stated: int) -> Wave:
    """The RIFF file whose data chunk is at `place`."""
    first = place + 8
    room = view.size - first
    missing = 0
    end, stray = (
        _find_end(view, first, first + stated) if stated <= room else (0, False)
    )
    if stated > room or (stated == 0 and end == view.size and stray):
        end = _find_next(view, first) if is_unknown(stated) else view.size
        used = end - first
        missing = 0 if is_unknown(stated) else stated - room
        right = stated > room and end == view.size
    else:
        right = not stray
        used = end - first if stray else stated
    pieces = (
        b"RIFF" + min(first - start - 8 + used, 2**32 - 1).to_bytes(4, "little"),
        (start + 8, place),
        b"data" + min(used, 2**32 - 1).to_bytes(4, "little"),
        (first, first + used),
    )
    return Wave(pieces, end, right, missing)


def _find_end(view: View, first: int, place: int) -> tuple[int, bool]:
    """Where a RIFF file ends whose data is [first, place), and whether it goes on.

    It does if what follows is neither chunks nor another file, and more than strays.
    """
    at = place
    for _ in range(_MOST_CHUNKS):
        for begin in (at, at + 1):  # with or without the byte that evens an odd size
            head = view.read_at(begin, 12)
            if is_wave(head):
                return begin, False
            known = _is_name(head[:4]) and len(head) >= 8
            size = int.from_bytes(head[4:8], "little")
            if known and begin + 8 + size <= view.size + 1:
                at = begin + 8 + size
                break
        else:
            break
    few = view.size - at <= (_STRAY if place > first else 0)
    if few or at > place:
        return view.size, False
    # Zeros behind samples are padding; without a size they may be silence.
    silent = place > first and not view.read_at(at, 1 << 16).strip(b"\0")
    return view.size, not silent


def _find_next(view: View, place: int) -> int:
    """Where the next RIFF/WAVE file begins behind `place`; the end if none does."""
    kept = b""
    while block := view.read_at(place, _READ):
        text, begin = kept + block, place - len(kept)
        at = text.find(b"WAVEfmt ", 8)
        while at >= 0:
            if text[at - 8 : at - 4] == b"RIFF":
                return begin + at - 8
            at = text.find(b"WAVEfmt ", at + 8)
        place += len(block)
        kept = text[-15:]
    return view.size


def _is_name(name: bytes) -> bool:
    """Whether four bytes can be a chunk's name."""
    return len(name) == 4 and all(32 <= byte < 127 for byte in name)


def read_format(head: bytes) -> tuple[int, int, int, int] | None:
    """What the begin of a RIFF/WAVE stream says, if it holds plain 16 bit samples.

    Args:
        head: its first bytes.

    Returns:
        Rate in Hz, channels, the place of the first sample, and the stated bytes of
        samples (see `is_unknown`); None if the samples are of another kind, or do not
        begin within these bytes.
    """
    place, found = 12, None
    while is_wave(head[:12]) and place + 8 <= len(head):
        name, size = head[place : place + 4], head[place + 4 : place + 8]
        length = int.from_bytes(size, "little")
        if name == b"data":
            return (*found, place + 8, length) if found else None
        if name == b"fmt ":
            fields = head[place + 8 : place + 8 + length].ljust(26, b"\0")
            tag = int.from_bytes(fields[:2], "little")
            if tag == 0xFFFE:  # extensible: the kind is the begin of a GUID
                tag = int.from_bytes(fields[24:26], "little")
            rate = int.from_bytes(fields[4:8], "little")
            if tag != 1 or int.from_bytes(fields[14:16], "little") != 16:
                return None
            found = (rate, int.from_bytes(fields[2:4], "little"))
        place += 8 + length + length % 2
    return None
