"""Number words of English → digits, so that "twenty five" and "25" are one form."""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal

from nim4_jax.text import numbers

_SIMPLE = (*range(20), *range(20, 100, 10))
_SMALL = {" ".join(numbers.name_english(n)): n for n in _SIMPLE}
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_ORDINALS = {" ".join(numbers.name_ordinal(n)): n for n in _SIMPLE[1:]}
_NUMERAL = re.compile(r"[0-9]+(?:\.[0-9]+)?")
_LONGEST = 18


def _word(words: Sequence[str], index: int) -> str:
    return words[index] if index < len(words) else ""


def _read_group(words: Sequence[str], index: int) -> tuple[Decimal | None, int]:
    """A numeral or a number of words below 1000, and the index behind it."""
    word = _word(words, index)
    if _NUMERAL.fullmatch(word) and len(word) < _LONGEST:
        value, index = Decimal(word), index + 1
    elif word in _SMALL:
        value, index = Decimal(_SMALL[word]), index + 1
        ones = _SMALL.get(_word(words, index), 0)
        if value >= 20 and 0 < ones < 10:
            value, index = value + ones, index + 1
    else:
        return None, index
    if _word(words, index) == "hundred" and value == int(value) and value < 10**9:
        value, index = value * 100, index + 1
        start = index + (_word(words, index) == "and")
        rest, after = _read_group(words, start)
        if rest is not None and 0 < rest < 100 and rest == int(rest):
            value, index = value + rest, after
    return value, index


def _read_cardinal(words: Sequence[str], index: int) -> tuple[str, int]:
    """The number that starts at `index` as a numeral; ("", index) if none does."""
    total, ceiling, place = Decimal(0), Decimal(10) ** _LONGEST, index
    while True:
        start = place + (place > index and _word(words, place) == "and")
        group, after = _read_group(words, start)
        inner = place > index
        if group is None or (inner and (group != int(group) or group == 0)):
            break
        scale = _SCALES.get(_word(words, after))
        if scale and scale < ceiling and group * scale < ceiling:
            total, ceiling, place = total + group * scale, Decimal(scale), after + 1
            continue
        if group >= ceiling:
            break
        total, place = total + group, after
        break
    if place == index:
        numeral = _word(words, index)
        return (numeral, index + 1) if _NUMERAL.fullmatch(numeral) else ("", index)
    if place == index + 1 and _NUMERAL.fullmatch(words[index]):
        return words[index], place  # as written, with its zeros
    text = f"{total:f}"
    return (text.rstrip("0").rstrip(".") if "." in text else text), place


def _add_ordinal(words: Sequence[str], index: int, value: int) -> tuple[str, int]:
    """An ordinal at `index` that completes `value`: twenty + first = "21st"."""
    start = index + (value >= 100 and _word(words, index) == "and")
    own = _ORDINALS.get(_word(words, start), 0)
    fits = (value >= 20 and value % 10 == 0 and 0 < own < 10) or (
        value >= 100 and value % 100 == 0 and own > 0
    )
    if not own or (value and not fits):
        return "", index
    total = value + own
    ending = {1: "st", 2: "nd", 3: "rd"}.get(total % 10, "th")
    return f"{total}{'th' if total % 100 in (11, 12, 13) else ending}", start + 1


def _read_decimals(words: Sequence[str], index: int) -> tuple[str, int]:
    """The digits behind "point": one four → "14"."""
    digits = ""
    while True:
        word = _word(words, index)
        if word.isascii() and word.isdigit():
            digits += word
        elif word in _SMALL and _SMALL[word] < 10:
            digits += str(_SMALL[word])
        else:
            return digits, index
        index += 1


def _is_spoken(word: str) -> bool:
    """Whether a number that begins with the word may continue another one.

    100 5 are two numbers; five five, and 5 5, are said digit by digit.
    """
    return len(word) == 1 or not _NUMERAL.fullmatch(word)


def write_digits(words: Sequence[str]) -> list[str]:
    """Words with every spoken number written in digits.

    Rule: one hundred and five → 105, two point five million → 2500000, three point one
    four → 3.14, twenty first → 21st; spoken numbers side by side are one (nineteen
    eighty four → 1984, five five one → 551, eight oh five → 805), and so are digits (5
    5 1 → 551); numerals of several digits stay apart (100 5).

    Args:
        words: lower case, without punctuation.
    """
    written: list[str] = []
    joins = False  # whether the next number continues the last one
    index = 0
    while index < len(words):
        if joins and words[index] in ("oh", "o"):
            following, _ = _read_cardinal(words, index + 1)
            first = _word(words, index + 1)
            continues = following.isdigit() and _is_spoken(first)
            if continues and not first.startswith("0"):
                written[-1] += "0"
                index += 1
                continue
        value, after = _read_cardinal(words, index)
        whole = int(value) if value.isdigit() and len(value) < _LONGEST else 0
        ordinal, behind = _add_ordinal(words, after, whole)
        if ordinal:
            written.append(ordinal)
            index, joins = behind, False
        elif value:
            if _word(words, after) == "point" and value.isdigit():
                decimals, behind = _read_decimals(words, after + 1)
                if decimals:
                    value, after = f"{value}.{decimals}", behind
            spoken = value.isdigit() and _is_spoken(words[index])
            if joins and spoken:
                written[-1] += value
            else:
                written.append(value)
            index, joins = after, spoken
        else:
            written.append(words[index])
            index, joins = index + 1, False
    return written
