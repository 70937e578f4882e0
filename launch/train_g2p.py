"""Trains the letter-to-sound model for English words that the dictionary lacks.

    python launch/train_g2p.py --out=nim4_jax/text/resources/letter_to_sound.xz

Words whose CRC-32 is divisible by 20 (5 %) are held out, and the model that is written
has never seen them: the figures printed are those of the file itself.
"""

from __future__ import annotations

import json
import time
import zlib
from pathlib import Path

import numpy as np
from absl import app, flags

from nim4_jax.text import g2p, graphones
from nim4_jax.text.letter_to_sound import END, START, LetterToSound

_OUT = flags.DEFINE_string("out", None, "file to write, e.g. letter_to_sound.xz")
_ORDER = flags.DEFINE_integer("order", 7, "longest n-gram of graphones")
_CUTOFFS = flags.DEFINE_list(
    "cutoffs", ["1", "1", "1", "2", "2", "2", "2"], "least count of a kept n-gram"
)
_RARE = flags.DEFINE_integer("rare", 5, "least count of a graphone")
_LIMIT = flags.DEFINE_integer("limit", 0, "use only the first words (0: all)")
_SAMPLE = flags.DEFINE_integer("sample", 2000, "held-out words to score (0: all)")
flags.mark_flag_as_required("out")

Entry = tuple[str, tuple[str, ...]]


def is_held_out(word: str) -> bool:
    """Whether a word belongs to the 5 % that training never sees."""
    return zlib.crc32(word.encode()) % 20 == 0


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
            row[j] = min(previous[j] + 1, row[j - 1] + 1, previous[j - 1] + (want != got))
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


def main(_: list[str]) -> None:
    entries = [
        (word, reading)
        for word, reading in g2p.iterate_readings()
        if len(word) > 1 and all(c in graphones.LETTER_SET for c in word)
    ]
    entries = entries[: _LIMIT.value or None]
    started = time.monotonic()
    training = [entry for entry in entries if not is_held_out(entry[0])]
    cutoffs = [int(value) for value in _CUTOFFS.value]
    if len(cutoffs) != _ORDER.value:
        raise ValueError(
            f"--cutoffs has {len(cutoffs)} values for --order={_ORDER.value}: give one "
            "least count for each order from 1"
        )
    model = train(training, _ORDER.value, cutoffs, _RARE.value)
    content = model.to_bytes()
    Path(_OUT.value).write_bytes(content)
    held_out: dict[str, list[tuple[str, ...]]] = {}
    for word, reading in entries:
        if is_held_out(word):
            held_out.setdefault(word, []).append(reading)
    words = list(held_out)[: _SAMPLE.value or None]
    figures = score(model, {word: held_out[word] for word in words})
    figures |= {
        "graphones": len(model.letters),
        "ngrams": len(model.symbols),
        "bytes": len(content),
        "seconds": round(time.monotonic() - started, 1),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    app.run(main)
