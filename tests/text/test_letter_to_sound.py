"""The letter-to-sound model: a small one learns, the shipped one is as good as said."""

import numpy as np
import pytest

from nim4_jax.launch import train_g2p
from nim4_jax.text import g2p, graphones
from nim4_jax.text.letter_to_sound import LetterToSound, load_model


@pytest.fixture(scope="module")
def small() -> LetterToSound:
    pairs = [
        (a + b + c, (a.upper(), "EY" if b == "a" else "IY", *x.split()))
        for a in "bdfgklmnprst"
        for b in "ae"
        for c, x in [("b", "B"), ("x", "K S"), ("sh", "SH"), ("", ""), ("ck", "K")]
    ]
    return train_g2p.train(pairs, order=4, cutoffs=[1] * 4, rare=1)


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


def test_probabilities_sum_to_one(small):
    contexts = [small._extend((0,), 0)]
    for symbol in range(2, len(small.letters)):
        contexts.append(small._extend(contexts[-1], symbol))
    for context in contexts:
        total = np.exp(small._distribution(context)).sum()
        assert total == pytest.approx(1.0, abs=0.05)  # 8-bit weights


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
    figures = train_g2p.score(load_model(), {word: held_out[word] for word in words})
    assert figures["words"] > 140
    assert figures["word_accuracy"] > 0.64
    assert figures["phoneme_error"] < 0.095


def test_count_edits():
    assert train_g2p.count_edits((), ("A",)) == 1
    assert train_g2p.count_edits(("A", "B", "C"), ("A", "C")) == 1
    assert train_g2p.count_edits(("A", "B"), ("B", "A")) == 2


def test_command_writes_a_model_and_prints_figures(tmp_path, capsys):
    out = tmp_path / "model.xz"
    train_g2p.main([f"--out={out}", "--limit=600", "--sample=20", "--order=3"])
    assert '"word_accuracy"' in capsys.readouterr().out
    assert LetterToSound.from_bytes(out.read_bytes()).order == 3


def test_command_names_a_wrong_number_of_cutoffs(tmp_path, capsys):
    with pytest.raises(SystemExit):
        train_g2p.main([f"--out={tmp_path / 'x'}", "--cutoffs=1,1", "--order=3"])
    assert "--cutoffs has 2 values for --order=3" in capsys.readouterr().err
