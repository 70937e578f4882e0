"""Recall of names and intrusions of hints."""

from hypothesis import given
from hypothesis import strategies as st

from nim4_jax.context.keywords import occurs, spell
from nim4_jax.eval.measures import entities
from nim4_jax.eval.measures.entities import Entities

words = st.sampled_from(["ann", "bell", "打", "开", "nio", "house"])
phrases = st.lists(words, min_size=1, max_size=4).map(" ".join)


def test_presence_is_that_of_the_rewards():
    assert entities.is_present("NIO House", "去NIO House吧", "mixed")
    assert not entities.is_present("NIO", "the minions", "en")
    assert entities.is_present("twenty five", "at 25", "en")
    assert not entities.is_present("", "anything", "en")
    assert not entities.is_present("。", "好。", "zh")


@given(names=st.lists(phrases, max_size=5), texts=st.lists(phrases, max_size=5))
def test_unseen_names_occur_in_no_text(names, texts):
    said = [spell(text) for text in texts]
    expected = {
        spell(name)
        for name in names
        if not any(occurs(spell(name), text) for text in said)
    }
    assert entities.find_unseen(names, texts) == expected


def test_an_utterance_is_judged():
    judged = entities.judge(
        ("anna bell", "rome"),
        ("rome", "dome", "anna mell"),
        ("call anna bell in rome", "call anna mell in rome"),
        "en",
        frozenset({"anna bell"}),
        ("rome", "call", "in"),
    )
    assert judged == Entities(
        said=("anna bell", "rome"),
        found=("rome",),
        held_out=("anna bell",),
        hints=("rome", "dome", "anna mell"),
        unsaid=("dome", "anna mell"),
        intruded=("anna mell",),
        inserted=("anna mell",),
    )


def test_a_name_of_the_set_that_nobody_said_is_a_false_insertion():
    texts = ("go to rome", "go to oslo and rome")
    judged = entities.judge(("rome",), (), texts, "en", None, ("oslo", "rome"))
    assert judged.found == ("rome",) and judged.inserted == ("oslo",)
    made = entities.summarise([judged], "none")
    assert made is not None
    assert (made["precision_percent"], made["inserted"]) == (50.0, 1)
    assert "| 100.00 | 50.00 | 1 |" in "| ".join(
        f"{cell} " for cell in entities.list_cells("s", made)
    )


def test_a_set_is_summed_up():
    rows = [
        Entities(("a", "b"), ("a",), ("b",), ("a", "x"), ("x",), ("x",), ("x",)),
        Entities(("c",), ("c",), ("c",), ("c", "y", "z"), ("y", "z")),
        Entities((), (), ()),
    ]
    made = entities.summarise(rows, "both")
    assert made is not None
    assert (made["said"], made["found"], made["recall_percent"]) == (3, 2, 66.667)
    assert (made["inserted"], made["precision_percent"]) == (1, 66.667)
    assert made["held_out"] == {"said": 2, "found": 1, "recall_percent": 50.0}
    assert made["hints"] == {
        "mode": "both",
        "utterances": 2,
        "hints": 5,
        "outputs": 2,
        "intruded": 1,
        "intruded_percent": 50.0,
    }
    assert len(entities.list_cells("s", made)) == len(entities.COLUMNS)


def test_without_names_and_hints_there_is_nothing_to_tell():
    assert entities.summarise([Entities()], "none") is None
    made = entities.summarise([Entities(said=("a",))], "none")
    assert made == {
        "said": 1,
        "found": 0,
        "recall_percent": 0.0,
        "inserted": 0,
        "precision_percent": None,
    }
    made = entities.summarise([Entities()], "said")
    assert made is not None and set(made) == {"hints"}
    assert len(entities.list_cells("s", made)) == len(entities.COLUMNS)
