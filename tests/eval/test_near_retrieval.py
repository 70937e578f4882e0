"""The benchmark's figures are what a list of names gives, at any size."""

import numpy as np
import pytest

from nim4_jax.eval.speed import near_retrieval
from nim4_jax.retrieval import database
from nim4_jax.retrieval.gate import NOWHERE
from nim4_jax.retrieval.hotwords import HotwordRetriever
from nim4_jax.retrieval.layer import Layer
from nim4_jax.retrieval.names import Name
from nim4_jax.retrieval.pronunciation import pronounce

LISTED = ("Weilai", "Kirchberg", "Abu Dhabi", "乌鲁木齐", "Okonkwo", "Nakagawa")


@pytest.fixture(scope="module")
def base():
    names = [Name(text) for text in LISTED]
    return database.build(names, {name.text: pronounce(name) for name in names})


def test_recall_falls_with_the_error_and_less_so_nearly(base):
    near = HotwordRetriever([Layer(base)])
    exact = HotwordRetriever([Layer(base, near=NOWHERE)])
    found = {}
    for percent in (0, 10, 20):
        rng = np.random.default_rng(percent)
        said = near_retrieval.say_names(base, 60, percent, rng)
        both = [near_retrieval.recall(r, said) for r in (near, exact)]
        assert all(hinted <= own for own, hinted in both)
        found[percent] = [own for own, _ in both]
    assert found[0] == [1.0, 1.0]
    assert found[20][1] < found[10][1] < 0.8
    assert found[10][0] > 0.9 and found[20][0] > 0.75


def test_real_speech_without_the_names_gives_no_hints_from_a_short_list(base):
    speech = near_retrieval.hear_speech()
    assert len(speech) > 150
    assert near_retrieval.count_false(HotwordRetriever([Layer(base)]), speech) == (0, 0)


def test_names_that_the_gate_holds_back_are_said_too():
    """Recall is of all names: short ones lower it."""
    names = [Name("Weilai"), Name("NIO"), Name("Bo")]
    base = database.build(names, {name.text: pronounce(name) for name in names})
    said = near_retrieval.say_names(base, 60, 0, np.random.default_rng(0))
    assert {text for texts, _ in said for text in texts} == {n.text for n in names}
    found, _ = near_retrieval.recall(HotwordRetriever([Layer(base)]), said)
    assert 0.1 < found < 0.6


@pytest.mark.parametrize(
    ("text", "name", "said"),
    [
        ("call olivia walker.", "Olivia Walker", True),
        ("call olivia walkers", "Olivia Walker", False),
        ("导航到西湖区", "西湖", True),
        ("导航到西湖区", "东湖", False),
    ],
)
def test_what_was_said_is_no_false_hint(text, name, said):
    assert near_retrieval._contains(text, name) == said
