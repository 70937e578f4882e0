"""Numbers as they are spoken: digits → English words or Chinese characters."""

from __future__ import annotations

import re

_ONES_NAMES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen "
    "fourteen fifteen sixteen seventeen eighteen nineteen"
)
_TENS_NAMES = "zero ten twenty thirty forty fifty sixty seventy eighty ninety"
_ONES, _TENS = _ONES_NAMES.split(), _TENS_NAMES.split()
_SCALES = ("", "thousand", "million", "billion", "trillion")
_IRREGULAR_ORDINALS = {
    "one": "first",
    "two": "second",
    "three": "third",
    "five": "fifth",
    "eight": "eighth",
    "nine": "ninth",
    "twelve": "twelfth",
}
_CURRENCIES = {  # sign: (English singular, plural, hundredth), Chinese
    "$": (("dollar", "dollars", "cent"), "美元"),
    "€": (("euro", "euros", "cent"), "欧元"),
    "£": (("pound", "pounds", "penny"), "英镑"),
    "¥": (("yuan", "yuan", "fen"), "元"),
}
_DIGITS = "零一二三四五六七八九"
_MEASURES = tuple("个位只条件块元天年周层次台辆份杯张首小点本碗千万亿")

NUMBER = (
    r"(?P<sign>(?<!\S)-)?(?P<currency>[$€£¥])?"
    r"(?:(?P<phone>\+?[0-9]{2,4}(?:-[0-9]{3,4}){1,3})(?![0-9-])"
    r"|(?P<hour>[0-9]{1,2}):(?P<minute>[0-5][0-9])(?![0-9])"
    r"|(?P<digits>[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.(?P<decimals>[0-9]+))?)"
    r"(?P<suffix>%|(?:st|nd|rd|th|s)(?![A-Za-z]))?"
)
"""Pattern of a number as written: sign, currency, phone or clock or digits,
decimals, suffix; its groups are what the readers below need."""

_LONGEST_CARDINAL = 12
_PHONE_LENGTH = 7


def spell_english_digits(digits: str) -> list[str]:
    """Digits one by one: `"042"` → `["zero", "four", "two"]`."""
    return [_ONES[int(d)] for d in digits]


