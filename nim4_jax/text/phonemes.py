"""The phoneme inventory and text → phonemes, for English, Mandarin and both mixed."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from functools import lru_cache
from typing import NamedTuple

from nim4_jax.text import g2p, mandarin, numbers

BLANK = "<blank>"
INVENTORY: tuple[str, ...] = (
    BLANK,
    *g2p.ARPABET,
    *mandarin.INITIALS,
    *mandarin.TONED_FINALS,
)
"""Index = phoneme id. ARPAbet is upper case, pinyin lower case: no name is both."""
PHONEME_IDS: dict[str, int] = {name: i for i, name in enumerate(INVENTORY)}
INVENTORY_HASH: str = hashlib.sha256("\n".join(INVENTORY).encode()).hexdigest()
"""Written into checkpoints: ids of another inventory mean other sounds."""

_HAN = "\u3007\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff"
_LATIN = "A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f"
_TOKEN = re.compile(
    rf"(?P<han>[{_HAN}])"
    rf"|(?P<word>(?:[A-Za-z]\.){{2,}}|[{_LATIN}]+(?:['’][{_LATIN}]+)*)"
    rf"|(?P<number>{re.sub(r'[?]P<[a-z]+>', '?:', numbers.NUMBER.pattern)})"
    r"|(?P<symbol>[&+@])"
)
_SYMBOLS = {"&": ("and", "和"), "+": ("plus", "加"), "@": ("at", "艾特")}


class _Token(NamedTuple):
    """A piece of written text: kind han, word, number or symbol, and its place."""

    kind: str
    text: str
    start: int


def _tokenise(text: str) -> list[_Token]:
    return [
        _Token(str(match.lastgroup), match[0], match.start())
        for match in _TOKEN.finditer(text)
    ]


def _is_english(tokens: list[_Token], index: int) -> bool:
    """Whether a number or symbol is read in English.

    True in a text without Chinese; in a mixed text only between two English words or
    behind at least two of them.
    """
    if all(token.kind != "han" for token in tokens):
        return True
    kinds = [token.kind for token in tokens]
    before = kinds[max(index - 2, 0) : index]
    after = kinds[index + 1 : index + 2]
    if after == ["han"] and before[-1:] != ["word"]:
        return False
    return before == ["word"] * 2 or (before[-1:] == ["word"] and after == ["word"])


def _speak(
    tokens: list[_Token], index: int, text: str, shouted: bool
) -> tuple[str, tuple[str, ...]]:
    """One token as (Chinese characters, ()) or ("", English phonemes)."""
    token = tokens[index]
    if token.kind == "han":
        return token.text, ()
    if token.kind == "word":
        article = (
            token.text in ("A", "a")
            and tokens[index + 1 : index + 2]
            and tokens[index + 1].kind == "word"
        )
        if article:
            return "", ("AH",)
        return "", g2p.pronounce(token.text, shouted)
    english = _is_english(tokens, index)
    if token.kind == "symbol":
        words = [_SYMBOLS[token.text][0]]
        characters = _SYMBOLS[token.text][1]
    else:
        match = numbers.NUMBER.match(text, token.start)
        assert match is not None
        words = numbers.read_english(match) if english else []
        characters = numbers.read_chinese(match, text[match.end() :])
    if not english:
        return characters, ()
    return "", tuple(p for word in words for p in g2p.pronounce(word))


@lru_cache(maxsize=65536)
def _pronounce_units(text: str) -> tuple[tuple[str, tuple[str, ...]], ...]:
    tokens = _tokenise(text)
    words = [token.text for token in tokens if token.kind == "word"]
    shouted = len(words) > 1 and all(word.isupper() for word in words)
    spoken = [_speak(tokens, i, text, shouted) for i in range(len(tokens))]
    units: list[tuple[str, tuple[str, ...]]] = []
    index = 0
    while index < len(tokens):
        end = index
        while end < len(tokens) and spoken[end][0]:
            behind = tokens[end - 1].start + len(tokens[end - 1].text)
            if end > index and text[behind : tokens[end].start].strip():
                break  # punctuation ends the phrase that pypinyin sees
            end += 1
        if end == index:
            units.append((tokens[index].text, spoken[index][1]))
            index += 1
            continue
        run = mandarin.pronounce_characters(
            "".join(characters for characters, _ in spoken[index:end])
        )
        offset = 0
        for token, (characters, _) in zip(tokens[index:end], spoken[index:end]):
            readings = run[offset : offset + len(characters)]
            units.append((token.text, tuple(p for reading in readings for p in reading)))
            offset += len(characters)
        index = end
    return tuple(unit for unit in units if unit[1])


def phonemize_words(text: str) -> list[tuple[str, list[str]]]:
    """Units of a text with their phonemes, in order.

    Args:
        text: English, Mandarin or both; anything else is ignored.

    Returns:
        (unit, phonemes) pairs: a unit is an English word, a Chinese character or a
        number as written (after Unicode NFKC); units without sound are left out. The
        phonemes one after the other are `phonemize(text)`.
    """
    return [
        (unit, list(phonemes))
        for unit, phonemes in _pronounce_units(unicodedata.normalize("NFKC", text))
    ]


def phonemize(text: str) -> list[str]:
    """Phonemes of a text, names in INVENTORY without the blank; [] if nothing sounds.

    Digits are spoken in the language around them; unknown symbols are ignored.
    """
    units = _pronounce_units(unicodedata.normalize("NFKC", text))
    return [phoneme for _, phonemes in units for phoneme in phonemes]


def encode_phonemes(text: str) -> list[int]:
    """Phoneme ids of a text, CTC targets: 1 … len(INVENTORY) − 1, never the blank."""
    return [PHONEME_IDS[phoneme] for phoneme in phonemize(text)]
