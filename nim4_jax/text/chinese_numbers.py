"""Chinese numerals → digits, so that 二十五 and 25 are one form."""

from __future__ import annotations

import re

_VALUES = {c: str(i) for i, c in enumerate("零一二三四五六七八九")} | {
    "〇": "0",
    "两": "2",
    "幺": "1",
}
_UNITS = {"十": 10, "百": 100, "千": 1000}
_D = "[一二两三四五六七八九1-9]"
_SECTION = f"(?:{_D}千)?(?:零?{_D}百)?(?:零?{_D}?十)?(?:零?{_D}(?![{{D}}]))?"
_SECTION = _SECTION.replace("{D}", "零〇一二两三四五六七八九幺0-9")
_CARDINAL = re.compile(f"(?:({_SECTION})亿)?(?:零?({_SECTION})万)?零?({_SECTION})")
_ARABIC = re.compile(r"([0-9]{2,15}|[0-9]{1,15}\.[0-9]{1,6})(十|百|千|万|亿)")
_POWERS = {"十": 1, "百": 2, "千": 3, "万": 4, "亿": 8}
_DIGITS = re.compile("[零〇一二两三四五六七八九幺]")
_PERCENT = re.compile(r"百分之([0-9]+(?:\.[0-9]+)?)")
_POINT = re.compile(r"(?<![0-9.])([0-9]+)点([0-9]+)(?![0-9.])")


def _value_section(section: str) -> int:
    """A section below 10000: 三百零五 → 305, and as spoken 三百五 → 350."""
    total, digit, unit = 0, 0, 0
    spoken_zero = False
    for character in section:
        if character in _UNITS:
            unit = _UNITS[character]
            total += (digit or 1) * unit
            digit, spoken_zero = 0, False
        elif character == "零":
            spoken_zero = True
        else:
            digit = int(_VALUES.get(character, character))
    if digit and unit >= 100 and not spoken_zero:
        return total + digit * unit // 10
    return total + digit


def _write_cardinal(match: re.Match[str]) -> str:
    text = match[0]
    if not any(c in "十百千万亿" for c in text):
        return text
    high, middle, low = match[1], match[2], match[3]
    if high == "" or middle == "":
        return text  # 亿 or 万 without a number in front: a word, not a number
    value = _value_section(high or "") * 10**8 + _value_section(middle or "") * 10**4
    below = _value_section(low)
    bare = len(low) == 1 and not text.endswith("零" + low)
    if bare and (middle or high):  # 三万五 = 35000
        below *= 10**3 if middle else 10**7
    return str(value + below)


def _write_arabic(match: re.Match[str]) -> str:
    """25万 → 250000, 3.5亿 → 350000000."""
    whole, _, decimals = match[1].partition(".")
    power = _POWERS[match[2]]
    shifted = whole + decimals[:power].ljust(power, "0")
    rest = decimals[power:].rstrip("0")
    return (shifted.lstrip("0") or "0") + (f".{rest}" if rest else "")


def write_digits(text: str) -> str:
    """Text with every Chinese numeral in digits.

    Rule: cardinals by their units (一百零五 → 105, 三万五 → 35000), other numerals one
    by one (二零二四 → 2024), 百分之五 → 5%, 三点一四 → 3.14. A lone numeral inside a
    word becomes a digit too (一起 → 1起), on both sides of a comparison.
    """
    text = _ARABIC.sub(_write_arabic, text)
    text = _CARDINAL.sub(_write_cardinal, text)
    text = _DIGITS.sub(lambda match: _VALUES[match[0]], text)
    text = _POINT.sub(r"\1.\2", text)
    return _PERCENT.sub(r"\1%", text)
