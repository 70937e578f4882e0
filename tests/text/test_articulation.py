"""Which phonemes sound alike."""

import numpy as np
import pytest

from nim4_jax.text import articulation, mandarin
from nim4_jax.text.phonemes import BLANK, INVENTORY, PHONEME_IDS


def rank(name):
    """All phonemes by falling likelihood of being heard for this one."""
    row = articulation.confusions()[PHONEME_IDS[name]]
    return [INVENTORY[i] for i in np.argsort(-row)]


def test_every_phoneme_has_its_own_place():
    """No two phonemes are the same sound, and only the blank is nowhere."""
    features = articulation.features()
    distances = np.linalg.norm(features[:, None] - features[None], axis=-1)
    np.fill_diagonal(distances, np.inf)
    assert distances.min() > 0.1
    silent = [INVENTORY[i] for i in np.flatnonzero(~features.any(axis=1))]
    assert silent == [BLANK]


def test_confusions_are_distributions_over_others():
    """Rows sum to 1; the diagonal and all that has to do with the blank are 0."""
    table = articulation.confusions()
    assert table.shape == (len(INVENTORY), len(INVENTORY))
    assert (table >= 0).all()
    np.testing.assert_array_equal(np.diag(table), 0.0)
    blank = PHONEME_IDS[BLANK]
    sums = table.sum(axis=1)
    assert sums[blank] == 0 and (table[:, blank] == 0).all()
    np.testing.assert_allclose(np.delete(sums, blank), 1.0, rtol=1e-5)


@pytest.mark.parametrize("final", mandarin.FINALS)
def test_tones_are_confused_first(final):
    """The likeliest slip in a final is its tone."""
    for tone in mandarin.TONES:
        assert rank(final + tone)[0][:-1] == final


@pytest.mark.parametrize(
    ("name", "others"),
    [
        ("P", {"p", "B", "T"}),
        ("IY", {"IH"}),
        ("zh", {"z", "j", "ch"}),
        ("S", {"TH", "SH", "s"}),
        ("M", {"m", "N"}),
        ("ang1", {"an1", "ang2", "ang3", "ang4", "ang5"}),
        ("in2", {"ing2", "in1", "in5"}),
    ],
)
def test_neighbours_are_those_of_phonetics(name, others):
    """What listeners mix up is among the eight likeliest."""
    assert others <= set(rank(name)[:8])
