"""Augmentation of texts with names: replaced, or put in the place of pronouns.

Whoever knows the language guesses most words of a sentence, but not a name: an LLM must
hear it, or find it in its prompt. So that it learns this in all kinds of sentences,
"She smiled." becomes "Marta Quill smiled.", and 他说 becomes 王晓明说.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

DrawName = Callable[[np.random.Generator, str], str]
"""Draws a name of a language, "en" or "zh"."""

_HAN = re.compile("[\u4e00-\u9fff]")
_ENGLISH_NAME = re.compile(
    r"(?:(?<=[a-z,;] )|(?<=[\u4e00-\u9fff])|(?<=[\u4e00-\u9fff] ))"
    r"[A-Z][a-z]{2,}(?: [A-Z][a-z]{2,})*"
)
_PRONOUN = re.compile(
    r"\b(?:[Hh]e|[Ss]he)\b(?!['’-])"
    r"|(?<![其吉])[他她](?![们人日乡国妈])"
)
_MOST = 2  # names of a text
_FOREIGN = 0.15  # share of Chinese places that get an English name


def find_names(text: str) -> tuple[str, ...]:
    """English names that stand in a cased text, each once; no sentence begins there."""
    return tuple(dict.fromkeys(_ENGLISH_NAME.findall(text)))


def insert_names(
    text: str, rng: np.random.Generator, draw_name: DrawName
) -> tuple[str, tuple[str, ...]]:
    """The text with one or two drawn names, and these; it may have no place for any.

    Args:
        text: cased.
        rng: advanced by the draws.
        draw_name: gives the names.
    """
    found = [*_ENGLISH_NAME.finditer(text), *_PRONOUN.finditer(text)]
    if not found:
        return text, ()
    count = int(rng.integers(1, min(_MOST, len(found)) + 1))
    chosen = {int(place) for place in rng.permutation(len(found))[:count]}
    names: list[str] = []
    for place in sorted(chosen, key=lambda place: found[place].start(), reverse=True):
        start, end = found[place].span()
        chinese = _HAN.search(text[max(start - 1, 0) : end + 1])
        foreign = bool(chinese) and rng.random() < _FOREIGN
        name = draw_name(rng, "zh" if chinese and not foreign else "en")
        text = text[:start] + name + text[end:]
        names.append(name)
    return text, tuple(reversed(names))
