"""FLAC streams: joined ones taken apart, their length from their last frame.

Source: RFC 9639, sections 8.2 (streaminfo) and 9.1 (frame header).
"""

from __future__ import annotations

from nim4_jax.data.audio.containers.layout import Layout
from nim4_jax.data.audio.containers.view import View

_STREAMINFO = 34  # bytes of it; behind them in the file: 4 of "fLaC", 4 of its header
_TAIL = 1 << 18  # bytes among which the last frame is looked for
_READ = 1 << 20
_BLOCKS = {1: 192, **{n: 576 << (n - 2) for n in range(2, 6)}}
_BLOCKS |= {n: 256 << (n - 8) for n in range(8, 16)}


def lay_out(view: View, start: int = 0) -> Layout:
    """The parts of a FLAC file, each with the number of samples that it has."""
    starts = _find_streams(view, start)
    ends = [*starts[1:], view.size]
    parts, changed = [], start > 0 or len(starts) > 1
    for first, last in zip(starts, ends):
        part = view.cut([(first, last)])
        mended = mend_length(part)
        changed |= mended is not part
        parts.append(mended)
    return Layout(tuple(parts), changed)


def _find_streams(view: View, start: int) -> list[int]:
    """Places of "fLaC" with a streaminfo behind it; the first is `start`."""
    found, place, kept = [start], start + 4, b""
    while block := view.read_at(place, _READ):
        text, begin = kept + block, place - len(kept)
        at = text.find(b"fLaC")
        while at >= 0:
            head = view.read_at(begin + at, 8)
            info = head[4:5] in (b"\0", b"\x80")
            if info and head[5:8] == bytes([0, 0, _STREAMINFO]):
                found.append(begin + at)
            at = text.find(b"fLaC", at + 4)
        place += len(block)
        kept = text[-3:]
    return found


def mend_length(part: View) -> View:
    """The same stream, with the length of its last frame if that is a longer one.

    The header's length is 0 where the encoder wrote into a pipe.
    """
    head = part.read_at(0, 8 + _STREAMINFO)
    if len(head) < 8 + _STREAMINFO or head[:4] != b"fLaC" or head[4] & 0x7F:
        return part
    info = head[8:]
    total = int.from_bytes(info[13:18], "big") & (1 << 36) - 1
    end = _find_end(part, info)
    if end <= total:
        return part
    stated = int.from_bytes(info[13:18], "big") >> 36 << 36 | end
    # The checksum of the samples is of those that the header knew.
    info = info[:13] + stated.to_bytes(5, "big") + bytes(16)
    return part.cut([head[:8] + info, (8 + _STREAMINFO, part.size)])


def _find_end(part: View, info: bytes) -> int:
    """The number of the sample behind the last frame, 0 where none is found."""
    first = max(8 + _STREAMINFO, part.size - _TAIL)
    tail = part.read_at(first, _TAIL)
    place = len(tail)
    while (place := tail.rfind(b"\xff", 0, place)) >= 0:
        if tail[place + 1 : place + 2] in (b"\xf8", b"\xf9"):
            end = _read_header(tail[place : place + 16], info)
            if end:
                return end
    return 0


def _read_header(head: bytes, info: bytes) -> int:
    """The number of the sample behind a frame, 0 if these bytes are no frame's."""
    if len(head) < 16:
        head = head + bytes(16 - len(head))
    ones = 8 - (head[4] ^ 0xFF).bit_length()  # leading ones: bytes of the number
    length = max(ones, 1)
    if ones in (1, 8) or head[3] & 1 or head[3] >> 4 in range(11, 16):
        return 0
    number = head[4] & (0x7F >> ones)
    for byte in head[5 : 4 + length]:
        if byte >> 6 != 2:
            return 0
        number = number << 6 | byte & 0x3F
    place, code = 4 + length, head[2] >> 4
    wide = {6: 1, 7: 2}.get(code, 0)
    size = int.from_bytes(head[place : place + wide], "big") + 1
    size = size if wide else _BLOCKS.get(code, 0)
    place += wide + {12: 1, 13: 2, 14: 2}.get(head[2] & 15, 0)
    channels = (info[12] >> 1 & 7) + 1
    assigned = 2 if head[3] >> 4 > 7 else (head[3] >> 4) + 1
    if not size or channels != assigned or _checksum(head[:place]) != head[place]:
        return 0
    fixed = int.from_bytes(info[0:2], "big")  # samples of a block where all are alike
    return number + size if head[1] & 1 else number * fixed + size


def _checksum(data: bytes) -> int:
    """CRC-8 with the polynomial x⁸ + x² + x + 1."""
    value = 0
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = (value << 1 ^ 0x07 if value & 0x80 else value << 1) & 0xFF
    return value
