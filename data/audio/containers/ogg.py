"""Ogg files: chained and multiplexed streams taken apart, bad pages left out.

Three things that libsndfile stumbles over and players do not are mended: a last page
without its end-of-stream flag, a first page of Opus whose position is some samples
short of its packets, and FLAC in Ogg, which is handed on as plain FLAC.

Source: RFC 3533 section 6 (pages), RFC 7845 section 4 (positions of Opus).
"""

from __future__ import annotations

import dataclasses
import zlib

from nim4_jax.data.audio.containers import flac
from nim4_jax.data.audio.containers.layout import Layout
from nim4_jax.data.audio.containers.view import Piece, View

_FIRST, _LAST = 2, 4  # flags of a page
_HEAD = 27  # bytes before the table of segments
_READ = 1 << 18
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_OPUS_SAMPLES = (  # of a frame at 48 kHz, by the configuration in its first byte
    *(480, 960, 1920, 2880) * 3,
    *(480, 960) * 2,
    *(120, 240, 480, 960) * 4,
)
_AUDIO = (b"OpusHead", b"\x01vorbis", b"\x7fFLAC", b"Speex   ")


@dataclasses.dataclass(frozen=True)
class _Page:
    """A page whose checksum is right."""

    start: int
    end: int
    flags: int
    serial: int
    position: int
    payload: int  # where its segments begin


@dataclasses.dataclass
class _Link:
    """One stream of audio."""

    codec: bytes
    pages: list[_Page]


def lay_out(view: View, start: int = 0) -> Layout | None:
    """The streams of audio in an Ogg file, None if there is none."""
    pages, skipped, cut = _find_pages(view, start)
    links, others = _find_links(view, pages)
    if not links:
        return None
    parts, changed = [], start > 0 or len(links) > 1 or others or bool(skipped or cut)
    for link in links:
        part, mended = _mend(view, link)
        parts.append(part)
        changed |= mended
    if skipped:
        damage = f"{skipped} bytes within it are no pages of Ogg, or broken ones"
        return Layout(tuple(parts), True, damage, "damaged audio")
    damage = f"it ends within a page, {cut} bytes after its begin" if cut else ""
    return Layout(tuple(parts), changed, damage)


def _find_pages(view: View, start: int) -> tuple[list[_Page], int, int]:
    """Whole pages, bytes between them that are none, and those of a cut last one."""
    pages: list[_Page] = []
    place, skipped, gap = start, 0, 0
    while place < view.size:
        page = _read_page(view, place)
        if page is not None:
            pages.append(page)
            place, skipped, gap = page.end, skipped + gap, 0
            continue
        step = _find_capture(view, place + 1) - place
        gap, place = gap + step, place + step
    if not gap or not pages:
        return pages, skipped, 0
    # What is behind the last page: the begin of one more, or something else.
    begin = pages[-1].end
    return pages, skipped, gap if view.read_at(begin, 4) == b"OggS"[:gap] else 0


def _read_page(view: View, place: int) -> _Page | None:
    head = view.read_at(place, _HEAD + 255)
    if len(head) < _HEAD or head[:5] != b"OggS\0":
        return None
    payload = _HEAD + head[26]
    size = payload + sum(head[_HEAD:payload])
    data = head[:size] if size <= len(head) else view.read_at(place, size)
    if len(data) < size or checksum(data) != data[22:26]:
        return None
    return _Page(
        start=place,
        end=place + size,
        flags=data[5],
        serial=int.from_bytes(data[14:18], "little"),
        position=int.from_bytes(data[6:14], "little", signed=True),
        payload=place + payload,
    )


def _find_capture(view: View, place: int) -> int:
    """The next place where a page may begin; the end if there is none."""
    while block := view.read_at(place, _READ):
        at = block.find(b"OggS")
        if at >= 0:
            return place + at
        if len(block) < 4 or place + len(block) >= view.size:
            break
        place += len(block) - 3
    return view.size


def checksum(page: bytes) -> bytes:
    """The four bytes of a page's CRC-32, of the page with zeros in their place.

    Ogg's CRC is zlib's with the bits of every byte the other way round, without its
    first and last complement.
    """
    mirrored = (page[:22] + bytes(4) + page[26:]).translate(_REVERSED)
    value = zlib.crc32(mirrored, 0xFFFFFFFF) ^ 0xFFFFFFFF
    return value.to_bytes(4, "little").translate(_REVERSED)[::-1]


def _find_links(view: View, pages: list[_Page]) -> tuple[list[_Link], bool]:
    """Streams of audio in their order, and whether there are other streams."""
    links: list[_Link] = []
    current: dict[int, _Link | None] = {}
    taken, others = False, False  # of the group of streams that begin together
    for number, page in enumerate(pages):
        if page.flags & _FIRST:
            if number and not pages[number - 1].flags & _FIRST:
                current, taken = {}, False
            head = view.read_at(page.payload, 8)
            codec = next((name for name in _AUDIO if head.startswith(name)), b"")
            link = _Link(codec, []) if codec and not taken else None
            current[page.serial] = link
            if link:
                links.append(link)
                taken = True
        link = current.get(page.serial)
        if link:
            link.pages.append(page)
        else:
            others = True
    return links, others


def _mend(view: View, link: _Link) -> tuple[View, bool]:
    """A stream as a file of its own, and whether any of its bytes were changed."""
    if link.codec == b"\x7fFLAC":
        # The first packet: 0x7F "FLAC", version, count of headers, then plain FLAC.
        first, *others = link.pages
        ranges = [(first.payload + 9, first.end)]
        ranges += [(page.payload, page.end) for page in others]
        return flac.mend_length(view.cut(ranges)), True
    changes: dict[int, tuple[int, int]] = {}  # of a page: flags, position
    for number, page in enumerate(link.pages[:4]):
        if link.codec == b"OpusHead" and page.position > 0:
            samples = _count_opus(view.read_at(page.start, page.end - page.start))
            if page.position < samples and not page.flags & _LAST:
                changes[number] = (page.flags, samples)
            break
    final = len(link.pages) - 1
    if not link.pages[final].flags & _LAST:
        flags, position = link.pages[final].flags, link.pages[final].position
        _, position = changes.get(final, (flags, position))
        changes[final] = (flags | _LAST, position)
    pieces: list[Piece] = []
    for number, page in enumerate(link.pages):
        if number not in changes:
            pieces.append((page.start, page.end))
            continue
        flags, position = changes[number]
        data = bytearray(view.read_at(page.start, page.end - page.start))
        data[5:14] = bytes([flags]) + position.to_bytes(8, "little", signed=True)
        data[22:26] = checksum(bytes(data))
        pieces.append(bytes(data))
    return view.cut(pieces), bool(changes)


def _count_opus(page: bytes) -> int:
    """Samples at 48 kHz of the packets that end in a page."""
    samples, begin, fresh = 0, _HEAD + page[26], True
    packet = b""
    for size in page[_HEAD : _HEAD + page[26]]:
        packet = page[begin : begin + 2] if fresh else packet
        begin, fresh = begin + size, size < 255
        if not fresh or not packet:
            continue
        count = (1, 2, 2, (packet[1] & 63) if len(packet) > 1 else 0)[packet[0] & 3]
        samples += count * _OPUS_SAMPLES[packet[0] >> 3]
    return samples
