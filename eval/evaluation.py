"""Evaluation of one model on one data set: recognise, score and time."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from nim4_jax.data.pipeline.config import DataConfig
from nim4_jax.data.sources import examples, opening
from nim4_jax.data.sources.skips import SkipReport
from nim4_jax.decode.hotwords import Prompted
from nim4_jax.decode.recogniser import Transcript
from nim4_jax.decode.segments import AudioBatch
from nim4_jax.eval import hints, recordings
from nim4_jax.eval.hints import Fact, HintConfig
from nim4_jax.eval.measures import biasing, entities, error_rates, normalisers
from nim4_jax.eval.measures.biasing import NameList
from nim4_jax.eval.measures.entities import Entities
from nim4_jax.eval.measures.error_rates import Counts
from nim4_jax.eval.recordings import Gatherer
from nim4_jax.eval.shared import Samples, Shared, System
from nim4_jax.eval.streaming import StreamedRecogniser
from nim4_jax.text import phonemes, prompt
from nim4_jax.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """How sets are evaluated.

    Attributes:
        bucket_seconds: lengths of the batch shapes; longer audio is cut where nobody
            speaks, or heard whole where it is heard as a stream.
        rows: rows of each shape.
        text: whether transcripts are scored; needs an LLM.
        phonemes: whether the phoneme head's greedy output is scored.
        shuffle_audio: also score each reference against the audio of another utterance;
            not with hints.
        hints: which names the prompts hold.
        limit: utterances per set, spread evenly over it; 0 for all.
        threads: decoding threads.
        normaliser: what texts go through before they are compared, of
            `normalisers.NAMES`.
        lang: "en", "zh" or "mixed": what all utterances are; "auto": what records say.
    """

    bucket_seconds: tuple[float, ...] = (2.5, 4.0, 6.5)
    rows: tuple[int, ...] = (32, 20, 12)
    text: bool = True
    phonemes: bool = False
    shuffle_audio: bool = False
    hints: HintConfig = HintConfig()
    limit: int = 0
    threads: int = 1
    normaliser: str = "ours"
    lang: str = "auto"

    def __post_init__(self):
        normalisers.check(self.normaliser)
        error_rates.find_language("", self.lang)
        if self.hints.mode == "none":
            return
        if self.shuffle_audio:
            raise ValueError(
                "the control with other audio would hear the other utterance's hints "
                f"too; leave out --shuffle_audio or --hints={self.hints.mode}."
            )
        if not self.text:
            raise ValueError(
                f"--hints={self.hints.mode} needs a model that writes; this one has no "
                "LLM."
            )


@dataclasses.dataclass(frozen=True)
class Utterance:
    """One scored utterance.

    Attributes:
        name: id in its set.
        lang: "en", "zh" or "mixed".
        reference: transcript.
        seconds: of audio.
        hypothesis: None when text was not asked for.
        text: edits of the transcript.
        raw: the same with punctuation and case as they are written.
        unbiased: those edits of `text` that are outside of names; None where the set
            has no names.
        biased: and those in names, see biasing.py.
        looped: whether the hypothesis repeats itself, see `metrics.is_looped`.
        phonemes: edits of the phonemes.
        shuffled: edits when the audio is another utterance's.
        entities: names said, written and hinted at; None when text was not asked for.
    """

    name: str
    lang: str
    reference: str
    seconds: float
    hypothesis: str | None = None
    log_prob: float | None = None
    text: Counts | None = None
    phonemes: Counts | None = None
    shuffled: Counts | None = None
    entities: Entities | None = None
    raw: Counts | None = None
    unbiased: Counts | None = None
    biased: Counts | None = None
    looped: bool = False


@dataclasses.dataclass(frozen=True)
class SetResult:
    """A data set, evaluated.

    Attributes:
        name: specification of the set.
        utterances: scored ones, in the order of the set.
        processing_seconds: audio array to text, after the warm-up of each shape.
        skipped: reason → number of utterances that could not be scored.
        skip_lines: reason → "file:line: reason: detail" of some of them.
        hints: how hints were chosen, of `hints.MODES`; FOUND by the system itself.
        normaliser: what texts went through, of `normalisers.NAMES`.
    """

    name: str
    utterances: tuple[Utterance, ...]
    processing_seconds: float
    skipped: dict[str, int]
    skip_lines: dict[str, list[str]]
    hints: str = "none"
    normaliser: str = "ours"

    @property
    def audio_seconds(self) -> float:
        """Seconds of all scored audio."""
        return sum(row.seconds for row in self.utterances)

    @property
    def real_time_factor(self) -> float:
        """Processing time over audio time: below 1 is faster than speech."""
        return self.processing_seconds / max(self.audio_seconds, 1e-9)

    @property
    def inverse_real_time_factor(self) -> float:
        """RTFx, seconds of audio in a second of processing."""
        return self.audio_seconds / max(self.processing_seconds, 1e-9)


Heard = tuple[tuple[int, ...], Transcript | None]

FOUND = "found"


def evaluate_set(
    recogniser: System,
    spec: str,
    config: EvalConfig,
    progress: Callable[[int, int], None] = lambda done, total: None,
    shared: Shared | None = None,
) -> SetResult:
    """Recognise and score all utterances of a set.

    Args:
        recogniser: the model.
        spec: what `opening.open_source` opens.
        config: shapes and metrics.
        progress: called with (utterances done, utterances of the set).
        shared: what earlier evaluations of the recogniser have left; is added to.

    Raises:
        ValueError: text is asked for of a model without an LLM, nothing is usable, or
            there are no names for the hints.
    """
    if config.text:
        recogniser.check_writes()
    facts = _read_facts(opening.open_source(spec), config.lang)
    try:
        planned = hints.plan(facts, config.hints)
    except ValueError as error:
        raise ValueError(f"{spec}: {error}") from error
    kept = Shared() if shared is None else shared
    samples, report = kept.audio.read(
        (spec, config.limit, config.bucket_seconds),
        lambda report: _read(spec, len(facts), config, report),
    )
    total = min(len(facts), config.limit or len(facts))
    heard, spent = _hear(
        recogniser, samples, config, planned, kept.warm, lambda n: progress(n, total)
    )
    if not heard:
        raise ValueError(f"{spec}: no utterance can be evaluated.\n{report.summary()}")
    names = NameList(planned.names, config.normaliser)
    scored = [
        _score(facts[index], planned, names, (index, seconds), row, config)
        for index, (seconds, row) in heard.items()
    ]
    if config.shuffle_audio and config.text:
        scored = shuffle(scored, config.normaliser)
    lines = {reason: report.examples(reason) for reason in report.counts}
    finds = any(isinstance(row, Prompted) for _, (_, row) in heard.values())
    mode = FOUND if finds else config.hints.mode
    return SetResult(
        spec,
        tuple(scored),
        spent,
        report.counts,
        lines,
        mode,
        config.normaliser,
    )


def _read_facts(corpus: examples.Source, known: str) -> list[Fact]:
    """Everything but the audio of a set; its language is known, or "auto"."""
    facts = []
    for index in range(len(corpus)):
        record = examples.describe(corpus, index)
        lang = record["lang"] if known == "auto" else known
        lang = error_rates.find_language(record["text"], lang)
        keywords = tuple(record["keywords"])
        facts.append(Fact(record["id"], record["text"], lang, keywords))
    return facts


def _read(
    spec: str, size: int, config: EvalConfig, report: SkipReport
) -> Iterator[Samples]:
    """The chosen recordings; keys are indices of the set."""
    data = DataConfig(
        sources=(spec,),
        batch_size=config.rows,
        bucket_seconds=config.bucket_seconds,
        needs=(),
        threads=config.threads,
    )
    yield from recordings.read(
        spec, recordings.choose(size, config.limit), data, report
    )


def _hear(
    recogniser: System,
    samples: Iterator[Samples],
    config: EvalConfig,
    planned: hints.Plan,
    warm: set[tuple[int, ...]],
    progress: Callable[[int], None],
) -> tuple[dict[int, tuple[float, Heard]], float]:
    """Seconds and what was heard of every recording, and the seconds that all took."""
    # Streams and peers divide long recordings by themselves.
    whole = isinstance(recogniser, StreamedRecogniser) or recogniser.tokenizer is None
    gatherer = Gatherer(config.bucket_seconds, config.rows, whole=whole)
    pieces: dict[int, dict[float, Heard]] = {}
    spent = 0.0
    for batch in gatherer.gather(samples):
        rows, took = _time(recogniser, batch, config, planned, warm)
        spent += took
        for (index, start), row in zip(batch.keys, rows):
            pieces.setdefault(index, {})[start] = row
        progress(len(pieces))
    heard = {
        index: (seconds, _join(pieces.get(index, {}), seconds, config.text))
        for index, seconds in sorted(gatherer.seconds.items())
    }
    return heard, spent + gatherer.spent


def _join(pieces: dict[float, Heard], seconds: float, text: bool) -> Heard:
    """What was heard in a recording, from its pieces by their starts."""
    rows = [pieces[start] for start in sorted(pieces)]
    ids = tuple(unit for heard, _ in rows for unit in heard)
    if not text:
        return ids, None
    transcripts = [transcript for _, transcript in rows if transcript is not None]
    return ids, recordings.join(transcripts, seconds)


def _time(
    recogniser: System,
    batch: AudioBatch,
    config: EvalConfig,
    planned: hints.Plan,
    warm: set[tuple[int, ...]],
) -> tuple[list[Heard], float]:
    """What was heard in a batch, and the seconds that it took a warm recogniser.

    Compiling is no part of the real-time factor: the first batch of each shape is heard
    twice. Listeners are warm already.
    """
    asked = None
    if config.hints.mode != "none":
        asked = [planned.hints[index] for index, _ in batch.keys]
        asked += [()] * (len(batch.audio.mask) - len(asked))
    while True:
        start = time.perf_counter()
        rows = _recognise(recogniser, batch, config.text, asked)
        took = time.perf_counter() - start
        if isinstance(recogniser, StreamedRecogniser):
            return rows, took
        shape = _find_shape(recogniser.tokenizer, batch, rows, asked)
        if shape in warm:
            return rows, took
        warm.add(shape)


def _find_shape(
    tokenizer: Tokenizer | None,
    batch: AudioBatch,
    rows: Sequence[Heard],
    asked: Sequence[Sequence[str]] | None,
) -> tuple[int, ...]:
    """What a program was compiled for; () where nothing is compiled."""
    if tokenizer is None:
        return ()
    shape = np.shape(batch.audio.values)
    found = [row.hints for _, row in rows if row and isinstance(row, Prompted)]
    if found or asked is not None:
        shape += prompt.pack_suffixes(tokenizer, found or asked or ())[0].shape
    return shape


def _recognise(
    recogniser: System,
    batch: AudioBatch,
    text: bool,
    asked: Sequence[Sequence[str]] | None,
) -> list[Heard]:
    """Phonemes, and the transcript if asked for, of each row."""
    if not text:
        return [(ids, None) for ids in recogniser.hear_phonemes(batch.audio)]
    transcripts = recogniser.transcribe(batch.audio, hints=asked, timings=False)
    return [(transcript.phonemes, transcript) for transcript in transcripts]


def _score(
    fact: Fact,
    planned: hints.Plan,
    names: NameList,
    place: tuple[int, float],
    heard: Heard,
    config: EvalConfig,
) -> Utterance:
    """One utterance, its index in the set and its seconds, against its reference."""
    index, seconds = place
    ids, transcript = heard
    row = Utterance(fact.name, fact.lang, fact.text, seconds)
    if config.phonemes:
        expected = phonemes.encode_phonemes(fact.text)
        row = dataclasses.replace(
            row, phonemes=error_rates.score_phonemes(expected, ids)
        )
    if transcript is None:
        return row
    said, written = (
        error_rates.split(text, fact.lang, config.normaliser)
        for text in (fact.text, transcript.text)
    )
    unbiased, biased = None, None
    if names.names:
        unbiased, biased = biasing.score(said, written, fact.lang, names)
    found = transcript.hints if isinstance(transcript, Prompted) else None
    judged = entities.judge(
        planned.said[index],
        planned.hints[index] if found is None else found,
        (fact.text, transcript.text),
        fact.lang,
        planned.unseen,
        names.find(written, fact.lang),
    )
    return dataclasses.replace(
        row,
        hypothesis=transcript.text,
        log_prob=transcript.log_prob,
        text=error_rates.count(error_rates.align(said, written), len(said)),
        entities=judged,
        raw=error_rates.score_text(fact.text, transcript.text, fact.lang, "raw"),
        unbiased=unbiased,
        biased=biased,
        looped=error_rates.is_looped(said, written),
    )


def shuffle(rows: Sequence[Utterance], normaliser: str = "ours") -> list[Utterance]:
    """The control: each reference with the audio of another utterance of its language.

    A transcript depends on nothing but the audio, so the transcript of other audio need
    not be computed again: it is the other utterance's hypothesis. The other one is the
    next in the set whose text differs; an utterance without such is not scored.
    """
    result = list(rows)
    for lang in error_rates.METRICS:
        places = [place for place, row in enumerate(rows) if row.lang == lang]
        for number, place in enumerate(places):
            row = rows[place]
            others = (rows[p] for p in places[number + 1 :] + places[:number])
            other = next((o for o in others if o.reference != row.reference), None)
            if other is None or other.hypothesis is None:
                continue
            counts = error_rates.score_text(
                row.reference, other.hypothesis, lang, normaliser
            )
            result[place] = dataclasses.replace(row, shuffled=counts)
    return result
