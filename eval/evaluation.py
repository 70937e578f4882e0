"""One model over one data set: every utterance recognised, scored and timed."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from nim4_jax.data import pipeline, sources
from nim4_jax.data.config import DataConfig
from nim4_jax.data.skips import SkipReport
from nim4_jax.decode.recogniser import Recogniser, Transcript
from nim4_jax.decode.segments import AudioBatch, Batcher
from nim4_jax.eval import entities, hints, metrics
from nim4_jax.eval.entities import Entities
from nim4_jax.eval.hints import Fact, HintConfig
from nim4_jax.eval.metrics import Counts
from nim4_jax.eval.streaming import StreamedRecogniser
from nim4_jax.text import phonemes, prompt


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """How sets are evaluated.

    Attributes:
        bucket_seconds: lengths of the batch shapes; longer audio is skipped, counted.
        rows: rows of each shape.
        text: whether transcripts are scored; needs an LLM.
        phonemes: whether the phoneme head's greedy output is scored.
        shuffle_audio: also score each reference against the audio of another utterance;
            not with hints.
        hints: which names the prompts hold.
        limit: utterances per set, spread evenly over it; 0 for all.
        threads: decoding threads.
    """

    bucket_seconds: tuple[float, ...] = (2.5, 4.0, 6.5)
    rows: tuple[int, ...] = (32, 20, 12)
    text: bool = True
    phonemes: bool = False
    shuffle_audio: bool = False
    hints: HintConfig = HintConfig()
    limit: int = 0
    threads: int = 1

    def __post_init__(self):
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


@dataclasses.dataclass(frozen=True)
class SetResult:
    """A data set, evaluated.

    Attributes:
        name: specification of the set.
        utterances: scored ones, in the order of the set.
        processing_seconds: audio array to text, after the warm-up of each shape.
        skipped: reason → number of utterances that could not be scored.
        skip_lines: reason → "file:line: reason: detail" of some of them.
        hints: how hints were chosen, of `hints.MODES`.
    """

    name: str
    utterances: tuple[Utterance, ...]
    processing_seconds: float
    skipped: dict[str, int]
    skip_lines: dict[str, list[str]]
    hints: str = "none"

    @property
    def audio_seconds(self) -> float:
        """Seconds of all scored audio."""
        return sum(row.seconds for row in self.utterances)

    @property
    def real_time_factor(self) -> float:
        """Processing time over audio time: below 1 is faster than speech."""
        return self.processing_seconds / max(self.audio_seconds, 1e-9)


Heard = tuple[tuple[int, ...], Transcript | None]


def evaluate_set(
    recogniser: Recogniser | StreamedRecogniser,
    spec: str,
    config: EvalConfig,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> SetResult:
    """Recognise and score all utterances of a set.

    Args:
        recogniser: the model.
        spec: what `sources.open_source` opens.
        config: shapes and metrics.
        progress: called with (utterances done, utterances of the set).

    Raises:
        ValueError: text is asked for of a model without an LLM, nothing is usable, or
            there are no names for the hints.
    """
    if config.text:
        recogniser.check_writes()
    facts = _read_facts(sources.open_source(spec))
    try:
        planned = hints.plan(facts, config.hints)
    except ValueError as error:
        raise ValueError(f"{spec}: {error}") from error
    report = SkipReport()
    heard: dict[int, Heard] = {}
    seconds: dict[int, float] = {}
    warm: set[tuple[int, ...]] = set()
    spent = 0.0
    total = min(len(facts), config.limit or len(facts))
    for batch in _iterate_batches(spec, len(facts), config, report):
        asked = None
        shape = np.shape(batch.audio.values)
        if config.hints.mode != "none":
            asked = [planned.hints[int(key)] for key in batch.keys]
            asked += [()] * (shape[0] - len(asked))
            shape += prompt.pack_suffixes(recogniser.tokenizer, asked)[0].shape
        # Compiling is no part of the real-time factor; listeners are warm already.
        if isinstance(recogniser, Recogniser) and shape not in warm:
            _recognise(recogniser, batch, config.text, asked)
            warm.add(shape)
        start = time.perf_counter()
        rows = _recognise(recogniser, batch, config.text, asked)
        spent += time.perf_counter() - start
        lengths = np.asarray(batch.audio.mask).sum(axis=1) / 16_000
        for key, row, length in zip(batch.keys, rows, lengths):
            heard[int(key)] = row
            seconds[int(key)] = float(length)
        progress(len(heard), total)
    if not heard:
        raise ValueError(f"{spec}: no utterance can be evaluated.\n{report.summary()}")
    scored = [
        _score(facts, planned, index, seconds[index], heard[index], config)
        for index in sorted(heard)
    ]
    if config.shuffle_audio and config.text:
        scored = shuffle(scored)
    lines = {reason: report.examples(reason) for reason in report.counts}
    mode = config.hints.mode
    return SetResult(spec, tuple(scored), spent, report.counts, lines, mode)


def _read_facts(corpus: sources.Source) -> list[Fact]:
    """Everything but the audio of a set."""
    facts = []
    for index in range(len(corpus)):
        record = corpus[index]
        lang = metrics.find_language(record["text"], record["lang"])
        keywords = tuple(record["keywords"])
        facts.append(Fact(record["id"], record["text"], lang, keywords))
    return facts


def _iterate_batches(
    spec: str, size: int, config: EvalConfig, report: SkipReport
) -> Iterator[AudioBatch]:
    """The chosen utterances in batches of fixed shape; keys are indices of the set."""
    data = DataConfig(
        sources=(spec,),
        batch_size=config.rows,
        bucket_seconds=config.bucket_seconds,
        needs=(),
        threads=config.threads,
    )
    chosen = set(range(size))
    if 0 < config.limit < size:
        chosen = {int(place) for place in np.linspace(0, size - 1, config.limit)}
    # Batches are gathered anew, so that a selection fills its rows too.
    batcher = Batcher(config.bucket_seconds, config.rows)
    for arrays in pipeline.iterate_eval(data, report=report):
        for row, index in enumerate(arrays["index"]):
            if int(index) in chosen and arrays["valid"][row]:
                samples = arrays["audio"][row][arrays["audio_mask"][row]]
                yield from batcher.add(int(index), samples)
    yield from batcher.flush()


def _recognise(
    recogniser: Recogniser | StreamedRecogniser,
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
    facts: Sequence[Fact],
    planned: hints.Plan,
    index: int,
    seconds: float,
    heard: Heard,
    config: EvalConfig,
) -> Utterance:
    """One utterance against its reference."""
    ids, transcript = heard
    fact = facts[index]
    row = Utterance(fact.name, fact.lang, fact.text, seconds)
    if config.phonemes:
        expected = phonemes.encode_phonemes(fact.text)
        row = dataclasses.replace(row, phonemes=metrics.score_phonemes(expected, ids))
    if transcript is None:
        return row
    judged = entities.judge(
        planned.said[index],
        planned.hints[index],
        (fact.text, transcript.text),
        fact.lang,
        planned.unseen,
    )
    return dataclasses.replace(
        row,
        hypothesis=transcript.text,
        log_prob=transcript.log_prob,
        text=metrics.score_text(fact.text, transcript.text, fact.lang),
        entities=judged,
    )


def shuffle(rows: Sequence[Utterance]) -> list[Utterance]:
    """The control: each reference with the audio of another utterance of its language.

    A transcript depends on nothing but the audio, so the transcript of other audio need
    not be computed again: it is the other utterance's hypothesis. The other one is the
    next in the set whose text differs; an utterance without such is not scored.
    """
    result = list(rows)
    for lang in metrics.METRICS:
        places = [place for place, row in enumerate(rows) if row.lang == lang]
        for number, place in enumerate(places):
            row = rows[place]
            others = (rows[p] for p in places[number + 1 :] + places[:number])
            other = next((o for o in others if o.reference != row.reference), None)
            if other is None or other.hypothesis is None:
                continue
            counts = metrics.score_text(row.reference, other.hypothesis, lang)
            result[place] = dataclasses.replace(row, shuffled=counts)
    return result
