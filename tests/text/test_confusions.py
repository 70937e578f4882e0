"""Measured confusions: counted, estimated, kept in a file, and read again."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nim4_jax.context import distractors
from nim4_jax.eval import confusions as listening
from nim4_jax.text import confusions
from nim4_jax.text.phonemes import INVENTORY, PHONEME_IDS

UNITS = st.lists(st.integers(1, len(INVENTORY) - 1), max_size=8)


@settings(max_examples=100, deadline=None)
@given(said=UNITS, heard=UNITS)
def test_an_alignment_holds_both_sides_and_is_the_cheapest(said, heard):
    pairs = listening.align(said, heard)
    assert [a for a, _ in pairs if a] == said
    assert [b for _, b in pairs if b] == heard
    costs, gap = distractors.costs(), distractors.GAP
    spent = sum(costs[a, b] if a and b else gap for a, b in pairs)
    cheapest = distractors._compare(
        np.array(said, np.uint8), np.array(heard, np.uint8), costs
    )
    assert np.isclose(spent, cheapest)


def test_equal_sequences_are_all_hits():
    assert listening.align([5, 6, 6], [5, 6, 6]) == [(5, 5), (6, 6), (6, 6)]


def make_counts():
    """AH is heard as IH one time in five and lost one time in ten; EH is put in."""
    ah, ih, eh = (PHONEME_IDS[name] for name in ("AH", "IH", "EH"))
    counts = confusions.Counts()
    for pair, times in (
        ((ah, ah), 700),
        ((ah, ih), 200),
        ((ah, 0), 100),
        ((0, eh), 60),
    ):
        for _ in range(times):
            counts.add(*pair)
    for _ in range(1000):
        counts.add(PHONEME_IDS["S"], PHONEME_IDS["S"])
    return counts


def test_what_was_counted_is_estimated_and_the_rest_sounds_alike():
    counts = make_counts()
    made = counts.estimate()
    ah, ih, eh, s = (PHONEME_IDS[name] for name in ("AH", "IH", "EH", "S"))
    np.testing.assert_allclose(made.substitutes[1:].sum(axis=1), 1.0, rtol=1e-5)
    assert made.substitutes[ah, ih] > 0.9 and made.substitutes[ah, ah] == 0.0
    assert made.substitutes[PHONEME_IDS["B"], PHONEME_IDS["P"]] > 0.0
    assert 0.3 < made.dropped[ah] < 0.37
    assert made.proneness[ah] > 1.8 > 0.2 > made.proneness[s]
    assert made.inserted.argmax() == eh and made.insertions == pytest.approx(0.2)
    assert counts.rate == pytest.approx(0.18)


def test_counts_survive_their_file(tmp_path):
    path, counts = tmp_path / "confusions.json", make_counts()
    counts.write(path, {"model": "m"})
    np.testing.assert_array_equal(confusions.read(str(path)).pairs, counts.pairs)
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"phonemes": "x"}))
    with pytest.raises(ValueError, match="another phoneme inventory"):
        confusions.read(str(path))
    for broken in ("", "[]", '{"heard": {}}'):
        path.write_text(broken)
        with pytest.raises(ValueError, match=r"confusions\.json: no confusions"):
            confusions.read(str(path))
    with pytest.raises(ValueError, match="one of base"):
        confusions.read("none.json")


def test_the_packaged_head_errs_as_measured():
    """Rates of errors are 1 on average of each language, by what was said."""
    counts = confusions.read("base")
    made = counts.estimate()
    assert 0.1 < counts.rate < 0.25 and 0.05 < made.insertions < 0.5
    said = counts.pairs.sum(axis=1)
    english = np.array([name.isupper() for name in INVENTORY])
    for own in (english, ~english):
        own = own & (np.arange(len(INVENTORY)) > 0)
        average = (made.proneness * said)[own].sum() / said[own].sum()
        assert 0.9 < average < 1.1
    worst = made.substitutes[PHONEME_IDS["IH"]].argmax()
    assert INVENTORY[worst] == "AH"


def test_a_specification_is_named_without_folders():
    spec = "noisy:10@/a/b/noise/m.jsonl?split=train:/c/d/libri/m.jsonl?split=train"
    short = "noisy:10@noise/m.jsonl?split=train:libri/m.jsonl?split=train"
    assert listening.name_set(spec) == short
    assert listening.name_set("bundled:commands:train") == "bundled:commands:train"
