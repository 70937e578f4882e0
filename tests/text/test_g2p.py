"""English words: dictionary, acronyms, endings, and a guess for the rest."""

import subprocess
import sys

import pytest

from nim4_jax.text import g2p


@pytest.mark.parametrize(
    ("word", "phonemes"),
    [
        ("house", "HH AW S"), ("Starbucks", "S T AA R B AH K S"),
        ("BMW", "B IY EH M D AH B AH L Y UW"), ("TV", "T IY V IY"),
        ("USB", "Y UW EH S B IY"), ("U.S.", "Y UW EH S"), ("NASA", "N AE S AH"),
        ("TVs", "T IY V IY Z"), ("don't", "D OW N T"), ("don’t", "D OW N T"),
        ("boss's", "B AO S IH Z"), ("spotify's", "S P AA T IH F AY Z"),
        ("café", "K AH F EY"), ("WeChat", "W IY CH AE T"), ("Dr", "D AA K T ER"),
        ("hmmpf", "EY CH EH M EH M P IY EH F"), ("x", "EH K S"), ("", ""), ("ß", ""),
        ("close", "K L OW Z"),
    ],
)  # fmt: skip
def test_words(word, phonemes):
    assert " ".join(g2p.pronounce(word)) == phonemes


def test_unknown_words_are_guessed():
    assert "blorptastic" not in g2p.load_dictionary()
    assert " ".join(g2p.pronounce("blorptastic")) == "B L AO R P T AE S T IH K"
    assert set(g2p.pronounce("z" * 20 + "a" * 5000)) <= set(g2p.ARPABET)


def test_our_own_words_are_well_formed():
    lines = (g2p._RESOURCES / "words.txt").read_text(encoding="utf8").splitlines()
    words = [line.split() for line in lines if not line.startswith("#")]
    for word, *phonemes in words:
        assert word == word.lower() and phonemes
        assert set(phonemes) <= set(g2p.ARPABET), word


def test_import_does_no_work():
    code = (
        "import sys; from nim4_jax.text import phonemes, g2p, normalise;"
        "assert g2p.load_dictionary.cache_info().currsize == 0;"
        "assert not {'pypinyin', 'jax', 'jieba'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
