"""Recordings of an evaluation set, read, cut where too long and batched."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Sequence

import numpy as np
from jaxtyping import Float

from nim4_jax.data.audio import reading
from nim4_jax.data.pipeline import iterators
from nim4_jax.data.pipeline.config import DataConfig
from nim4_jax.data.sources import conditions, examples, opening, records
from nim4_jax.data.sources.skips import SkipReport
from nim4_jax.decode import subtitles
from nim4_jax.decode.hotwords import Prompted
from nim4_jax.decode.recogniser import Transcript
from nim4_jax.decode.segments import AudioBatch, Batcher, Cutter
from nim4_jax.decode.silero import Silero
from nim4_jax.eval.shared import Samples

_BLOCK_SECONDS = 10.0


def choose(size: int, limit: int) -> set[int]:
    """Indices of `limit` of `size` utterances, spread evenly; of all if it is 0."""
    if 0 < limit < size:
        return {int(place) for place in np.linspace(0, size - 1, limit)}
    return set(range(size))


def read(
    spec: str, chosen: Collection[int], config: DataConfig, report: SkipReport
) -> Iterator[Samples]:
    """The chosen recordings, those that fit a bucket first, shortest first.

    Args:
        spec: of the set.
        chosen: indices.
        config: with the set as its only source; what is longer than its largest bucket
            comes whole.
        report: counts what cannot be read.
    """
    corpus = opening.open_source(spec)
    long = find_long(corpus, chosen, config.bucket_seconds[-1])
    for arrays in iterators.iterate_eval(
        config, report=report, only=set(chosen) - long
    ):
        for row, index in enumerate(arrays["index"]):
            if arrays["valid"][row]:
                yield int(index), arrays["audio"][row][arrays["audio_mask"][row]]
    for index in sorted(long):
        record = corpus[index]
        try:
            yield index, read_long(record)
        except reading.AudioError as error:
            report.add(error.reason, index, record["origin"], str(error))


def find_long(
    corpus: examples.Source, chosen: Collection[int], limit: float
) -> set[int]:
    """Those of the chosen records that last longer than `limit` seconds.

    Lengths are what records or the headers of their audio say. Audio without a readable
    header is not long.
    """
    return {
        index
        for index in chosen
        if conditions.measure(examples.describe(corpus, index)) > limit
    }


def read_long(record: examples.Record) -> Float[np.ndarray, " S"]:
    """All samples of a record at 16 kHz, as `nim4 transcribe` reads a file.

    Raises:
        AudioError: they cannot be read.
    """
    if isinstance(record["audio"], np.ndarray):
        return records.decode(record)
    blocks = list(records.read_blocks(record, _BLOCK_SECONDS))
    return np.concatenate([*blocks, np.zeros(0, np.float32)])


class Gatherer:
    """Makes batches of recordings that may be longer than the largest shape.

    Batches are gathered anew, so that a selection fills its rows too. The keys of their
    rows are (index, start in s): a recording longer than the largest shape is in pieces
    that end where nobody speaks, as in `nim4 transcribe`, unless it is to stay whole.

    Attributes:
        seconds: length of every recording so far, by index.
        spent: processing time of all cutting so far, s.
    """

    def __init__(
        self,
        bucket_seconds: tuple[float, ...],
        rows: tuple[int, ...],
        *,
        whole: bool = False,
    ):
        """Prepare.

        Args:
            bucket_seconds: lengths of the batch shapes, growing.
            rows: rows of each.
            whole: long recordings come alone, in a batch of their own length: for
                whoever hears them as streams.
        """
        self.seconds: dict[int, float] = {}
        self.spent = 0.0
        self._batcher = Batcher(bucket_seconds, rows, long_alone=whole)
        self._cutter = None if whole else Cutter(bucket_seconds[-1], Silero)

    def gather(self, recordings: Iterable[Samples]) -> Iterator[AudioBatch]:
        """Batches of fixed shapes, and what is left at the end."""
        return self._batcher.gather(self._cut_all(recordings))

    def _cut_all(
        self, recordings: Iterable[Samples]
    ) -> Iterator[tuple[tuple[int, float], np.ndarray]]:
        """Pieces under their keys; of a recording in which nobody speaks, none."""
        for index, samples in recordings:
            self.seconds[index] = len(samples) / reading.SAMPLE_RATE
            if self._cutter is None:
                yield (index, 0.0), samples
                continue
            start = time.perf_counter()
            pieces = list(self._cutter.cut([samples]))
            self.spent += time.perf_counter() - start
            for piece in pieces:
                yield (index, piece.start), piece.samples


def join(pieces: Sequence[Transcript], seconds: float) -> Transcript:
    """The transcript of a recording from those of its pieces.

    Args:
        pieces: in order of time; none where nobody speaks. One alone is the result.
        seconds: of the recording.
    """
    if len(pieces) == 1:
        return pieces[0]
    fields = {
        "text": subtitles.join_texts(piece.text for piece in pieces),
        "tokens": tuple(token for piece in pieces for token in piece.tokens),
        "log_prob": sum(piece.log_prob for piece in pieces),
        "finished": all(piece.finished for piece in pieces),
        "words": (),
        "phonemes": tuple(unit for piece in pieces for unit in piece.phonemes),
        "duration": seconds,
        "token_log_probs": tuple(p for piece in pieces for p in piece.token_log_probs),
    }
    found = [piece.hints for piece in pieces if isinstance(piece, Prompted)]
    if not found:
        return Transcript(**fields)
    names = dict.fromkeys(name for hints in found for name in hints)
    return Prompted(**fields, hints=tuple(names))
