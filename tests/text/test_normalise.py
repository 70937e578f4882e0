"""Scoring normalisation: one form for one reading, stable, and total."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nim4_jax.text.normalise import LANGUAGES, normalise, split_units

_WORDS = (
    "one two twenty five hundred thousand million and point oh first second 3 3.5 07 "
    "15 don't it's o 100 % $ . , 零 一 二 两 十 百 千 万 亿 点 百分之 年 个 嗯 uh ( ) "
    "[ ] < > ' s ’ : 5 é ① ½ ﬁ Ⅷ U.S. colour mr İ ß / - − ² ⅔ ʼ \u200b ø 8:05 555-1234 "
    "half thirds squared minus 负 又 分之 1/3 \u00a0000"
)
PIECES = st.lists(st.sampled_from([*_WORDS.split(), " "]), max_size=14)
ANYTHING = st.one_of(
    st.text(max_size=30),
    st.text(st.characters(categories=["Cs", "Lu", "Nd", "Mn"]), max_size=10),
    PIECES.map(" ".join),
    PIECES.map("".join),
)


@settings(max_examples=400, deadline=None)
@given(ANYTHING, st.sampled_from(LANGUAGES))
def test_idempotent_and_total(text, lang):
    once = normalise(text, lang)
    assert normalise(once, lang) == once
    assert once == once.strip() and "  " not in once
    assert "".join(split_units(once, lang)) == once.replace(" ", "")


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("I won't pay!", "i will not pay"), ("It's Mr. Smith", "it is mister smith"),
        ("twenty five", "25"), ("one hundred and five", "105"), ("$5", "five dollars"),
        ("nineteen eighty-four", "1984"), ("two thousand five", "2005"),
        ("3.14%", "three point one four percent"), ("1,234,567", "1234567"),
        ("two point five million", "2,500,000"), ("the 21st", "the twenty-first"),
        ("five five one oh two", "55102"), ("8:05 p.m.", "eight oh five pm"),
        ("uh hello (laughs) [noise]", "hello"), ("my favourite colour",
         "my favorite color"), ("café, naïve", "cafe naive"), ("U.S.A.", "usa"),
        ("ＡＢＣ", "abc"), ("gonna", "going to"), ("the boss’s", "the boss's"),
        ("2 million 300 thousand and six", "2300006"),
    ],
)  # fmt: skip
def test_english(left, right):
    assert normalise(left, "en") == normalise(right, "en")


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("我有二十五个苹果。", "我有２５个苹果！"), ("二零二四年", "2024年"),
        ("三万五", "35000"), ("三百五", "350"), ("三百零五", "305"), ("两万", "20000"),
        ("2.5万", "25000"), ("百分之五十", "50%"), ("八点三十分", "8:30分"),
        ("三点一四", "3.14"), ("二〇一零", "2010"), ("幺三八", "138"),
        ("￥100", "一百元"), ("嗯，打 开", "打开"), ("打开 Spotify", "打开spotify"),
        ("第 3 首", "第三首"),
    ],
)  # fmt: skip
def test_chinese(left, right):
    assert normalise(left, "zh") == normalise(right, "zh") == normalise(left, "mixed")


@pytest.mark.parametrize(
    ("left", "right", "lang"),
    [
        ("½ cup", "one half cup", "en"), ("1/3", "⅓", "en"), ("⅔", "two thirds", "en"),
        ("2½", "2 1/2", "en"), ("2 1/2", "two and one half", "en"),
        ("三分之一", "1/3", "zh"), ("½", "二分之一", "zh"), 
        ("2½", "二又二分之一", "zh"), ("到-5度", "到负五度", "zh"),
        ("-5", "minus five", "en"), ("−5", "-5", "en"), ("3-1", "three to one", "en"),
        ("负五度", "-5度", "zh"), ("-$5", "minus five dollars", "en"),
        ("10²", "ten squared", "en"), ("555-1234", "five five five one two three four",
         "en"), ("1\u00a0000\u202f000", "1,000,000", "en"), ("8:30", "eight thirty",
         "en"),
        *((f"don{sign}t", "do not", "en") for sign in "'’ʼ′`´＇"),
        ("hel\u200blo\ufeff wor\u00adld", "hello world", "en"),
        ("循\u200b环", "循环", "zh"),
        ("smørrebrød", "smorrebrod", "en"), ("Łódź, Æon", "lodz aeon", "en"),
    ],
)  # fmt: skip
def test_what_is_read_alike_is_one_form(left, right, lang):
    assert normalise(left, lang) == normalise(right, lang)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("½", "12"), ("1/3", "13"), ("2½", "212"), ("2½", "21/2"), ("-5", "5"),
        ("100 5", "1005"), ("10²", "102"), ("24/7", "247"), ("10-5", "105"),
        ("20 20", "2020"), ("1/1", "11"), ("one hundred 5", "1005"), ("3:1", "31"),
    ],
)  # fmt: skip
def test_what_is_not_read_alike_is_not(left, right):
    assert normalise(left, "en") != normalise(right, "en")


def test_words_that_only_look_like_numbers_stay():
    assert normalise("千万别去", "zh") == "千万别去"
    assert normalise("百货", "zh") == "百货"
    assert normalise("a hundred", "en") == "a hundred"


def test_auto_chooses_by_the_text():
    assert normalise("百分之五十", "auto") == normalise("50%", "en") == "50 percent"
    assert normalise("涨五十%", "auto") == "涨50%"
    assert normalise("up 50%", "auto") == "up 50 percent"


def test_empty_and_silent_texts():
    for text in ("", "  ", "。，！", "😀", "(noise)", "\ud800"):
        assert normalise(text) == "" and split_units(normalise(text)) == []


def test_units():
    assert split_units("播放 model 3 给我") == ["播", "放", "model", "3", "给", "我"]
    assert split_units("我的号码是138") == [*"我的号码是138"]
    assert split_units("call 138 now") == ["call", "138", "now"]
    assert split_units("138", "zh") == ["1", "3", "8"]
    assert split_units("涨3.5%") == ["涨", "3", ".5%"]


def test_unknown_language_lists_the_languages():
    for function in (normalise, split_units):
        with pytest.raises(ValueError, match=r"unknown language 'fr'.*'en', 'zh'"):
            function("x", "fr")