def _name_below_thousand(value: int) -> list[str]:
    words = [_ONES[value // 100], "hundred"] if value >= 100 else []
    rest = value % 100
    if rest >= 20:
        words.append(_TENS[rest // 10])
        rest %= 10
    if rest:
        words.append(_ONES[rest])
    return words


def name_english(value: int) -> list[str]:
    """A cardinal below 10^15 in words: 123 → one hundred twenty three."""
    if value == 0:
        return ["zero"]
    words: list[str] = []
    for power in range(len(_SCALES) - 1, -1, -1):
        group = value // 1000**power % 1000
        if group:
            words += _name_below_thousand(group)
            words += [_SCALES[power]] if power else []
    return words


def name_ordinal(value: int) -> list[str]:
    words = name_english(value)
    last = words[-1]
    if last in _IRREGULAR_ORDINALS:
        words[-1] = _IRREGULAR_ORDINALS[last]
    else:
        words[-1] = last[:-1] + "ieth" if last.endswith("y") else last + "th"
    return words


def _name_year(value: int) -> list[str]:
    """1984 → nineteen eighty four, 1905 → nineteen oh five, 2005 → a cardinal."""
    century, rest = divmod(value, 100)
    if 2000 <= value < 2010 or (century % 10 == 0 and rest < 10):
        return name_english(value)
    if rest == 0:
        return [*name_english(century), "hundred"]
    return name_english(century) + (["oh"] if rest < 10 else []) + name_english(rest)


def _name_integer(digits: str) -> list[str]:
    """Plain digits: long runs and 0… are spelled, 1100–2099 are years."""
    if len(digits) >= _PHONE_LENGTH or (len(digits) > 1 and digits[0] == "0"):
        return spell_english_digits(digits)
    value = int(digits)
    return _name_year(value) if 1100 <= value < 2100 else name_english(value)


def _plural(word: str) -> str:
    if word.endswith("y"):
        return word[:-1] + "ies"
    return word + ("es" if word.endswith("x") else "s")


def read_english(match: re.Match[str]) -> list[str]:
    """English words of one match of NUMBER."""
    words = ["minus"] if match["sign"] else []
    if match["phone"]:
        return words + spell_english_digits(re.sub("[^0-9]", "", match["phone"]))
    if match["hour"]:
        minute = match["minute"]
        words += name_english(int(match["hour"]))
        if minute != "00":
            words += ["oh"] if minute[0] == "0" else []
            words += name_english(int(minute))
        return words
    grouped, digits = "," in match["digits"], match["digits"].replace(",", "")
    suffix, decimals = match["suffix"], match["decimals"]
    cardinal = len(digits) <= _LONGEST_CARDINAL and (grouped or bool(match["currency"]))
    if suffix in ("st", "nd", "rd", "th") and len(digits) <= _LONGEST_CARDINAL:
        return words + name_ordinal(int(digits))
    amount = name_english(int(digits)) if cardinal else _name_integer(digits)
    if match["currency"]:
        singular, plural, hundredth = _CURRENCIES[match["currency"]][0]
        words += [*amount, singular if digits == "1" and not decimals else plural]
        if decimals and int(decimals) and len(decimals) <= 2:
            cents = int(decimals.ljust(2, "0"))
            words += ["and", *name_english(cents), hundredth + "s" * (cents > 1)]
        return words
    words += amount
    if decimals:
        words += ["point", *spell_english_digits(decimals)]
    if suffix == "%":
        words.append("percent")
    elif suffix == "s":
        words[-1] = _plural(words[-1])
    return words


def name_chinese(value: int) -> str:
    """A cardinal below 10^16: 205 → 二百零五, 15 → 十五, 20000 → 两万."""
    if value == 0:
        return "零"
    text, pending = "", False
    for power, unit in ((12, "万亿"), (8, "亿"), (4, "万"), (0, "")):
        group = value // 10**power % 10000
        if not group:
            pending = bool(text)
            continue
        if text and (pending or group < 1000):
            text += "零"
        pending = False
        part = _name_below_myriad(group)
        text += ("两" if part == "二" and unit else part) + unit
    return text[1:] if text.startswith("一十") else text


def _name_below_myriad(value: int) -> str:
    text, pending = "", False
    for power, unit in ((3, "千"), (2, "百"), (1, "十"), (0, "")):
        digit = value // 10**power % 10
        if not digit:
            pending = bool(text)
            continue
        text += ("零" if pending else "") + _DIGITS[digit] + unit
        pending = False
    return "两" + text[1:] if text.startswith("二千") else text


def spell_chinese_digits(digits: str) -> str:
    """Digits one by one: `"2024"` → 二零二四."""
    return "".join(_DIGITS[int(d)] for d in digits)


def read_chinese(match: re.Match[str], following: str = "") -> str:
    """Chinese characters of one match of NUMBER.

    Args:
        match: what NUMBER found.
        following: the text behind it: 年 makes four digits a year, a measure word
            makes 2 两.
    """
    sign = "负" if match["sign"] else ""
    if match["phone"]:
        return sign + spell_chinese_digits(re.sub("[^0-9]", "", match["phone"]))
    if match["hour"]:
        minute = match["minute"]
        text = name_chinese(int(match["hour"])) + "点"
        if minute != "00":
            text += (
                "零" + _DIGITS[int(minute)]
                if minute[0] == "0"
                else name_chinese(int(minute))
            )
        return sign + text
    digits, decimals = match["digits"].replace(",", ""), match["decimals"]
    year = len(digits) == 4 and following.lstrip().startswith("年")
    spelled = year or (len(digits) > 1 and digits[0] == "0")
    if "," not in match["digits"] and not match["currency"]:
        spelled = spelled or len(digits) >= _PHONE_LENGTH
    if spelled or len(digits) > _LONGEST_CARDINAL:
        text = spell_chinese_digits(digits)
    elif digits == "2" and not decimals and following.lstrip().startswith(_MEASURES):
        text = "两"
    else:
        text = name_chinese(int(digits))
    if decimals:
        text += "点" + spell_chinese_digits(decimals)
    if match["currency"]:
        text += _CURRENCIES[match["currency"]][1]
    return sign + ("百分之" + text if match["suffix"] == "%" else text)
