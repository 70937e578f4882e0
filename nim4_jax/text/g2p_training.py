"""Training of the letter-to-sound model, and its score on held-out words."""

from __future__ import annotations

import numpy as np

from nim4_jax.text import graphones
from nim4_jax.text.letter_to_sound import END, START, LetterToSound

Entry = tuple[str, tuple[str, ...]]
"""A word and one of its readings."""


def train(
    pairs: list[Entry], order: int, cutoffs: list[int], rare: int
) -> LetterToSound:
    """Aligns the pairs, counts graphone n-grams and packs them into a model."""
    rows = graphones.prune_rare(graphones.align(pairs), rare)
    units = sorted({graphone for row in rows for graphone in row})
    inventory = [(START, ()), (END, ()), *units]
    ids = {graphone: i for i, graphone in enumerate(inventory)}
    sequences = [[0, *(ids[graphone] for graphone in row), 1] for row in rows]
    tables = graphones.count_ngrams(sequences, order, cutoffs)
    return LetterToSound.build(inventory, tables)


def count_edits(reference: tuple[str, ...], hypothesis: tuple[str, ...]) -> int:
    """Levenshtein distance of two phoneme sequences."""
    row = np.arange(len(hypothesis) + 1)
    for i, want in enumerate(reference, 1):
        previous, row = row, np.full_like(row, i)
        for j, got in enumerate(hypothesis, 1):
            substituted = previous[j - 1] + (want != got)
            row[j] = min(previous[j] + 1, row[j - 1] + 1, substituted)
    return int(row[-1])


def score(
    model: LetterToSound, references: dict[str, list[tuple[str, ...]]]
) -> dict[str, float]:
    """Word accuracy and phoneme error over words with one or more right readings."""
    right = edits = length = 0
    for word, readings in references.items():
        guess = model.predict(word)
        nearest = min(readings, key=lambda reading: count_edits(reading, guess))
        right += guess in readings
        edits += count_edits(nearest, guess)
        length += len(nearest)
    return {
        "words": len(references),
        "word_accuracy": right / max(len(references), 1),
        "phoneme_error": edits / max(length, 1),
    }
