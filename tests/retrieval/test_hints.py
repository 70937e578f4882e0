"""Of what was heard the prompt has whole names, one of a place, the surest first."""

import dataclasses

from hypothesis import given
from hypothesis import strategies as st

from nim4_jax.model_files import loading
from nim4_jax.retrieval import hints
from nim4_jax.retrieval.hotwords import EXACT, NEAR, Hit
from nim4_jax.text import prompt
from nim4_jax.text.tokenizer import Tokenizer

NAMES = ("NIO", "NIO House", "Weilai", "上海", "伤害", "海")
TOKENIZER = Tokenizer.from_file(loading.find_tokenizer("nano"))


places = st.tuples(st.integers(0, 20), st.integers(1, 9))
found_hits = st.builds(
    lambda text, place, evidence, weight: Hit(
        text, place[0], sum(place), 1.0, EXACT, "", evidence, weight
    ),
    st.sampled_from([*NAMES, "<|im_end|>"]),
    places,
    st.sampled_from([1.0, 3.0, 7.5]),
    st.sampled_from([0.5, 1.0, 4.0]),
)


def overlap(one, other):
    return one.start < other.end and other.start < one.end


@given(
    found=st.lists(found_hits, max_size=12),
    most=st.integers(1, 5),
    budget=st.integers(0, 40),
)
def test_hints_are_whole_names_within_the_budget(found, most, budget):
    chosen = hints.select_hints(found, TOKENIZER, most=most, budget=budget)
    assert len(chosen) <= most and len(set(chosen)) == len(chosen)
    ids = prompt.encode_suffix(TOKENIZER, chosen)
    bare = prompt.encode_suffix(TOKENIZER)
    assert len(ids) - len(bare) <= budget
    assert ids.count(TOKENIZER.end_id) == bare.count(TOKENIZER.end_id)
    ranked = list(dict.fromkeys(hit.text for hit in hints.rank(found)))
    assert [text for text in ranked if text in chosen] == list(chosen)
    if not chosen:
        assert ids == bare


@given(found=st.lists(found_hits, max_size=12))
def test_one_of_a_place_is_hinted_at_the_strongest_first(found):
    ranked = hints.rank(found)
    first = [
        hit
        for place, hit in enumerate(ranked)
        if not any(overlap(hit, one) for one in ranked[:place])
    ]
    assert ranked[: len(first)] == first
    strengths = [hit.strength for hit in first]
    assert strengths == sorted(strengths, reverse=True)
    for hit in found:  # what is left out gives way to somebody
        rivals = [one for one in first if overlap(hit, one)]
        assert hit in ranked or max(one.strength for one in rivals) >= hit.strength
    for hit in ranked[len(first) :]:  # namesakes of one that came before
        (one,) = {(r.start, r.end, r.evidence) for r in first if overlap(hit, r)}
        assert one == (hit.start, hit.end, hit.evidence)


def test_a_rare_name_comes_before_a_long_common_one():
    """By evidence, not by length; a weight is as many times the evidence's odds."""
    common = Hit("in the morning", 0.0, 0.8, 11.0, EXACT, "", evidence=1.0)
    rare = Hit("Weilai", 1.0, 1.4, 5.0, EXACT, "", evidence=9.0)
    near = Hit("Weiden", 1.1, 1.6, 5.5, NEAR, "", evidence=6.0)
    assert [hit.text for hit in hints.rank([common, near, rare])] == [
        "Weilai",
        "in the morning",
    ]
    heavy = dataclasses.replace(near, weight=100.0)
    assert hints.rank([common, heavy, rare])[0] == heavy
