"""MPEG audio (mp3): every frame found, joined files taken apart, their lengths told.

An mp3 file has no header of its own: a first frame may carry a table (Xing, Info, VBRI)
with the number of frames. Streams and pipes have none, and a decoder then guesses from
the first frame's size; joined files have that of their first. So the frames are
counted, and each part gets a table that is right.

Source: ISO/IEC 11172-3 section 2.4.2.3 (header); the LAME tag's revision 1.
"""

from __future__ import annotations

import dataclasses

from nim4_jax.data.audio.containers.layout import Layout
from nim4_jax.data.audio.containers.view import Piece, View

_READ = 1 << 20
_LARGEST = 4096  # bytes of a frame, and more than a tag's head
_CONFIRM = 2  # frames behind one that is found after something else
_RATES = (44100, 48000, 32000)
_KBITS = {  # by (MPEG 1 or not, layer)
    (True, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_KBITS[False, 3] = _KBITS[False, 2]


@dataclasses.dataclass(frozen=True)
class Header:
    """What the second and third byte of a frame say.

    Attributes:
        size: of the frame, bytes.
        samples: of the frame.
        rate: Hz.
        layer: 1, 2 or 3.
        newest: whether it is MPEG 1, not 2 or 2.5.
    """

    size: int
    samples: int
    rate: int
    layer: int
    newest: bool


def parse_header(second: int, third: int) -> Header | None:
    """The header of a frame after its byte 0xFF; None if it is none."""
    version, layer = second >> 3 & 3, 4 - (second >> 1 & 3)
    index, step = third >> 4, third >> 2 & 3
    if second >> 5 != 7 or version == 1 or layer == 4 or index in (0, 15) or step == 3:
        return None
    newest = version == 3
    rate = _RATES[step] >> (0 if newest else 1 if version == 2 else 2)
    bits, padding = 1000 * _KBITS[newest, layer][index - 1], third >> 1 & 1
    if layer == 1:
        return Header((12 * bits // rate + padding) * 4, 384, rate, 1, newest)
    samples = 576 if layer == 3 and not newest else 1152
    return Header(samples // 8 * bits // rate + padding, samples, rate, layer, newest)


_HEADERS = {
    second << 8 | third: header
    for second in range(0xE0, 0x100)
    for third in range(256)
    if (header := parse_header(second, third))
}


@dataclasses.dataclass
class _Part:
    """Frames of one rate and layer, from a beginning to the next."""

    first: bytes  # header of its first frame
    header: Header
    ranges: list[tuple[int, int]]
    frames: int = 0
    table: bytes = b""  # the frame that holds it
    stated: int = -1


def is_mpeg(head: bytes) -> bool:
    """Whether bytes begin with frames of MPEG audio, one behind the other.

    One header is found in noise too often: raw samples of −1 to −32 begin with 0xFF.
    """
    place, found, kind = 0, 0, None
    while place + 4 <= len(head) and found < 4:
        header = _look_up(head, place)
        if header is None or kind not in (None, (header.rate, header.layer)):
            return False
        kind = (header.rate, header.layer)
        place, found = place + header.size, found + 1
    return found >= 3


def lay_out(view: View, start: int = 0) -> Layout | None:
    """The parts of an mp3 file, None if no frames are found."""
    walk = _Walk(view, start)
    parts = [part for part in walk.run() if part.frames]
    if not parts:
        return None
    stated = sum(max(part.stated, part.frames) for part in parts)
    lost = stated - sum(part.frames for part in parts)
    alone = len(parts) == 1 and parts[0].stated == parts[0].frames
    whole = alone and not walk.skipped and start == 0
    layout = Layout(tuple(_make_view(view, part) for part in parts), not whole)
    if walk.skipped:
        damage = f"{walk.skipped} bytes within it are no frames of MPEG audio"
        return dataclasses.replace(layout, damage=damage, reason="damaged audio")
    if lost > 4:  # encoders disagree whether the table's own frame counts
        seconds = lost * parts[0].header.samples / parts[0].header.rate
        damage = f"{lost} of its {stated} frames ({seconds:.2f} s) are missing"
        return dataclasses.replace(layout, damage=damage)
    return layout


def _look_up(data: bytes, place: int) -> Header | None:
    """The header of the frame at a place of these bytes."""
    if len(data) < place + 4 or data[place] != 0xFF:
        return None
    return _HEADERS.get(data[place + 1] << 8 | data[place + 2])


class _Walk:
    """From frame to frame through a file, in memory of a constant size.

    Attributes:
        skipped: bytes between frames that are neither frames nor tags.
    """

    def __init__(self, view: View, start: int):
        self.skipped = 0
        self._view, self._place = view, start
        self._data, self._begin = b"", start
        self._parts: list[_Part] = []

    def run(self) -> list[_Part]:
        """All parts."""
        after_gap = True
        while self._view.size - self._place >= 4:
            self._fill()
            if not self._data:
                break  # the disk fails
            at = self._place - self._begin
            header = _look_up(self._data, at)
            if header and self._place + header.size > self._view.size:
                break  # the last frame was cut
            if header and (not after_gap or self._is_confirmed(at, header)):
                self._take(at, header, after_gap)
                self._place += header.size
                after_gap = False
                continue
            after_gap = True
            self._skip(at)
        return self._parts

    def _fill(self) -> None:
        """See that the bytes of a frame and of those that confirm it are there."""
        left = self._begin + len(self._data) - self._place
        if left < (_CONFIRM + 1) * _LARGEST:
            self._data = self._view.read_at(self._place, _READ)
            self._begin = self._place

    def _is_confirmed(self, at: int, header: Header) -> bool:
        """Whether frames of the same kind follow, or the end of the file."""
        for _ in range(_CONFIRM):
            at += header.size
            if at >= len(self._data) or self._data[at : at + 3] in (b"TAG", b"ID3"):
                return True
            found = _look_up(self._data, at)
            if found is None or (found.rate, found.layer, found.newest) != (
                header.rate,
                header.layer,
                header.newest,
            ):
                return False
            header = found
        return True

    def _take(self, at: int, header: Header, after_gap: bool) -> None:
        """Count a frame, into a new part where one begins."""
        part = self._parts[-1] if self._parts else None
        table = self._find_table(at, header)
        kind = (header.rate, header.layer, header.newest)
        if part and kind != (part.header.rate, part.header.layer, part.header.newest):
            part = None
        if part is None or table >= 0:
            first = self._data[at : at + 4]
            part = _Part(first, header, [])
            self._parts.append(part)
            if table >= 0:
                part.table = self._data[at : at + header.size]
                part.stated = _read_count(part.table)
                return
        end = self._place + header.size
        if part.ranges and part.ranges[-1][1] == self._place:
            part.ranges[-1] = (part.ranges[-1][0], end)
        else:
            part.ranges.append((self._place, end))
        part.frames += 1

    def _find_table(self, at: int, header: Header) -> int:
        """Where in the frame its table's name is, −1 for a frame of audio."""
        if header.layer != 3:
            return -1
        mono = self._data[at + 3] >> 6 == 3
        place = at + _find_place(header, mono)
        if self._data[place : place + 4] in (b"Xing", b"Info"):
            return place - at
        return 36 if self._data[at + 36 : at + 40] == b"VBRI" else -1

    def _skip(self, at: int) -> None:
        """Go over a tag, or to the next byte that may begin a frame."""
        data, before = self._data, self._place
        size = measure_tag(data[at : at + 32])
        if size:
            self._place += size
            return
        padding = data[at : at + _LARGEST]
        if zeros := len(padding) - len(padding.lstrip(b"\0")):
            self._place += zeros
            return
        found = data.find(b"\xff", at + 1)
        while found >= 0 and not self._may_begin(found):
            found = data.find(b"\xff", found + 1)
        self._place = self._begin + (found if found >= 0 else len(data))
        # What is before the first frame or behind the last is no loss of speech.
        if self._parts and found >= 0:
            self.skipped += self._place - before

    def _may_begin(self, at: int) -> bool:
        header = _look_up(self._data, at)
        if header is None:
            return False
        end = self._begin + at + header.size
        return end <= self._view.size and self._is_confirmed(at, header)


def measure_tag(head: bytes) -> int:
    """Bytes of the tag that these (32 at least, if there are) begin; 0 for none."""
    if head[:3] == b"ID3" and len(head) >= 10 and max(head[6:10]) < 128:
        a, b, c, d = head[6:10]
        return 10 + (a << 21 | b << 14 | c << 7 | d) + (10 if head[5] & 16 else 0)
    if head[:4] == b"TAG+":
        return 227
    if head[:3] == b"TAG":
        return 128
    if head[:8] == b"APETAGEX" and len(head) >= 24:
        size = int.from_bytes(head[12:16], "little")
        return size + 32 if head[23] & 0xA0 == 0xA0 else 32
    return 0


def _find_place(header: Header, mono: bool) -> int:
    """Where the name of a Xing table is in a frame: behind the side information."""
    if header.newest:
        return 21 if mono else 36
    return 13 if mono else 21


def _read_count(table: bytes) -> int:
    """Frames that a table states, −1 if it does not."""
    for name in (b"Xing", b"Info"):
        at = table.find(name, 0, 64)
        if at >= 0:
            states = len(table) >= at + 12 and table[at + 7] & 1
            return int.from_bytes(table[at + 8 : at + 12], "big") if states else -1
    at = table.find(b"VBRI", 0, 64)
    return int.from_bytes(table[at + 14 : at + 18], "big") if at >= 0 else -1


def _make_view(view: View, part: _Part) -> View:
    """A part with a table that is right before its frames."""
    pieces: list[Piece] = list(part.ranges)
    if part.header.layer == 3:
        pieces = [_make_table(part), *pieces]
    return view.cut(pieces)


def _make_table(part: _Part) -> bytes:
    """The part's own table with its true count, or a new one.

    What LAME noted of its delay is kept: it is what is cut off at both ends.
    """
    count = part.frames.to_bytes(4, "big")
    if part.stated >= 0 and b"VBRI" not in part.table[:64]:
        mono = part.table[3] >> 6 == 3
        at = _find_place(part.header, mono)
        table = part.table[: at + 8] + count + part.table[at + 12 :]
        if table[at + 7] & 2:
            size = len(table) + sum(last - first for first, last in part.ranges)
            table = table[: at + 12] + size.to_bytes(4, "big") + table[at + 16 :]
        return table
    second, third, fourth = part.first[1:4]
    mono = fourth >> 6 == 3
    at = _find_place(part.header, mono)
    for index in range(1, 15):  # the smallest frame that has room
        third = index << 4 | third & 0x0C
        header = _HEADERS[second << 8 | third]
        if header.size >= at + 12:
            break
    # Bit 0 of the second byte: no checksum behind the header.
    head = bytes([0xFF, second | 1, third, fourth]).ljust(at, b"\0")
    return (head + b"Xing" + bytes([0, 0, 0, 1]) + count).ljust(header.size, b"\0")
