"""Unification of characters for scoring: apostrophes, zero-width, fractions, minus."""

from __future__ import annotations

import re
import unicodedata

from nim4_jax.text import numbers

_APOSTROPHES = dict.fromkeys(map(ord, "’‘‛ʼʻʽˈ′`´ꞌ＇"), "'")
# Letters with a stroke or in one piece, which Unicode does not decompose.
_LETTERS = str.maketrans(
    {"ø": "o", "ł": "l", "đ": "d", "ð": "d", "ħ": "h", "ŧ": "t", "ı": "i"}
    | {"æ": "ae", "œ": "oe", "ß": "ss", "þ": "th"}
)
_VULGAR = "¼-¾⅐-⅞↉"  # ½ and its like, which NFKC would glue to a digit before
_GROUPED = re.compile("(?<=[0-9])[\u00a0\u2009\u202f](?=[0-9]{3}(?![0-9]))")
_MINUS = re.compile("(?<![^\\s(\u3400-\u9fff])[-−](?=[$€£¥]?\\.?[0-9])")
_FRACTION = re.compile(
    r"(?<![0-9./⁄])(?:([0-9]{1,4}) )?([0-9]{1,3})[/⁄]([0-9]{1,3})(?![0-9/⁄]|\.[0-9])"
)
_CLOCK = re.compile(r"(?<![0-9:])([0-9]{1,2}):([0-5][0-9])(?![0-9])")
_RANGE = re.compile(r"(?<![0-9:.–-])([0-9]+)[-–:]([0-9]+)(?![0-9:–-]|\.[0-9])")
_PHONE = re.compile(r"(?<![0-9-])\+?[0-9]{2,4}(?:-[0-9]{3,4}){1,3}(?![0-9-])")
_POWERS = {"²": (" squared ", "平方"), "³": (" cubed ", "立方")}
_POWER = re.compile("(?<=[0-9])[²³]")
_LARGEST_NAMED = 10  # 1/3 is one third, but 9/11 is a date and 24/7 neither


def strip_invisible(text: str) -> str:
    """Without what takes no room: zero-width spaces, soft hyphens, byte order marks."""
    return "".join(c for c in text if unicodedata.category(c) != "Cf")


def unify_apostrophes(text: str) -> str:
    """With ' for all that looks like one: ’ of typesetters, U+02BC of keyboards, …"""
    return text.translate(_APOSTROPHES)


def replace_letters(text: str) -> str:
    """Lower case Latin letters that have no accent to be stripped: ø → o, æ → ae."""
    return text.translate(_LETTERS)


def part_numbers(text: str, chinese: bool) -> str:
    """A text for NFKC: what would be glued to the digit before it stands apart.

    2½ → 2 ½, 10² → 10 squared; digits grouped by spaces that do not break are one
    number.
    """
    text = _GROUPED.sub("", text)
    text = _POWER.sub(lambda match: _POWERS[match[0]][chinese], text)
    return re.sub(f"(?<=[0-9])(?=[{_VULGAR}])", " ", text)


def spell(text: str, chinese: bool) -> str:
    """Fractions, minus, and in English clocks and phone numbers as they are said.

    | written  | English        | Chinese |
    | 1/3, ⅓   | 1 third        | 3分之1  |
    | 2 1/2    | 2 and 1 half   | 2又2分之1 |
    | -5, −5   | minus 5        | 负5     |
    | 8:05     | 805, as joined words give | as it is |
    | 555-1234 | 5551234        | 5551234 |
    | 3-1, 3:1 | 3 to 1         | as it is |

    Args:
        text: in NFKC.
        chinese: whether by Chinese rules.
    """
    text = _MINUS.sub("负" if chinese else "minus ", text)
    text = _PHONE.sub(lambda match: re.sub("[^0-9]", "", match[0]), text)
    if chinese:
        return _FRACTION.sub(_spell_chinese, text)
    text = _CLOCK.sub(r"\1\2", _FRACTION.sub(_spell_english, text))
    return _RANGE.sub(r"\1 to \2", text)


def _spell_chinese(match: re.Match[str]) -> str:
    whole = f"{match[1]}又" if match[1] else ""
    return f"{whole}{match[3]}分之{match[2]}"


def _spell_english(match: re.Match[str]) -> str:
    over, under = int(match[2]), int(match[3])
    whole = f"{match[1]} and " if match[1] else ""
    if 2 <= under <= _LARGEST_NAMED and over < max(under, 10):
        word = {2: "half", 4: "quarter"}.get(under)
        word = word or numbers.name_ordinal(under)[-1]
        plural = {"half": "halves"}.get(word, f"{word}s")
        return f"{whole}{over} {word if over == 1 else plural}"
    between = " over " if over < 10 and under < 10 else " "
    return f"{match[1] or ''} {over}{between}{under}"
