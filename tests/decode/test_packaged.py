"""What comes with the package hears."""

import numpy as np
import pytest

from nim4_jax.data.audio import reading
from nim4_jax.data.sources import opening
from nim4_jax.eval.measures import error_rates
from nim4_jax.serving import recognisers
from nim4_jax.text import phonemes
from nim4_jax.types import Frames

RECORDINGS = 4


@pytest.mark.parametrize("chunk_ms", [0, 640])
def test_base_hears_commands_that_it_never_met(chunk_ms):
    """Phonemes of bundled recordings, whole and in chunks; most of them right."""
    origin = "package:base_stage1.safetensors"
    recogniser = recognisers.load(origin, chunk_ms=chunk_ms, left=40).recogniser
    assert recogniser.programs.rates.frame_seconds == 0.02
    records = opening.open_source("bundled:commands:test")
    rows = [records[index] for index in range(RECORDINGS)]
    samples = [reading.decode(row["audio"]) for row in rows]
    size = max(map(len, samples))
    values = np.stack([np.pad(one, (0, size - len(one))) for one in samples])
    mask = np.arange(size)[None] < np.array([[len(one)] for one in samples])
    heard = recogniser.hear_phonemes(Frames(values, mask))
    counts = error_rates.add_up(
        error_rates.score_phonemes(phonemes.encode_phonemes(row["text"]), ids)
        for row, ids in zip(rows, heard, strict=True)
    )
    assert counts.reference > 40
    assert counts.percent < 35.0
