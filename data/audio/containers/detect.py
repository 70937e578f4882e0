"""Detection of a container by its first bytes, and its layout."""

from __future__ import annotations

from nim4_jax.data.audio.containers import flac, mpeg, ogg, riff, sized
from nim4_jax.data.audio.containers.layout import Layout
from nim4_jax.data.audio.containers.view import View

HEAD = 12
"""Bytes that tell a container; of MPEG audio's frames, which have no name, `FRAMES`."""
FRAMES = 3 * 4096
_MPEG_SUFFIXES = (".mp3", ".mp2", ".mpga")
_MOST_TAGS = 16

_MAGIC = (
    (0, b"RIFF", "WAV"),
    (0, b"RIFX", "WAV"),
    (0, b"RF64", "RF64"),
    (0, b"BW64", "RF64"),
    (0, b"riff\x2e\x91\xcf\x11", "W64"),
    (0, b"fLaC", "FLAC"),
    (0, b"OggS", "Ogg"),
    (0, b"ID3", "mp3"),
    (0, b".snd", "AU"),
    (0, b"caff\0", "CAF"),
    (4, b"ftyp", "MP4 (m4a, mp4, mov)"),
    (0, b"\x1a\x45\xdf\xa3", "WebM/Matroska"),
    (0, b"#!AMR", "AMR"),
    (0, b"#!SILK", "SILK"),
    (0, b"\x02#!SILK", "SILK"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "WMA/ASF"),
    (0, b"FLV\x01", "FLV"),
    (0, b"MAC ", "Monkey's Audio"),
    (0, b"wvpk", "WavPack"),
    (0, b"\0\0\x01\xba", "MPEG video"),
    (0, b"NIST_1A", "NIST Sphere"),
)


def name_container(head: bytes) -> str:
    """The container that HEAD bytes begin, "" if they begin none that is known."""
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return "AIFF"
    if head[:4] in (b"RIFF", b"RIFX") and head[8:12] != b"WAVE":
        return "AVI" if head[8:12] == b"AVI " else ""
    for place, magic, name in _MAGIC:
        if head[place : place + len(magic)] == magic:
            return name
    return ""


def may_be_frames(head: bytes) -> bool:
    """Whether frames of MPEG audio or AAC may begin here: `FRAMES` bytes tell."""
    return len(head) >= 2 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0


def name_frames(head: bytes) -> str:
    """Whether `FRAMES` bytes are frames of "mp3" or "AAC" (ADTS), "" for neither."""
    if mpeg.is_mpeg(head):
        return "mp3"
    place, found = 0, 0
    while place + 7 <= len(head) and found < 4:
        if head[place] != 0xFF or head[place + 1] & 0xF6 != 0xF0:
            return ""
        size = (head[place + 3] & 3) << 11 | head[place + 4] << 3 | head[place + 5] >> 5
        place, found = place + max(size, 7), found + 1
    return "AAC" if found >= 3 else ""


def lay_out(view: View, suffix: str = "") -> Layout:
    """The streams in a file.

    Args:
        view: of the whole file.
        suffix: of its name, in lower case; "" if it has none.

    Returns:
        Its layout; one part, unchanged, where the container is not known here.
    """
    start = _skip_tags(view)
    head = view.read_at(start, 16)
    made = None
    if riff.is_wave(head[:12]):
        made = riff.lay_out(view, start)
    elif head[:4] == b"fLaC":
        made = flac.lay_out(view, start)
    elif head[:4] == b"OggS":
        made = ogg.lay_out(view, start)
    elif sized.is_sized(head):
        made = sized.lay_out(view, start)
    elif suffix in _MPEG_SUFFIXES or mpeg.is_mpeg(view.read_at(start, FRAMES)):
        # From the first byte: that a tag is there changes nothing.
        made = mpeg.lay_out(view)
    elif start:
        made = mpeg.lay_out(view)
    return made or Layout((view,))


def _skip_tags(view: View) -> int:
    """The place behind ID3 tags at the begin, which all kinds of files are given."""
    place = 0
    for _ in range(_MOST_TAGS):
        head = view.read_at(place, 32)
        if head[:3] != b"ID3" or not (size := mpeg.measure_tag(head)):
            break
        place += size
    return min(place, view.size)
