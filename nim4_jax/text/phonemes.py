"""The phoneme inventory and text → phonemes, for English, Mandarin and both mixed."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from functools import lru_cache

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
    rf"|(?P<number>{numbers.NUMBER})"
    r"|(?P<symbol>[&+@])"
)
_SYMBOLS = {"&": ("and", "和"), "+": ("plus", "加"), "@": ("at", "艾特")}

Phonemes = tuple[str, ...]


def _kinds(tokens: list[re.Match[str]], start: int, end: int) -> list[str | None]:
    return [token.lastgroup for token in tokens[max(start, 0) : end]]


def _is_english(tokens: list[re.Match[str]], index: int) -> bool:
    """Whether a number or symbol is read in English.

    | text around it                    | read in |
    | no Chinese character anywhere     | English |
    | two English words before it       | English |
    | an English word on either side    | English |
    | anything else                     | Chinese |
    """
    if all(token.lastgroup != "han" for token in tokens):
        return True
    before = _kinds(tokens, index - 2, index)
    after = _kinds(tokens, index + 1, index + 2)
    return before == ["word"] * 2 or (before[-1:] == ["word"] and after == ["word"])


def _speak(
    tokens: list[re.Match[str]], index: int, shouted: bool
) -> tuple[str, Phonemes]:
    """One token as (Chinese characters, ()) or ("", English phonemes)."""
    token = tokens[index]
    if token.lastgroup == "han":
        return token[0], ()
    if token.lastgroup == "word":
        if token[0] in ("A", "a") and _kinds(tokens, index + 1, index + 2) == ["word"]:
            return "", ("AH",)  # the article, not the letter
        return "", g2p.pronounce(token[0], shouted)
    english = _is_english(tokens, index)
    if token.lastgroup == "symbol":
        word, character = _SYMBOLS[token[0]]
        words, characters = [word], character
    elif english:
        words, characters = numbers.read_english(token), ""
    else:
        words, characters = [], numbers.read_chinese(token, token.string[token.end() :])
    if not english:
        return characters, ()
    return "", tuple(p for word in words for p in g2p.pronounce(word))


def _find_phrase_end(
    tokens: list[re.Match[str]], spoken: list[tuple[str, Phonemes]], index: int
) -> int:
    """Where the Chinese phrase from `index` ends: at punctuation or English."""
    end = index
    while end < len(tokens) and spoken[end][0]:
        if end > index:
            gap = tokens[end].string[tokens[end - 1].end() : tokens[end].start()]
            if gap.strip():
                break
        end += 1
    return end


@lru_cache(maxsize=65536)
def _pronounce_units(text: str) -> tuple[tuple[str, Phonemes], ...]:
    tokens = list(_TOKEN.finditer(text))
    words = [token[0] for token in tokens if token.lastgroup == "word"]
    shouted = len(words) > 1 and all(word.isupper() for word in words)
    spoken = [_speak(tokens, i, shouted) for i in range(len(tokens))]
    units: list[tuple[str, Phonemes]] = []
    index = 0
    while index < len(tokens):
        end = _find_phrase_end(tokens, spoken, index)
        if end == index:
            units.append((tokens[index][0], spoken[index][1]))
            index += 1
            continue
        phrase = "".join(characters for characters, _ in spoken[index:end])
        readings = iter(mandarin.pronounce_characters(phrase))
        for token, (characters, _) in zip(tokens[index:end], spoken[index:end]):
            own = tuple(p for _ in characters for p in next(readings))
            units.append((token[0], own))
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
