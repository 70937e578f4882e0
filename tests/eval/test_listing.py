"""Which utterances are listed, and how they are aligned."""

import hypothesis
import hypothesis.strategies as st

from nim4_jax.eval.measures import error_rates
from nim4_jax.eval.sweep import listing
from nim4_jax.eval.sweep.cells import DONE, Cell, Key

WORDS = st.lists(st.sampled_from(["go", "home", "now", "stop"]), max_size=8)
HAN = st.text("打开音乐", max_size=8)


@hypothesis.given(WORDS, WORDS)
def test_words_are_aligned_with_the_errors_that_are_counted(said, written):
    check(" ".join(said), " ".join(written), "en")


@hypothesis.given(HAN, HAN)
def test_characters_too(said, written):
    check(said, written, "zh")


@hypothesis.given(WORDS, HAN, WORDS, HAN)
def test_and_both_mixed(words, characters, other_words, other_characters):
    check(
        " ".join([*words, characters]),
        " ".join([other_characters, *other_words]),
        "mixed",
    )


def check(said, written, lang):
    pairs = listing.align(said, written, lang)
    join = "".join if lang == "zh" else " ".join
    assert all(pair != ("", "") for pair in pairs)
    if lang != "mixed":
        assert join(one for one, _ in pairs if one) == said
        assert join(other for _, other in pairs if other) == written
    counts = error_rates.score_text(said, written, lang)
    assert sum(one != other for one, other in pairs) == counts.errors
    assert sum(bool(one) for one, _ in pairs) == counts.reference


def make_row(number, errors):
    return {
        "id": f"u{number}",
        "lang": "en",
        "seconds": 1.0,
        "scored_reference": "go " * 9,
        "scored_hypothesis": "go " * (9 - errors),
        "text": {
            "substitutions": 0,
            "deletions": errors,
            "insertions": 0,
            "reference": 9,
        },
    }


def test_the_worst_come_first_and_those_without_errors_not():
    errors = [0, 3, 1, 3, 0, 5, 1, 1, 2]
    rows = [make_row(number, count) for number, count in enumerate(errors)]
    worst = listing.find_worst(rows)
    assert [row["id"] for row in worst] == ["u5", "u1", "u3", "u8", "u2"]
    assert listing.find_worst([make_row(0, 0)]) == []


def test_one_mode_of_a_model_is_open_and_long_texts_are_cut():
    rows = [make_row(0, 1) | {"scored_reference": "go " * 500}]
    modes = ("offline", "stream:640")
    made = [Cell(Key("m", "b", mode), DONE, rows=rows) for mode in modes]
    first, second = listing.list_worst(made)
    assert (first.open, second.open) == (True, False)
    (aligned,) = first.alignments
    assert len(aligned.pairs) + aligned.left_out == 500
    assert 0 < len(aligned.pairs) < 200
