"""Containers that state their own size at their begin: joined ones taken apart.

              size                                    of what
AIFF          FORM, 4 bytes, big endian               what follows it
AU            data's offset and size, big endian      the data
W64           8 bytes, little endian, behind a GUID   the whole
"""

from __future__ import annotations

from nim4_jax.data.audio.containers.layout import Layout
from nim4_jax.data.audio.containers.view import View

_W64 = bytes.fromhex("726966662e91cf11a5d628db04c10000")
_STRAY = 4096  # bytes behind the end that may be anything


def is_sized(head: bytes) -> bool:
    """Whether 16 bytes begin one of these containers."""
    aiff = head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC")
    return aiff or head[:4] == b".snd" or head == _W64


def lay_out(view: View, start: int = 0) -> Layout:
    """The parts of such a file; what is behind its end and is none of them is told."""
    parts, place, damage, reason = [], start, "", "damaged audio"
    while is_sized(view.read_at(place, 16)):
        end = _find_end(view, place)
        if end > view.size:
            damage = f"{end - view.size} bytes of it are missing at the end"
            reason, end = "truncated", view.size
        parts.append(view.cut([(place, end)]))
        place = end
    left = view.size - place
    if left > _STRAY and view.read_at(place, 1 << 20).strip(b"\0"):
        damage = f"{left} bytes behind the end that its header states were not read"
    return Layout(tuple(parts), len(parts) > 1 or start > 0, damage, reason)


def _find_end(view: View, place: int) -> int:
    """Where the container at a place ends; the file's end if its size says nothing.

    It may lie behind the end of a file that was cut.
    """
    head = view.read_at(place, 32)
    if head[:4] == b"FORM":
        stated = 8 + int.from_bytes(head[4:8], "big")
        smallest, unknown = 12, stated >= 0x7FFF0000
    elif head[:4] == b".snd":
        offset, size = (int.from_bytes(head[n : n + 4], "big") for n in (4, 8))
        stated, smallest = offset + size, 24
        unknown = size in (0, 0xFFFFFFFF)
    else:
        stated, smallest = int.from_bytes(head[16:24], "little"), 40
        unknown = stated >= 1 << 62
    end = place + stated
    if unknown or stated <= smallest:
        return view.size
    # An odd size of AIFF has a byte behind it, which some writers leave out.
    even = stated % 2 and head[:4] == b"FORM"
    return end + 1 if even and view.read_at(end, 1) == b"\0" else end
