"""Distances are those of phonetics, and the index finds what comparing all finds."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nim4_jax.context import distractors
from nim4_jax.context.distractors import GAP, Distractors, measure
from nim4_jax.context.keywords import spell
from nim4_jax.data.corpora import grammar
from nim4_jax.text.phonemes import PHONEME_IDS, encode_phonemes

LISTS = sorted(grammar.NAME_SLOTS.values())
NAMES = [name for words in LISTS for name in grammar.load_wordlist(words)]
ALIKE = [
    *("knight", "night", "Night", "nights", "bright", "bite", "by night", "a", "I"),
    *("公式", "攻势", "公事", "工事", "同事", "上海", "伤害", "北京", "背景", "背 景"),
    *("NIO", "neo", "蔚来", "未来", "未来 house", "NIO House", "!?", ""),
]
names = st.sampled_from(ALIKE) | st.sampled_from(NAMES)


def compare_all(keyword, others, most, limit):
    """What `Distractors.of` gives, by brute force."""
    near = sorted(
        (measure(keyword, name), name)
        for name in set(others)
        if encode_phonemes(name) and spell(name) != spell(keyword)
    )
    spoken = bool(encode_phonemes(keyword))
    found = [(name, d) for d, name in near if d <= limit and spoken]
    return tuple(found[:most])


@given(
    keyword=names,
    others=st.lists(names, max_size=30),
    most=st.integers(0, 12),
    limit=st.sampled_from([0.0, 0.1, 0.3, 0.7, 1.0, 5.0]),
)
def test_the_index_finds_what_comparing_all_finds(keyword, others, most, limit):
    found = Distractors.build(others).of(keyword, most, limit)
    assert found == compare_all(keyword, others, most, limit)


def test_the_index_is_exact_for_all_names():
    index = Distractors.build([*NAMES, *ALIKE])
    for keyword in [*NAMES[::20], *ALIKE]:
        every = compare_all(keyword, [*NAMES, *ALIKE], 10**6, 0.4)
        assert index.of(keyword, 10**6, 0.4) == every


@given(one=names, other=names)
def test_distance_is_symmetric_and_zero_for_homophones_alone(one, other):
    distance = measure(one, other)
    assert 0.0 <= distance <= 1.0
    assert distance == measure(other, one)
    spoken = encode_phonemes(one), encode_phonemes(other)
    if all(spoken):
        assert (distance == 0.0) == (spoken[0] == spoken[1])
    assert measure(one, one) == 0.0


def test_costs_are_those_of_sounds():
    """0 on the diagonal alone, symmetric, at most 1, and no more than leaving out."""
    table = distractors.costs()
    np.testing.assert_array_equal(table, table.T)
    assert ((table == 0) == np.eye(len(table), dtype=bool)).all()
    assert table.max() == 1.0 < 2 * GAP

    def cost(one, other):
        return table[PHONEME_IDS[one], PHONEME_IDS[other]]

    assert cost("P", "B") < cost("P", "S") < cost("P", "AA") == 1.0
    assert cost("ang1", "ang4") < cost("ang1", "i1")


def test_an_edit_costs_its_share_of_the_longer_name():
    table = distractors.costs()
    replaced = table[PHONEME_IDS["N"], PHONEME_IDS["B"]] / 3
    assert measure("night", "bite") == pytest.approx(replaced)
    assert measure("night", "nights") == pytest.approx(GAP / 4)


def test_homophones_come_first_and_never_the_keyword_itself():
    index = Distractors.build(ALIKE)
    assert [name for name, d in index.of("公式") if d == 0.0] == [
        "公事",
        "工事",
        "攻势",
    ]
    assert index.of("Knight", most=2) == (("Night", 0.0), ("night", 0.0))
    assert "Night" not in dict(index.of("night", most=100, max_distance=1.0))
    assert "背景" not in dict(index.of("背 景", most=100, max_distance=1.0))
    found = index.of("北京", max_distance=0.5)
    assert found[0][0] == "背 景" and found[1][0] == "背景"


def test_distances_ascend_and_equal_ones_are_in_order():
    found = Distractors.build(NAMES).of("boston", 50, 1.0)
    assert len(found) == 50
    assert list(found) == sorted(found, key=lambda pair: (pair[1], pair[0]))


def test_the_order_of_names_does_not_matter():
    for keyword in ("night", "上海", "laura king"):
        every = [
            Distractors.build(given).of(keyword, 20, 0.6)
            for given in (NAMES + ALIKE, ALIKE + NAMES[::-1], 2 * (NAMES + ALIKE))
        ]
        assert every[0] == every[1] == every[2]


def test_languages_meet_where_they_sound_alike():
    """The sounds of both languages have places in one space."""
    english = Distractors.build(["leeds", "shanghai", "boston"])
    assert english.of("上海", 1, 1.0)[0][0] == "shanghai"


def test_nothing_to_say_has_no_distractors():
    assert Distractors.build([]).of("boston") == ()
    assert Distractors.build(["", "!?"]).of("boston", 5, 1.0) == ()
    assert Distractors.build(NAMES).of("!?", 5, 1.0) == ()
    assert measure("", "!?") == 1.0
    for wrong in ({"most": -1}, {"max_distance": -0.1}, {"max_distance": np.nan}):
        with pytest.raises(ValueError, match="expected 0 or more"):
            Distractors.build(NAMES).of("boston", **wrong)


def test_names_that_begin_alike_share_nodes():
    """So that 10,000 names need far fewer rows than they have phonemes."""
    people = [
        f"{first} {last}"
        for first, last in itertools.product(
            grammar.load_wordlist("first_en"), grammar.load_wordlist("last_en")
        )
    ]
    index = Distractors.build(people)
    assert len(index.label) < 0.7 * sum(len(encode_phonemes(name)) for name in people)
    assert (index.after > np.arange(len(index.label))).all()
