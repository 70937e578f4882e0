"""English words → ARPAbet: acronyms by letters, the dictionary, then our own model."""

from __future__ import annotations

import lzma
import re
import string
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from importlib import resources

from nim4_jax.text import letter_to_sound

_ARPABET_NAMES = (
    "AA AE AH AO AW AY B CH D DH EH ER EY F G HH IH IY JH K L M N NG OW OY P R S SH "
    "T TH UH UW V W Y Z ZH"
)
ARPABET = tuple(_ARPABET_NAMES.split())
"""The 39 phonemes of CMUdict, without stress."""
_LETTER_NAMES = (
    "EY,B IY,S IY,D IY,IY,EH F,JH IY,EY CH,AY,JH EY,K EY,EH L,EH M,EH N,OW,P IY,"
    "K Y UW,AA R,EH S,T IY,Y UW,V IY,D AH B AH L Y UW,EH K S,W AY,Z IY"
)
LETTERS = {
    letter: tuple(name.split())
    for letter, name in zip(string.ascii_lowercase, _LETTER_NAMES.split(","))
}
"""How the letters are called."""

# Upper-case acronyms that are also words of the dictionary, or read like one.
_SPELLED = frozenset(
    [
        "AI",
        "AM",
        "EU",
        "GPS",
        "ID",
        "IP",
        "IT",
        "PC",
        "PM",
        "SUV",
        "TV",
        "UK",
        "UN",
        "US",
    ]
)
_EXPANDED = {"mr": "mister", "mrs": "missus", "dr": "doctor", "vs": "versus"}
_LONGEST_ACRONYM = 4
_LONGEST_WORD = 64
_VOICELESS = frozenset(["P", "T", "K", "F", "TH"])
_SIBILANTS = frozenset(["S", "Z", "SH", "ZH", "CH", "JH"])
_RESOURCES = resources.files("nim4_jax.text") / "resources"
_STRESS = re.compile(r"\d")
_CASE_BORDER = re.compile(r"(?<=[a-z])(?=[A-Z])")


def _read_lines() -> list[str]:
    content = (_RESOURCES / "cmudict.dict.xz").read_bytes()
    return lzma.decompress(content).decode("utf8").splitlines()


@lru_cache(maxsize=1)
def load_dictionary() -> dict[str, str]:
    """The packaged CMUdict: lower-case word → phonemes with stress, first reading.

    Words of our own list (newer names, the reading that commands mean) come first.

    Source: Carnegie Mellon Pronouncing Dictionary, licence beside the file.
    """
    entries: dict[str, str] = {}
    for line in _read_lines():
        word, _, phonemes = line.partition(" ")
        if "(" not in word:
            entries[word] = phonemes.partition(" #")[0]
    own = (_RESOURCES / "words.txt").read_text(encoding="utf8").splitlines()
    for line in own:
        if not line.startswith("#"):
            word, _, phonemes = line.partition(" ")
            entries[word] = phonemes
    return entries


def iterate_readings() -> Iterator[tuple[str, tuple[str, ...]]]:
    """Every (word, phonemes without stress) of the dictionary, all readings."""
    for line in _read_lines():
        word, _, phonemes = line.partition(" ")
        plain = _STRESS.sub("", phonemes.partition(" #")[0])
        yield word.partition("(")[0], tuple(plain.split())


def look_up(word: str) -> tuple[str, ...]:
    """Phonemes of a lower-case word as CMUdict has it, without stress; () if absent."""
    entry = load_dictionary().get(word)
    return tuple(_STRESS.sub("", entry).split()) if entry else ()


def spell(word: str) -> tuple[str, ...]:
    """The names of a word's letters; characters without a name are silent."""
    return tuple(p for letter in word.lower() for p in LETTERS.get(letter, ()))


def _add_s(stem: tuple[str, ...]) -> tuple[str, ...]:
    """Possessive or plural s after a stem: IH Z, S or Z by the last phoneme."""
    if not stem:
        return ()
    if stem[-1] in _SIBILANTS:
        return (*stem, "IH", "Z")
    return (*stem, "S" if stem[-1] in _VOICELESS else "Z")


def _is_acronym(word: str) -> bool:
    if not word.isupper():
        return False
    if word in _SPELLED:
        return True
    return len(word) <= _LONGEST_ACRONYM and not look_up(word.lower())


@lru_cache(maxsize=262144)
def pronounce(word: str, shouted: bool = False) -> tuple[str, ...]:
    """Phonemes of one written English word.

    Rule: the letters of an acronym ("BMW", "U.S."); else the dictionary; else the
    stem and its 's; else the parts of a CamelCase word; else letter-to-sound.

    Args:
        word: letters, inner apostrophes and dots; accents are dropped.
        shouted: the whole text is upper case, so upper case marks no acronym.

    Returns:
        Names in ARPABET; () when nothing is pronounceable.
    """
    plain = unicodedata.normalize("NFKD", word.replace("’", "'"))
    plain = "".join(c for c in plain if c.isascii() and (c.isalpha() or c in "'."))
    if "." in plain or len(plain) == 1:
        return spell(plain)
    lower = plain.lower()
    lower = _EXPANDED.get(lower, lower)
    stem, apostrophe, ending = plain.partition("'")
    if not shouted and _is_acronym(stem) and ending.lower() in ("", "s"):
        return _add_s(spell(stem)) if ending else spell(stem)
    known = look_up(lower)
    if known:
        return known
    if apostrophe:
        base = pronounce(stem, shouted)
        if ending.lower() in ("", "s"):
            return _add_s(base) if ending or not base else base
        return base + pronounce(ending, shouted)
    parts = _CASE_BORDER.split(plain)
    if len(parts) > 1:
        return tuple(p for part in parts for p in pronounce(part))
    return _guess(lower)


def _guess(word: str) -> tuple[str, ...]:
    """A word that the dictionary lacks: letters if it has no vowel, else the model."""
    if not any(c in "aeiouy" for c in word):
        return spell(word)
    return letter_to_sound.load_model().predict(word[:_LONGEST_WORD])
