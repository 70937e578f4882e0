"""Numbers as spoken, and back: spoken → digits undoes digits → spoken."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nim4_jax.text import chinese_numbers, english_numbers, numbers


def english(text: str) -> str:
    match = re.fullmatch(numbers.NUMBER, text)
    assert match is not None
    return " ".join(numbers.read_english(match))


def chinese(text: str, following: str = "") -> str:
    match = re.fullmatch(numbers.NUMBER, text)
    assert match is not None
    return numbers.read_chinese(match, following)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0", "zero"), ("15", "fifteen"), ("123", "one hundred twenty three"),
        ("1984", "nineteen eighty four"), ("1905", "nineteen oh five"),
        ("1900", "nineteen hundred"), ("2005", "two thousand five"),
        ("2024", "twenty twenty four"), ("3.14", "three point one four"),
        ("1,000,001", "one million one"), ("25%", "twenty five percent"),
        ("21st", "twenty first"), ("12th", "twelfth"), ("30th", "thirtieth"),
        ("1990s", "nineteen nineties"), ("6s", "sixes"), ("007", "zero zero seven"),
        ("-5", "minus five"), ("$1", "one dollar"), ("€20", "twenty euros"),
        ("$3.50", "three dollars and fifty cents"), ("8:00", "eight"),
        ("10:45", "ten forty five"), ("12345678901234567890", "one two three four "
         "five six seven eight nine zero one two three four five six seven eight "
         "nine zero"),
    ],
)  # fmt: skip
def test_english(text, words):
    assert english(text) == words


@pytest.mark.parametrize(
    ("text", "following", "characters"),
    [
        ("0", "", "零"), ("10", "", "十"), ("15", "", "十五"), ("110", "", "一百一十"),
        ("205", "", "二百零五"), ("2000", "", "两千"), ("20000", "", "两万"),
        ("10010", "", "一万零一十"), ("100000000", "块", "一零零零零零零零零"),
        ("100,000,000", "", "一亿"), ("2024", "年", "二零二四"),
        ("2024", "人", "两千零二十四"),
        ("2", "个", "两"), ("2", "", "二"), ("2", "月", "二"), ("3.14", "", "三点一四"),
        ("50%", "", "百分之五十"), ("-3", "", "负三"), ("8:05", "", "八点零五"),
        ("¥30", "", "三十元"), ("010-1234-5678", "", "零一零一二三四五六七八"),
    ],
)  # fmt: skip
def test_chinese(text, following, characters):
    assert chinese(text, following) == characters


@given(st.integers(0, 10**15 - 1))
def test_english_cardinals_come_back(value):
    assert english_numbers.write_digits(numbers.name_english(value)) == [str(value)]


@given(st.integers(0, 10**12 - 1))
def test_chinese_cardinals_come_back(value):
    assert chinese_numbers.write_digits(numbers.name_chinese(value)) == str(value)


@given(st.integers(1, 999))
def test_english_ordinals_come_back(value):
    (written,) = english_numbers.write_digits(numbers.name_ordinal(value))
    assert re.fullmatch(rf"{value}(st|nd|rd|th)", written)


@given(st.text("0123456789", min_size=1, max_size=25))
def test_spelled_digits_come_back(digits):
    assert chinese_numbers.write_digits(numbers.spell_chinese_digits(digits)) == digits
    words = numbers.spell_english_digits(digits)
    assert english_numbers.write_digits(words) == [digits]
