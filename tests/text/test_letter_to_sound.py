"""The letter-to-sound model: a small one learns, the shipped one is as good as said."""

import math

import numpy as np
import pytest

from nim4_jax.launch import train_g2p
from nim4_jax.text import g2p, g2p_training, graphones, letter_to_sound
from nim4_jax.text.letter_to_sound import LetterToSound, load_model


class Reference:
    """The search as it is defined: slow, over whole distributions, in logarithms.

    A context is the tuple of its suffixes' nodes, from the root to longer ones.
    """

    def __init__(self, model: LetterToSound):
        self.model = model

    def children(self, node: int) -> dict[int, int]:
        """Graphone → child of a node."""
        low, high = self.model.first[node : node + 2].tolist()
        return dict(zip(self.model.symbols[low:high].tolist(), range(low, high)))

    def extend(self, context: tuple[int, ...], graphone: int) -> tuple[int, ...]:
        nodes = [0]
        for node in context[: self.model.order - 1]:
            if graphone not in self.children(node):
                break
            nodes.append(self.children(node)[graphone])
        return tuple(nodes)

    def distribution(self, context: tuple[int, ...]) -> np.ndarray:
        """P(graphone | context)."""
        values = np.zeros(len(self.model.letters))
        for node in context:
            own = self.children(node)
            terms = np.exp(self.model.weights[list(own.values())] / -20.0)
            values *= max(1.0 - terms.sum(), 1e-5)
            values[list(own)] += terms
        return np.maximum(values, 1e-12)

    def search(self, word: str, beam: int) -> dict[tuple[str, ...], float]:
        """ln P of each pronunciation that the beam holds at the end."""
        hypotheses = {(self.extend((0,), 0), ()): 0.0}
        for letter in word:
            merged: dict = {}
            own = [i for i, other in enumerate(self.model.letters) if other == letter]
            for (context, spoken), score in hypotheses.items():
                logs = np.log(self.distribution(context))
                for graphone in sorted(own, key=lambda i: -logs[i])[:beam]:
                    said = spoken + self.model.phonemes[graphone]
                    key = (self.extend(context, graphone), said)
                    before = merged.get(key, -math.inf)
                    merged[key] = np.logaddexp(before, score + logs[graphone])
            best = sorted(merged, key=lambda key: -merged[key])[:beam]
            hypotheses = {key: merged[key] for key in best}
        totals: dict[tuple[str, ...], float] = {}
        for (context, spoken), score in hypotheses.items():
            end = score + np.log(self.distribution(context)[1])
            totals[spoken] = np.logaddexp(totals.get(spoken, -math.inf), end)
        return totals


@pytest.fixture(scope="module")
def small() -> LetterToSound:
    pairs = [
        (a + b + c, (a.upper(), "EY" if b == "a" else "IY", *x.split()))
        for a in "bdfgklmnprst"
        for b in "ae"
        for c, x in [("b", "B"), ("x", "K S"), ("sh", "SH"), ("", ""), ("ck", "K")]
    ]
    return g2p_training.train(pairs, order=4, cutoffs=[1] * 4, rare=1)


def test_alignment_gives_back_word_and_phonemes():
    pairs = [("box", ("B", "AA", "K", "S")), ("ship", ("SH", "IH", "P"))] * 3
    rows = graphones.align(pairs, floor=-100.0)
    got = sorted(
        ("".join(letter for letter, _ in row), tuple(p for _, ps in row for p in ps))
        for row in rows
    )
    assert got == sorted(pairs)


def test_a_small_model_learns_its_rules(small):
    assert small.predict("tax") == ("T", "EY", "K", "S")
    assert small.predict("desh") == ("D", "IY", "SH")
    assert small.predict("meck") == ("M", "IY", "K")
    assert small.predict("") == () == small.predict("!?")


def interpolate(model: LetterToSound, context: tuple[int, ...]) -> np.ndarray:
    """P(graphone | context) from what the search computes for each letter."""
    tables = model._tables
    row = np.full(model.order, -1, np.int32)
    row[: len(context)] = context
    values = np.zeros(len(model.letters))
    for letter in range(len(tables.runs) - 1):
        own = slice(*tables.runs[letter : letter + 2])
        children = np.zeros((len(values[own]), model.order), np.int32)
        letter_to_sound._interpolate(tables, row, letter, values[own], children)
    return values


