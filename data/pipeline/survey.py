"""Measurement of all examples before planning, and removal of unusable ones."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np

from nim4_jax.data.audio import reading
from nim4_jax.data.pipeline import buckets, transforms
from nim4_jax.data.pipeline.buckets import Bucket, Lengths
from nim4_jax.data.pipeline.config import DataConfig, make_buckets
from nim4_jax.data.sources import examples, nonspeech, opening, records
from nim4_jax.data.sources.skips import (
    EMPTY_TRANSCRIPT,
    NO_PHONEME,
    TOO_MANY_LABELS,
    TOO_SHORT_FOR_CTC,
    SkipReport,
)

# Streams of random numbers: lengths without speech, which examples are measured.
_NONSPEECH, _SAMPLE = 0x1E46, 0x5A3F


@dataclass
class Examples:
    """The examples of a configuration with all that a plan needs to know of them.

    Attributes:
        corpus: the records.
        weights: of the corpus's sources.
        lengths: of all examples.
        phonemes: phoneme ids of all examples.
        tokens: answer tokens of all examples.
        usable: bool [examples].
        recordings: int64 [num_speech], equal where the audio is the same.
    """

    corpus: examples.Corpus
    weights: list[float]
    lengths: Lengths
    phonemes: transforms.Ragged
    tokens: transforms.Ragged
    usable: np.ndarray
    recordings: np.ndarray

    @property
    def num_speech(self) -> int:
        """Examples from this index on hold no speech."""
        return len(self.recordings)


def survey(
    config: DataConfig,
    report: SkipReport,
    *,
    training: bool,
    only: Collection[int] | None = None,
) -> Examples:
    """Measure every example and sort out what cannot be used, counting it.

    In training an example needs audio that fits a bucket and labels that CTC can align.
    In evaluation it needs the audio only: labels that do not fit are left out, counted.
    Only training has examples without speech. Examples that are not in `only`, if that
    is given, are not looked at, nor counted.

    Raises:
        ValueError: nothing is left, and all was asked for.
    """
    corpus, weights = opening.open_sources(config.sources)
    shapes = make_buckets(config)
    seconds = np.zeros(len(corpus))
    usable = np.ones(len(corpus), bool)
    texts, origins = [], []
    numbers: dict[str, int] = {}  # of recordings, by name
    recordings = []
    for index in range(len(corpus)):
        if only is not None and index not in only:
            usable[index] = False
            texts.append("")
            origins.append("")
            recordings.append(-1)
            continue
        record = corpus[index]
        texts.append(record["text"])
        origins.append(record["origin"])
        name = records.name(record)
        recordings.append(numbers.setdefault(name, len(numbers)))
        try:
            seconds[index] = _measure(record, shapes[-1].seconds)
        except reading.AudioError as error:
            usable[index] = False
            report.add(error.reason, index, record["origin"], str(error))
    spoken, written = transforms.encode_text(texts, config.needs, config.tokenizer)
    lengths = Lengths(
        seconds,
        spoken.lengths,
        spoken.count_repeats(),
        written.lengths,
        config.rates,
    )
    misfits = _find_misfits(config, texts, lengths, shapes)
    for reason, found in misfits.items():
        for index in np.flatnonzero(found & usable):
            what = "labels left out: " if not training else ""
            detail = f"{texts[index]!r}, {seconds[index]:.2f} s"
            report.add(what + reason, int(index), origins[index], detail)
        if training:
            usable &= ~found
    if not training:
        lengths = _leave_out(lengths, np.any(list(misfits.values()), axis=0))
    if not usable.any() and only is None:
        raise ValueError(f"no example can be used:\n{report.summary()}")
    examples = Examples(
        corpus, weights, lengths, spoken, written, usable, np.array(recordings)
    )
    wanted = training and config.nonspeech_share
    return _append_nonspeech(config, examples) if wanted else examples


def sample(config: DataConfig, hours: float) -> set[int] | None:
    """Random examples of about so many hours, the same ones on every host.

    Args:
        config: whose sources; its seed decides which.
        hours: of audio; 0 for all.

    Returns:
        Indices for `survey`'s `only`; None where that is everything.
    """
    corpus, _ = opening.open_sources(config.sources)
    rng = np.random.default_rng((config.seed, _SAMPLE))
    # Few recordings are shorter than half a second.
    count = min(len(corpus), int(7200 * hours))
    chosen, left = set(), 3600.0 * hours
    for index in rng.choice(len(corpus), count, replace=False):
        if left <= 0:
            return chosen
        chosen.add(int(index))
        record = corpus[int(index)]
        with contextlib.suppress(reading.AudioError):  # `survey` counts them
            left -= _measure(record, config.bucket_seconds[-1])
    return chosen if 0 < count < len(corpus) else None


def _append_nonspeech(config: DataConfig, speech: Examples) -> Examples:
    """The examples and, behind them, those without speech, as long as speech is.

    `open_examples` cannot know which examples are usable, and makes enough for all.
    """
    corpus, weights = opening.open_examples(config.sources, config.nonspeech_share)
    extra = len(corpus) - len(speech.corpus)
    groups = [speech.corpus.group(n) for n in range(len(speech.corpus.sources))]
    sizes = [np.count_nonzero(speech.usable[group]) for group in groups]
    wanted = nonspeech.count_examples(config.nonspeech_share, sizes, speech.weights)
    rng = np.random.default_rng((config.seed, _NONSPEECH))
    seconds = rng.choice(speech.lengths.seconds[speech.usable], extra)
    spoken, written = transforms.encode_text(
        [None] * extra, config.needs, config.tokenizer
    )
    lengths = buckets.Lengths(
        np.concatenate([speech.lengths.seconds, seconds]),
        np.concatenate([speech.lengths.phonemes, spoken.lengths]),
        np.concatenate([speech.lengths.repeats, spoken.count_repeats()]),
        np.concatenate([speech.lengths.tokens, written.lengths]),
        config.rates,
    )
    return Examples(
        corpus,
        weights,
        lengths,
        speech.phonemes.join(spoken),
        speech.tokens.join(written),
        np.concatenate([speech.usable, np.arange(extra) < wanted]),
        speech.recordings,
    )


def _measure(record: examples.Record, max_seconds: float) -> float:
    """Duration of a record, from its field or its header.

    Raises:
        AudioError: no audio, or longer than the largest bucket.
    """
    name, seconds = records.name(record), records.measure(record)
    if seconds <= 0:
        raise reading.AudioError("zero length", name, "it lasts 0 s")
    if seconds > max_seconds:
        raise reading.AudioError(
            "too long", name, f"{seconds:.2f} s, the largest bucket is {max_seconds} s"
        )
    return seconds


def _find_misfits(
    config: DataConfig,
    texts: Sequence[str],
    lengths: Lengths,
    shapes: tuple[Bucket, ...],
) -> dict[str, np.ndarray]:
    """Examples whose labels cannot be used, bool [examples] by reason, disjoint."""
    empty = np.array([not text.strip() for text in texts])
    many = (lengths.phonemes > shapes[-1].phonemes) | (
        lengths.tokens > shapes[-1].tokens
    )
    misfits = {}
    if config.needs:
        misfits[EMPTY_TRANSCRIPT] = empty
    if "phonemes" in config.needs:
        misfits[NO_PHONEME] = ~empty & (lengths.phonemes == 0)
        short = ~buckets.is_ctc_feasible(lengths)
        misfits[TOO_SHORT_FOR_CTC] = short & ~empty & (lengths.phonemes > 0)
        many &= ~misfits[TOO_SHORT_FOR_CTC]
    misfits[TOO_MANY_LABELS] = many & ~empty
    return misfits


def _leave_out(lengths: Lengths, rows: np.ndarray) -> Lengths:
    """The same lengths without the labels of `rows` (bool [examples])."""
    kept = ~rows
    return replace(
        lengths,
        phonemes=lengths.phonemes * kept,
        repeats=lengths.repeats * kept,
        tokens=lengths.tokens * kept,
    )
