"""Normalisers by name; what other libraries make of texts is held fast in a table."""

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nim4_jax.eval.measures import error_rates, normalisers
from nim4_jax.text import normalise as own


@pytest.mark.parametrize(
    ("name", "lang", "text", "expected"),
    [
        ("raw", "en", "Mr. Smith,  25!", ["Mr.", "Smith,", "25!"]),
        ("raw", "zh", "好的， OK。", ["好", "的", "，", "O", "K", "。"]),
        ("ours", "en", "Um, Mr. Smith", ["mister", "smith"]),
        ("whisper", "en", "Um, Mr. Smith", ["mister", "smith"]),
        ("whisper", "en", "twenty-five colours", ["25", "colors"]),
        ("whisper", "en", "I won't (laughs) go", ["i", "will", "not", "go"]),
        ("whisper", "zh", "好的， OK。", ["好", "的", "o", "k"]),
        ("wetext", "zh", "打開25度！", ["打", "开", "二", "十", "五", "度"]),
        ("wetext", "zh", "５0%", ["百", "分", "之", "五", "十"]),
        ("wetext", "mixed", "播放 Hello，3首。", ["播", "放", "hello", "三", "首"]),
        ("wetext", "en", "It's 25 Degrees.", ["its", "twenty", "five", "degrees"]),
        ("wetext", "zh", "", []),
        ("wetext", "zh", " ，。", []),
        ("whisper", "en", "?!", []),
    ],
)
def test_units(name, lang, text, expected):
    assert error_rates.split(text, lang, name) == expected


@given(text=st.text(max_size=12), lang=st.sampled_from(["en", "zh", "mixed"]))
def test_ours_is_the_projects_own(text, lang):
    assert normalisers.normalise(text, lang) == own.normalise(text, lang)
    assert normalisers.normalise(text, lang, "raw") == text


@given(
    text=st.text("aZ é打開3５%$.,'!，。 \n(", max_size=12),
    lang=st.sampled_from(["en", "zh", "mixed"]),
    name=st.sampled_from(normalisers.NAMES),
)
def test_a_text_has_no_error_against_itself_by_any_rule(text, lang, name):
    assert error_rates.score_text(text, text, lang, name).errors == 0
    units = error_rates.split(text, lang, name)
    assert all(unit and not unit.isspace() for unit in units)


def test_an_unknown_normaliser_lists_the_known():
    with pytest.raises(ValueError, match="ours, raw, whisper, wetext"):
        normalisers.normalise("x", "en", "kaldi")
    with pytest.raises(ValueError, match="ours, raw, whisper, wetext"):
        error_rates.score_text("x", "x", "en", "kaldi")


@pytest.mark.parametrize(
    ("name", "module"), [("whisper", "whisper_normalizer"), ("wetext", "wetext")]
)
def test_a_library_that_is_not_installed_names_the_extra(name, module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    for opened in (normalisers._open_whisper, normalisers._open_wetext):
        opened.cache_clear()
    with pytest.raises(ValueError, match=r"nim4-jax\[eval\]"):
        normalisers.check(name)