def test_probabilities_sum_to_one_and_are_those_of_the_definition(small):
    reference = Reference(small)
    contexts = [reference.extend((0,), 0)]
    for graphone in range(2, len(small.letters)):
        contexts.append(reference.extend(contexts[-1], graphone))
    for context in contexts:
        values = interpolate(small, context)
        assert values.sum() == pytest.approx(1.0, abs=0.05)  # 8-bit weights
        np.testing.assert_allclose(values, reference.distribution(context), rtol=1e-9)


def assert_finds_the_best(model: LetterToSound, word: str, beam: int):
    totals = Reference(model).search(word, beam)
    found = model.predict(word, beam)
    assert totals[found] == pytest.approx(max(totals.values()), abs=1e-6), word


@pytest.mark.parametrize("beam", [1, 3, 12])
def test_search_is_that_of_the_definition(small, beam):
    for word in ("tax", "meck", "desh", "xxkk", "ckckck", "shshe", "a", ""):
        assert_finds_the_best(small, word, beam)


def test_search_in_the_shipped_model_is_that_of_the_definition():
    words = sorted(g2p.load_dictionary())[::2100]
    words = [word for word in words if word.isascii() and word.isalpha()]
    assert len(words) > 50
    for word in [*words, "llewellyn", "ouagadougou", "zzxqj"]:
        assert_finds_the_best(load_model(), word, 12)


def test_graphones_without_an_ngram_are_searched_too():
    graphones_of_a = [("a", ("AA",)), ("a", ("AE",)), ("a", ("EY", "AA"))]
    inventory = [("<s>", ()), ("</s>", ()), *graphones_of_a, ("b", ("B",))]
    model = LetterToSound.build(inventory, [{(1,): 0.5, (3,): 0.5}, {(3, 1): 0.9}])
    assert model.predict("a") == ("AE",)
    for word in ("aa", "aba", "baab"):
        assert_finds_the_best(model, word, 12)


def test_a_beam_of_none_and_letters_apart_are_named(small):
    with pytest.raises(ValueError, match="beam=0 keeps no hypothesis"):
        small.predict("tax", beam=0)
    apart = [("<s>", ()), ("</s>", ()), ("a", ("AA",)), ("b", ("B",)), ("a", ())]
    with pytest.raises(ValueError, match="sort them by letter"):
        LetterToSound.build(apart, [{(1,): 1.0}])


def test_bytes_round_trip(small):
    again = LetterToSound.from_bytes(small.to_bytes())
    assert again.letters == small.letters and again.order == small.order
    for word in ("bax", "sesh", "tock", "qqq"):
        assert again.predict(word) == small.predict(word)


def test_a_word_never_seen_still_sounds():
    guess = load_model().predict("qxzjvwk")
    assert guess and set(guess) <= set(g2p.ARPABET)


def test_shipped_model_on_held_out_words():
    held_out: dict[str, list[tuple[str, ...]]] = {}
    for word, reading in g2p.iterate_readings():
        if word.isascii() and word.isalpha() and train_g2p.is_held_out(word):
            held_out.setdefault(word, []).append(reading)
    words = sorted(held_out)[::40]
    figures = g2p_training.score(load_model(), {word: held_out[word] for word in words})
    assert figures["words"] > 140
    assert figures["word_accuracy"] > 0.64
    assert figures["phoneme_error"] < 0.095


def test_count_edits():
    assert g2p_training.count_edits((), ("A",)) == 1
    assert g2p_training.count_edits(("A", "B", "C"), ("A", "C")) == 1
    assert g2p_training.count_edits(("A", "B"), ("B", "A")) == 2


def test_command_writes_a_model_and_prints_figures(tmp_path, capsys):
    out = tmp_path / "model.xz"
    train_g2p.main([f"--out={out}", "--limit=600", "--sample=20", "--order=3"])
    assert '"word_accuracy"' in capsys.readouterr().out
    assert LetterToSound.from_bytes(out.read_bytes()).order == 3


def test_command_names_a_wrong_number_of_cutoffs(tmp_path, capsys):
    with pytest.raises(SystemExit):
        train_g2p.main([f"--out={tmp_path / 'x'}", "--cutoffs=1,1", "--order=3"])
    assert "--cutoffs has 2 values for --order=3" in capsys.readouterr().err
