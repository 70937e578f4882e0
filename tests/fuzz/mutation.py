"""What files suffer: flipped bits, lost ends, joins, and sizes and rates that lie."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

SIZES = (
    0, 1, 2, 7, 8, 16, 255, 256, 8000, 16_000, 44_100, 65_535, 655_350, 0x7FFFF000,
    0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 40, 1 << 62, (1 << 63) - 1, (1 << 64) - 1,
)  # fmt: skip
WORDS = (
    b"0", b"-1", b"1e999", b"NaN", b"9" * 400, b"null", b"true", b"{}", b"[]", b"[" * 9,
    b'"', b"\\ud83d", b"\\u0000", b"\xff", b"\x00", b"\xef\xbb\xbf", b"\r", b"\n",
    b"\xe2\x80\xa8", b",", b":", b"}", b"]", b"/", b"..", b"1e30", b"0.1", b"\t",
)  # fmt: skip
_HEAD = 160  # bytes at the front that are hit as often as all others together
_GROWTH = 1 << 16  # bytes that a mutation may add to the longest seed


def mutate(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """A file after one to six accidents.

    Args:
        rng: decides all.
        data: of the file.
        others: files that may be joined to it.
    """
    limit = max(map(len, (data, *others))) + _GROWTH
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        data = rng.choice(_ACCIDENTS)(rng, data, others)[:limit]
    return data


def _choose_place(rng: random.Random, data: bytes) -> int:
    end = len(data) if rng.random() < 0.5 else min(len(data), _HEAD)
    return rng.randrange(end + 1)


def _flip(rng: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    place = _choose_place(rng, data)
    if place == len(data):
        return data
    hit = data[place] ^ rng.choice((1 << rng.randrange(8), rng.randrange(1, 256)))
    return data[:place] + bytes((hit,)) + data[place + 1 :]


def _cut(rng: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    place = _choose_place(rng, data)
    return data[:place] if rng.random() < 0.8 else data[place:]


def _drop(rng: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    place = _choose_place(rng, data)
    return data[:place] + data[place + rng.choice((1, 2, 4, rng.randrange(900))) :]


def _repeat(rng: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    place = _choose_place(rng, data)
    part = data[place : place + rng.choice((1, 4, 8, rng.randrange(900)))]
    return data[:place] + part * rng.choice((2, 2, 3, 50)) + data[place + len(part) :]


def _zero(rng: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    place = _choose_place(rng, data)
    size = min(rng.randrange(900), len(data) - place)
    fill = bytes(size) if rng.random() < 0.5 else rng.randbytes(size)
    return data[:place] + fill + data[place + size :]


def _forge(rng: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    """A number of 2, 4 or 8 bytes in either order, in the place of another."""
    width, place = rng.choice((2, 4, 4, 8)), _choose_place(rng, data)
    number = rng.choice((*SIZES, len(data), len(data) - 1)) % (1 << 8 * width)
    raw = number.to_bytes(width, rng.choice(("little", "big")))
    return data[:place] + raw + data[place + width :]


def _insert_word(rng: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    place = _choose_place(rng, data)
    return data[:place] + rng.choice(WORDS) + data[place + rng.choice((0, 1, 4)) :]


def _join(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Another file behind this one, or its end in the place of this one's."""
    other = rng.choice((*others, data))
    if rng.random() < 0.5:
        return data + other
    return data[: _choose_place(rng, data)] + other[rng.randrange(len(other) + 1) :]


_ACCIDENTS: tuple[Callable[[random.Random, bytes, Sequence[bytes]], bytes], ...] = (
    _flip,
    _flip,
    _cut,
    _drop,
    _repeat,
    _zero,
    _forge,
    _forge,
    _insert_word,
    _join,
)
