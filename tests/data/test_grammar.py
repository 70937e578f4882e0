"""The grammar: closed vocabulary, spoken forms, keywords, held-out texts."""

import itertools
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nim4_jax.data.corpora import grammar, templates

ENGLISH = re.compile(r"[a-z']+( [a-z']+)*")
MANDARIN = re.compile(r"[\u4e00-\u9fff]+")


def draw_many(lang: str, count: int = 2000) -> list[grammar.Command]:
    rng = np.random.default_rng(7)
    return [grammar.sample(rng, lang) for _ in range(count)]


def test_texts_are_written_as_spoken():
    assert all(ENGLISH.fullmatch(c.text) for c in draw_many("en"))
    assert all(MANDARIN.fullmatch(c.text) for c in draw_many("zh"))
    for command in draw_many("mixed"):
        assert MANDARIN.search(command.text), command
        assert re.search("[a-z]", command.text), command
        assert re.fullmatch(r"[a-z'\u4e00-\u9fff ]+", command.text), command
        assert "  " not in command.text and command.text == command.text.strip()


def test_commands_are_short():
    assert max(len(c.text.split()) for c in draw_many("en")) <= 14
    assert max(len(c.text) for c in draw_many("zh")) <= 20


def test_vocabulary_is_closed():
    texts = [c.text for lang in grammar.LANGUAGES for c in draw_many(lang, 5000)]
    characters = {ch for text in texts for ch in text if ch > "\u4e00"}
    words = {word for text in texts for word in re.findall("[a-z']+", text)}
    assert 200 < len(characters) <= 900
    assert 200 < len(words) <= 600
    english = sum(
        len(grammar.load_wordlist(n)) for n in grammar.WORDLISTS if "_en" in n
    )
    mandarin = sum(
        len(grammar.load_wordlist(n)) for n in grammar.WORDLISTS if "_zh" in n
    )
    assert 150 <= english <= 250
    assert 150 <= mandarin <= 250


@pytest.mark.parametrize("name", grammar.WORDLISTS)
def test_wordlists_have_no_repeats_or_blanks(name):
    words = grammar.load_wordlist(name)
    assert len(set(words)) == len(words)
    assert all(word and word == word.strip() for word in words)


def test_every_slot_is_filled_and_every_phrase_is_used():
    slots = {
        slot
        for groups in templates.TEMPLATES.values()
        for group in groups
        for line in group.lines
        for slot in re.findall(r"\{(\w+)\}", line)
    }
    assert set(templates.PHRASES) | set(grammar.NAME_SLOTS) <= slots
    for lang in grammar.LANGUAGES:
        assert not any("{" in c.text for c in draw_many(lang))


@pytest.mark.parametrize("lang", grammar.LANGUAGES)
def test_keywords_are_the_names_in_the_text(lang):
    commands = draw_many(lang)
    for command in commands:
        assert command.lang == lang
        assert len(set(command.keywords)) == len(command.keywords)
        assert all(word in command.text for word in command.keywords)
    assert sum(bool(c.keywords) for c in commands) > 0.5 * len(commands)
    assert all(c.keywords for c in draw_many("mixed"))


@given(seed=st.integers(0, 2**31), lang=st.sampled_from(grammar.LANGUAGES))
def test_splits_are_disjoint_and_draws_repeat(seed, lang):
    for held_out in (True, False):
        first = grammar.sample(np.random.default_rng(seed), lang, held_out)
        again = grammar.sample(np.random.default_rng(seed), lang, held_out)
        assert first == again
        assert grammar.is_held_out(first.text) == held_out


def test_held_out_share():
    texts = {c.text for c in draw_many("en", 5000)}
    share = np.mean([grammar.is_held_out(text) for text in texts])
    assert abs(share - 1 / grammar.HELD_OUT_SHARE) < 0.02


def test_iterate_texts_counts_mixes_and_keeps_test_texts_out():
    commands = list(grammar.iterate_texts(seed=1, count=3000))
    assert len(commands) == 3000
    assert not any(grammar.is_held_out(c.text) for c in commands)
    for lang, share in grammar.LANGUAGE_MIX.items():
        found = np.mean([c.lang == lang for c in commands])
        assert abs(found - share) < 0.04
    assert commands[:50] == list(grammar.iterate_texts(seed=1, count=50))
    assert commands[:50] != list(grammar.iterate_texts(seed=2, count=50))
    only = grammar.iterate_texts(seed=0, count=-1, lang_mix={"zh": 2.0})
    assert {c.lang for c in itertools.islice(only, 20)} == {"zh"}


def test_spelled_numbers():
    assert [grammar.spell_en(n) for n in (0, 13, 20, 45, 100, 101, 120)] == [
        "zero",
        "thirteen",
        "twenty",
        "forty five",
        "one hundred",
        "one hundred one",
        "one hundred twenty",
    ]
    assert [grammar.spell_zh(n) for n in (0, 10, 12, 20, 45, 100, 101, 110, 115)] == [
        "零",
        "十",
        "十二",
        "二十",
        "四十五",
        "一百",
        "一百零一",
        "一百一十",
        "一百一十五",
    ]
    for spell in (grammar.spell_en, grammar.spell_zh):
        assert len({spell(n) for n in range(200)}) == 200
        with pytest.raises(ValueError, match=r"0 to 199, got 200"):
            spell(200)


def test_unknown_choices_are_named():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match=r"'fr'.*'en', 'zh', 'mixed'"):
        grammar.sample(rng, "fr")
    with pytest.raises(ValueError, match=r"'songs'.*places_en"):
        grammar.load_wordlist("songs")
    with pytest.raises(ValueError, match=r"lang_mix.*'fr'"):
        next(grammar.iterate_texts(0, 1, {"fr": 1.0}))
