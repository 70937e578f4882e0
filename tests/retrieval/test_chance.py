"""What is expected by chance is what is counted."""

import itertools

import numpy as np
import pytest

from nim4_jax.data.sources import opening
from nim4_jax.retrieval import automaton, chance
from nim4_jax.text import phonemes


def read(split):
    records = opening.open_source(f"bundled:commands:{split}")
    return [records[index]["text"] for index in range(len(records))]


def test_expectations_sum_to_the_rate_of_phonemes():
    model = chance.PhonemeTrigrams(read("test"))
    count = len(phonemes.INVENTORY)
    singles = [bytes([a]) for a in range(1, count)]
    pairs = [bytes(p) for p in itertools.product(range(count), repeat=2)]
    rate = chance.PHONEMES_PER_HOUR
    assert model.expect(singles).sum() == pytest.approx(rate, rel=1e-3)
    assert model.expect(pairs).sum() == pytest.approx(rate, rel=1e-2)


def test_expected_is_near_what_unseen_text_holds():
    model = chance.PhonemeTrigrams(read("train"))
    heard = [bytes(phonemes.encode_phonemes(text)) for text in read("test")]
    total = sum(map(len, heard))
    keys = {text[i : i + 3] for text in heard for i in range(len(text) - 2)}
    machine, numbered = automaton.build(keys)
    counts = np.zeros(len(numbered))
    for text in heard:
        _, matches = machine.scan(0, np.frombuffer(text, np.uint8))
        np.add.at(counts, matches.keys, 1)
    expected = model.expect(numbered) * total / chance.PHONEMES_PER_HOUR
    often = counts >= 8
    assert often.sum() > 10
    ratio = expected[often].sum() / counts[often].sum()
    assert 0.5 < ratio < 2.0


def test_texts_without_phonemes_are_refused():
    with pytest.raises(ValueError, match="no phonemes"):
        chance.PhonemeTrigrams(["…", ""])
