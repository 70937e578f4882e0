"""Pronunciations of a name as phoneme ids, one byte each."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

from nim4_jax.retrieval.names import Name
from nim4_jax.text import g2p, phonemes

MOST_READINGS = 4
LONGEST = 96
"""Phonemes of the longest name that is worth looking for: eight seconds of speech."""


def pronounce(name: Name) -> tuple[bytes, ...]:
    """Readings of a name, the usual one first, at most MOST_READINGS.

    English words have those that the dictionary gives; a Chinese phrase has the one
    that fits its context.

    Returns:
        One byte a phoneme; () where nothing can be pronounced or it takes longer than
        LONGEST phonemes.
    """
    if name.pronunciation:
        return _fit([encode(name.pronunciation.split())])
    if len(name.text) > 4 * LONGEST:
        return ()
    units = phonemes.phonemize_words(name.text)
    choices = [_choices(unit, tuple(own)) for unit, own in units]
    readings = itertools.islice(itertools.product(*choices), MOST_READINGS)
    return _fit([encode([p for part in reading for p in part]) for reading in readings])


def encode(names: Sequence[str]) -> bytes:
    """Names of phonemes → ids."""
    return bytes(phonemes.PHONEME_IDS[name] for name in names)


def _fit(readings: Sequence[bytes]) -> tuple[bytes, ...]:
    return tuple(dict.fromkeys(r for r in readings if 0 < len(r) <= LONGEST))


def _choices(unit: str, own: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Readings of one word or character, its own first."""
    others = _alternatives().get(unit.lower(), ())
    return [own, *(o for o in others if o != own)] if own in others else [own]


@functools.lru_cache(maxsize=1)
def _alternatives() -> dict[str, list[tuple[str, ...]]]:
    """English words with more than one reading."""
    readings: dict[str, list[tuple[str, ...]]] = {}
    for word, reading in g2p.iterate_readings():
        known = readings.setdefault(word, [])
        if reading not in known:
            known.append(reading)
    return {word: known for word, known in readings.items() if len(known) > 1}
