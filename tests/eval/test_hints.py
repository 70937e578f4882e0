"""Hints of an evaluation: what was said, what was not, the same for every model."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nim4_jax.context.keywords import spell
from nim4_jax.eval import hints
from nim4_jax.eval.hints import Fact, HintConfig
from nim4_jax.eval.measures import entities

FACTS = (
    Fact("0", "call anna bell in rome", "en", ("anna bell", "rome")),
    Fact("1", "call hannah bell", "en", ("hannah bell",)),
    Fact("2", "打开张伟的车窗", "zh", ("张伟",)),
    Fact("3", "打给章伟", "zh", ("章伟",)),
    Fact("4", "open the window", "en", ()),
    Fact("5", "", "en", ()),
    Fact("6", "播放 yesterday", "mixed", ("yesterday", "london")),
)
NAMES = ("dome", "anna belle", "rome", "the window", "berlin", "张维", "NIO House")


def test_only_what_the_transcript_says_is_said():
    planned = hints.plan(FACTS, HintConfig("said"))
    assert planned.hints == planned.said
    assert planned.said[0] == ("anna bell", "rome")
    assert planned.said[4:] == ((), (), ("yesterday",))
    assert planned.unseen is None
    assert hints.plan(FACTS, HintConfig()).hints == ((),) * 7


@given(seed=st.integers(0, 999), count=st.integers(1, 12))
def test_misleading_hints_are_not_said_and_differ(seed, count):
    config = HintConfig("misleading", count, NAMES, seed=seed)
    planned = hints.plan(FACTS, config)
    for fact, drawn in zip(FACTS, planned.hints):
        assert 1 <= len(drawn) <= count
        assert len({spell(name) for name in drawn}) == len(drawn)
        for name in drawn:
            assert not entities.is_present(name, fact.text, fact.lang)
    assert hints.plan(FACTS, config) == planned


@given(seed=st.integers(0, 999))
def test_both_are_the_keywords_and_the_same_distractors(seed):
    both = hints.plan(FACTS, HintConfig("both", 3, NAMES, seed=seed))
    alone = hints.plan(FACTS, HintConfig("misleading", 3, NAMES, seed=seed))
    for said, mixed, misleading in zip(both.said, both.hints, alone.hints):
        assert sorted(mixed) == sorted((*said, *misleading))


def test_half_of_the_distractors_sound_alike():
    planned = hints.plan(FACTS, HintConfig("misleading", 2, NAMES))
    assert {"hannah bell", "anna belle", "dome"} & set(planned.hints[0])
    assert {"张维", "章伟"} & set(planned.hints[2])


def test_a_draw_depends_on_the_utterance_and_not_on_its_place():
    config = HintConfig("both", 3, NAMES)
    forth = hints.plan(FACTS, config).hints
    back = hints.plan(FACTS[::-1], config).hints
    assert forth == back[::-1]


def test_held_out_names_are_those_that_no_transcript_says():
    seen = ("call Anna Bell", "london calling", "伟大的张")
    planned = hints.plan(FACTS, HintConfig(seen=seen))
    assert planned.unseen == {
        spell(name) for name in ("rome", "hannah bell", "张伟", "章伟", "yesterday")
    }


def test_keywords_are_found_by_counting_only_if_asked_and_none_are_listed():
    texts = ["open zorblatt now please", "please open the zorblatt window"]
    texts += ["please open the window now"] * 60
    bare = [Fact(str(n), text, "en") for n, text in enumerate(texts)]
    assert not any(hints.plan(bare, HintConfig("said")).said)
    found = hints.plan(bare, HintConfig("said", find=True))
    assert found.hints[0] == ("zorblatt",) and found.hints[-1] == ()
    with pytest.raises(ValueError, match="--hint_names, or --find_keywords"):
        hints.plan(bare, HintConfig("misleading"))
    listed = hints.plan(FACTS, HintConfig("said", find=True))
    assert listed == hints.plan(FACTS, HintConfig("said"))


@pytest.mark.parametrize(
    "values, message",
    [
        (("some",), "none, said, misleading, both"),
        (("both", 0), "expected 1 or more"),
        (("none", -1), "expected 0 or more"),
    ],
)
def test_a_bad_choice_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        HintConfig(*values)


def test_lists_of_names_and_transcripts(tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("Anna  Bell\n\nRome\nRome\n", encoding="utf8")
    assert hints.read_names(str(names)) == ("Anna Bell", "Rome")
    assert "perth" in hints.read_names("bundled:commands:test")
    manifest = tmp_path / "train.jsonl"
    manifest.write_text(json.dumps({"audio": "a.wav", "text": "hi"}), encoding="utf8")
    read = hints.read_texts([str(manifest), str(names)])
    assert read == ("hi", "Anna  Bell", "", "Rome")
    with pytest.raises(ValueError, match="no list of names"):
        hints.read_names(str(tmp_path / "none.txt"))
    with pytest.raises(ValueError, match="unknown source"):
        hints.read_texts([str(tmp_path / "none.txt")])
