"""Measurement of phoneme confusions of a trained phoneme head on speech."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from nim4_jax.context import distractors
from nim4_jax.data.pipeline.config import DataConfig
from nim4_jax.data.sources import examples, opening
from nim4_jax.data.sources.skips import SkipReport
from nim4_jax.decode.recogniser import Loaded
from nim4_jax.eval import recordings
from nim4_jax.eval.recordings import Gatherer
from nim4_jax.serving import recognisers
from nim4_jax.text import confusions, phonemes

_LOST = 0.9
"""A recording of which so large a share is wrong is another text's, or none: it would
teach that anything is heard for anything."""


def measure(
    model: str,
    sets: Sequence[str],
    out: str,
    *,
    limit: int = 0,
    chunk_ms: Sequence[int] = (0,),
    left: int = 4,
) -> dict[str, Any]:
    """Count what is heard for what, and write the counts.

    Args:
        model: what `recognisers.load` loads; needs no LLM.
        sets: source specifications, of training speech; noisy ones too.
        out: JSON file to write.
        limit: utterances of each set, spread over it; 0 for all.
        chunk_ms: every set is heard in chunks of each of these lengths, 0 for whole.
        left: chunks seen to the left.

    Returns:
        Model, utterances and phoneme error rate of each set and chunk length.

    Raises:
        ValueError: nothing to load, or no utterance.
    """
    total, rows = confusions.Counts(), []
    for length in chunk_ms:
        loaded = recognisers.load(model, chunk_ms=length, left=left)
        for spec in sets:
            counts, used = _listen(loaded, spec, limit)
            total.pairs += counts.pairs
            rows.append(
                {
                    "set": name_set(spec),
                    "chunk_ms": length,
                    "utterances": used,
                    "phonemes": int(counts.pairs[1:].sum()),
                    "error_rate": round(counts.rate, 4),
                }
            )
    if not total.pairs.any():
        raise ValueError(f"{', '.join(sets)}: no utterance can be used")
    about = {"model": model, "sets": rows}
    total.write(out, about)
    return {**about, "error_rate": round(total.rate, 4)}


def name_set(spec: str) -> str:
    """A specification with the last folder alone of each path: others say nothing."""
    return re.sub(r"/?(?:[^/:@]+/)*([^/:@]+/[^/:@]+)", r"\1", spec)


def _listen(loaded: Loaded, spec: str, limit: int) -> tuple[confusions.Counts, int]:
    """What is heard in a set, and in how many utterances."""
    corpus = opening.open_source(spec)
    data = DataConfig(
        sources=(spec,),
        batch_size=loaded.rows,
        bucket_seconds=loaded.bucket_seconds,
        needs=(),
    )
    chosen = recordings.choose(len(corpus), limit)
    gatherer = Gatherer(loaded.bucket_seconds, loaded.rows)
    pieces: dict[int, dict[float, tuple[int, ...]]] = {}
    samples = recordings.read(spec, chosen, data, SkipReport())
    for batch in gatherer.gather(samples):
        heard = loaded.recogniser.hear_phonemes(batch.audio)
        for (index, start), ids in zip(batch.keys, heard):
            pieces.setdefault(index, {})[start] = ids
    counts, used = confusions.Counts(), 0
    for index, found in sorted(pieces.items()):
        text = examples.describe(corpus, index)["text"]
        said = phonemes.encode_phonemes(text)
        heard = [unit for start in sorted(found) for unit in found[start]]
        pairs = align(said, heard)
        wrong = sum(a != b for a, b in pairs)
        if said and wrong < _LOST * len(said):
            used += 1
            for pair in pairs:
                counts.add(*pair)
    return counts, used


def align(said: Sequence[int], heard: Sequence[int]) -> list[tuple[int, int]]:
    """Pairs of phonemes, 0 where there is none on a side, in order.

    The cheapest edits by how different phonemes sound (`distractors.costs`): a vowel is
    rather lost and a consonant put in than one taken for the other.
    """
    costs, gap = distractors.costs(), distractors.GAP
    table = np.zeros((len(said) + 1, len(heard) + 1))
    table[:, 0] = gap * np.arange(len(said) + 1)
    table[0] = gap * np.arange(len(heard) + 1)
    steps = np.arange(len(heard) + 1) * gap
    for row, unit in enumerate(said, 1):
        paired = table[row - 1, :-1] + costs[unit, list(heard)]
        best = table[row - 1] + gap
        best[1:] = np.minimum(best[1:], paired)
        # Insertions run along the row: cheapest start before, and a gap for each.
        table[row] = np.minimum.accumulate(best - steps) + steps
    return _trace(table, said, heard)


def _trace(
    table: np.ndarray, said: Sequence[int], heard: Sequence[int]
) -> list[tuple[int, int]]:
    """The cheapest path, from its end."""
    costs, gap = distractors.costs(), distractors.GAP
    row, column = len(said), len(heard)
    pairs: list[tuple[int, int]] = []
    while row or column:
        here = table[row, column]
        if row and column:
            pair = said[row - 1], heard[column - 1]
            if np.isclose(here, table[row - 1, column - 1] + costs[pair]):
                pairs.append(pair)
                row, column = row - 1, column - 1
                continue
        if row and np.isclose(here, table[row - 1, column] + gap):
            row -= 1
            pairs.append((said[row], 0))
        else:
            column -= 1
            pairs.append((0, heard[column]))
    return pairs[::-1]
