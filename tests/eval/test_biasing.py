"""Errors in names and outside of them: a table by hand, and what must always hold."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nim4_jax.eval.measures import biasing, error_rates
from nim4_jax.eval.measures.biasing import NameList
from nim4_jax.eval.measures.error_rates import Counts

WORDS = st.lists(st.sampled_from(["call", "anna", "maria", "now", "rome"]), max_size=8)
NAMES = st.lists(
    st.sampled_from(["anna", "anna maria", "rome", "maria now", "to rome", ""]),
    max_size=4,
)


def score(reference, output, names, lang="en"):
    said, written = error_rates.split(reference, lang), error_rates.split(output, lang)
    return biasing.score(said, written, lang, NameList(names))


@pytest.mark.parametrize(
    ("reference", "output", "names", "unbiased", "biased"),
    [
        (
            "call anna maria now please",
            "call a maria now anna maria",
            ["anna maria"],
            Counts(1, 0, 0, 3),
            Counts(1, 0, 1, 2),
        ),
        ("go to rome", "go to", ["rome"], Counts(0, 0, 0, 2), Counts(0, 1, 0, 1)),
        ("go home", "go rome home", ["rome"], Counts(0, 0, 0, 2), Counts(0, 0, 1, 0)),
        ("go home", "go big home", ["rome"], Counts(0, 0, 1, 2), Counts()),
        ("go to rome", "go to dome", ["rome"], Counts(0, 0, 0, 2), Counts(1, 0, 0, 1)),
        ("the hotel", "a hotel", ["hotel california"], Counts(1, 0, 0, 2), Counts()),
        ("go home", "go rome", ["rome"], Counts(1, 0, 0, 2), Counts()),
        ("", "rome", ["rome"], Counts(), Counts(0, 0, 1, 0)),
    ],
)
def test_the_usual_rule(reference, output, names, unbiased, biased):
    assert score(reference, output, names) == (unbiased, biased)


@pytest.mark.parametrize(
    ("lang", "reference", "output", "biased"),
    [
        ("zh", "导航去北京站", "导航去背京站", Counts(1, 0, 0, 3)),
        ("mixed", "播放 Hotel California 吧", "播放 Hotel 吧", Counts(0, 1, 0, 2)),
    ],
)
def test_names_of_other_languages(lang, reference, output, biased):
    assert score(reference, output, ["北京站", "Hotel California"], lang)[1] == biased


@given(reference=WORDS, output=WORDS, names=NAMES)
def test_both_parts_together_are_the_whole(reference, output, names):
    parts = biasing.score(reference, output, "en", NameList(names))
    whole = error_rates.score_text(" ".join(reference), " ".join(output), "en")
    assert error_rates.add_up(parts) == whole


@given(reference=WORDS, output=WORDS, names=NAMES)
def test_names_are_found_as_a_plain_search_finds_them(reference, output, names):
    text = f" {' '.join(output)} "
    there = {name for name in names if name and f" {name} " in text}
    listed = NameList(names)
    assert set(listed.find(output, "en")) == there
    if not there:
        assert not any(listed.mark(output, "en"))
    # Without names, all errors are outside of them.
    assert biasing.score(reference, output, "en", NameList(()))[1] == Counts()


def test_names_are_compared_as_texts_are():
    listed = NameList(["Beyoncé Knowles", "Room 25"])
    units = error_rates.split("Play beyonce knowles in room twenty five!", "en")
    assert listed.find(units, "en") == ("Beyoncé Knowles", "Room 25")
    raw = NameList(["Rome"], "raw")
    assert raw.find(["rome"], "en") == () and raw.find(["Rome"], "en") == ("Rome",)
