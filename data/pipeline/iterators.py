"""The input pipeline: sources → planned batches → fixed-shape arrays, through Grain.

    sources → plan (shuffle, speed, buckets, global batches) → Grain dataset over steps
            → this host's rows of the batch → decode, resample, speed or tempo,
            room, noise, gain, telephone → labels → padding

The plan (buckets.py) decides every global batch from (seed, epoch) and the examples'
lengths before anything is read, so a step number alone says what a batch holds: hosts,
threads and worker processes only divide the work (law 3), and the iterator's state is
that number (law 2). What cannot be used is counted in a `SkipReport` with its file and
line: when planning where the lengths or the text tell, else when decoding, where the
row is delivered masked (`valid` False) and the plan is left as it was.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any

import grain
import numpy as np

from nim4_jax.data.noise.augment import Augmenter
from nim4_jax.data.noise.noise_draws import Distribution
from nim4_jax.data.noise.noise_files import NoiseFiles
from nim4_jax.data.pipeline import buckets
from nim4_jax.data.pipeline.buckets import Batch
from nim4_jax.data.pipeline.config import DataConfig, make_buckets, make_channels
from nim4_jax.data.pipeline.hints import HintDrawer
from nim4_jax.data.pipeline.loader import BatchLoader
from nim4_jax.data.pipeline.survey import Examples, survey
from nim4_jax.data.sources import opening
from nim4_jax.data.sources.examples import Corpus
from nim4_jax.data.sources.skips import SkipReport

__all__ = [
    "DataConfig",
    "SkipReport",
    "TrainIterator",
    "iterate_eval",
    "make_train_iterator",
    "open_corpus",
]

Arrays = dict[str, np.ndarray]


def open_corpus(config: DataConfig) -> Corpus:
    """All examples of a configuration; `index` in a batch is an index into it.

    Those without speech come last, with an empty text and empty audio.
    """
    return opening.open_examples(config.sources, config.nonspeech_share)[0]


class OtherDataError(ValueError):
    """A saved place is one of other data."""


@dataclass(repr=False)  # Grain prints what it maps; this holds the whole data set
class _StepLoader:
    """Step → loaded batch: what Grain maps over the step numbers."""

    plan: buckets.TrainPlan
    loader: BatchLoader

    def __call__(self, step: int) -> dict[str, Any]:
        return self.loader.load(self.plan[step])

    def blank(self, step: int) -> Arrays:
        """A batch of the same shape, all of whose rows are empty."""
        planned = self.plan[step]
        nobody = np.full_like(planned.indices, -1)
        return self.loader.load(replace(planned, indices=nobody))["arrays"]


class TrainIterator(grain.DatasetIterator):
    """Training batches as a Grain iterator: `grain.checkpoint` saves and restores it.

    Its state is the step and a fingerprint of the plan; the former is exact with any
    number of hosts, threads and workers, the latter refuses another order of the data.

    Attributes:
        report: the `SkipReport`, growing while batches are delivered.
        plan: the `TrainPlan`.
        step: number of batches delivered.
    """

    def __init__(
        self,
        config: DataConfig,
        examples: Examples,
        report: SkipReport,
        rank: int,
        hosts: int,
    ):
        super().__init__()
        self._inner: grain.DatasetIterator | None = None
        self.report = report
        self.step = 0
        self._config = config
        shapes = make_buckets(config)
        corpus = examples.corpus
        files = None
        if config.noise_sources and (config.noise_share or config.nonspeech_share):
            files = NoiseFiles(config.noise_sources, report, opening.open_source)
        augmenter = Augmenter(examples, files, config.seed)
        distribution = None
        if config.noise_share:
            distribution = Distribution(
                config.noise_share, config.noise_snr, augmenter.kinds
            )
        groups, weights = _group(config, examples)
        self.plan = buckets.TrainPlan(
            groups,
            weights,
            examples.lengths,
            shapes,
            buckets.Perturbations(
                config.speed_perturb, distribution, make_channels(config)
            ),
            seed=config.seed,
            num_speech=examples.num_speech,
        )
        self.stop = sys.maxsize
        if config.epochs is not None:
            self.stop = self.plan.count_steps(config.epochs)
        hints = None
        if config.hints:
            speech = Corpus(corpus.sources[: len(config.sources)])
            hints = HintDrawer.open(config.hints, speech, config.tokenizer, config.seed)
        self._fingerprint = _hash_plan(self.plan, files, hints)
        self._corpus = corpus
        check = "phonemes" in config.needs
        loader = BatchLoader(
            examples, shapes, rank, hosts, config.cache_mb, check, augmenter, hints
        )
        self._load = _StepLoader(self.plan, loader)

    @property
    def epoch(self) -> int:
        """The epoch that the next batch belongs to."""
        return self.plan.find_epoch(self.step)

    def measure_epoch(self) -> tuple[float, int]:
        """(hours of audio, batches) of the first epoch; padding does not count."""
        lengths, batches = self.plan.lengths.seconds, self.plan.epoch(0)
        seconds = (lengths[b.indices] / b.speeds for b in batches)
        return sum(float(part.sum()) for part in seconds) / 3600, len(batches)

    def make_blanks(self, stop: int) -> list[Arrays]:
        """A batch without examples in each shape to come, in order of appearance.

        Args:
            stop: step at which the run ends; what comes before it, or in the rest of
                this epoch, counts.
        """
        stop = min(stop, self.stop, self.plan.count_steps(self.epoch + 1))
        first = {
            self.plan[step].bucket: step for step in range(stop - 1, self.step - 1, -1)
        }
        return [self._load.blank(step) for step in sorted(first.values())]

    def __next__(self) -> Arrays:
        if self._closed:
            raise ValueError("the training iterator is closed")
        loaded = next(self._start())
        self.step += 1
        return _account(loaded, self._corpus, self.report)

    def get_state(self) -> dict[str, Any]:
        """The step to come, and which plan it belongs to."""
        return {"step": self.step, "plan": self._fingerprint}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go to a saved step.

        Raises:
            OtherDataError: the state belongs to other data or another configuration.
        """
        if state["plan"] != self._fingerprint:
            raise OtherDataError(
                f"the data is not that of the checkpoint (its plan is {state['plan']}, "
                f"this one's {self._fingerprint}): recordings, texts, or what config "
                "says of sources, batch sizes, buckets, speeds, noise, hints, seed, "
                "rooms, gains, telephone lines, tempo or tokenizer have changed. Go on "
                "with --force_config: weights, optimizer and step stay, and a new "
                "epoch of this data begins; or begin a new run from these weights: "
                "--workdir=NEW --config.init_from=OLD."
            )
        self._stop_inner()
        self.step = int(state["step"])

    def begin_epoch(self, state: dict[str, Any]) -> None:
        """Go to the beginning of the epoch after a step saved of other data."""
        self._stop_inner()
        after = self.plan.find_epoch(int(state["step"])) + 1
        self.step = self.plan.count_steps(after)

    def start_prefetch(self) -> None:
        """Begin to load batches before the first `next`."""
        self._start().start_prefetch()

    def close(self) -> None:
        """Stop the threads and workers."""
        self._stop_inner()
        super().close()

    def _start(self) -> grain.DatasetIterator:
        if self._inner is None:
            steps = grain.MapDataset.range(self.step, self.stop)
            self._inner = iter(_read_ahead(steps.map(self._load), self._config))
        return self._inner

    def _stop_inner(self) -> None:
        if self._inner is not None:
            self._inner.close()
            self._inner = None


def _read_ahead(data: grain.MapDataset, config: DataConfig) -> grain.IterDataset:
    """Grain's threads, and worker processes if asked for."""
    options = grain.ReadOptions(
        num_threads=config.threads,
        prefetch_buffer_size=config.prefetch if config.threads else 0,
    )
    ahead = data.to_iter_dataset(options)
    if not config.workers:
        return ahead
    processes = grain.MultiprocessingOptions(
        num_workers=config.workers, per_worker_buffer_size=max(1, config.prefetch)
    )
    return ahead.mp_prefetch(processes)


def _account(loaded: dict[str, Any], corpus: Corpus, report: SkipReport) -> Arrays:
    """Count a loaded batch's skips where it is delivered, and hand out its arrays.

    They travel with the batch because a worker process has no access to the report, and
    a batch that was made ahead but never delivered must not count.
    """
    for reason, index, detail in loaded["skips"]:
        report.add(reason, index, corpus[index]["origin"], detail)
    report.add_repeated(loaded["repeated"])
    return loaded["arrays"]


def _group(
    config: DataConfig, examples: Examples
) -> tuple[list[np.ndarray], list[float]]:
    """Usable examples of each source and how often each is heard in an epoch.

    Long recordings are one more group, heard once more or oftener.
    """
    corpus = examples.corpus
    groups = [corpus.group(number) for number in range(len(corpus.sources))]
    groups = [group[examples.usable[group]] for group in groups]
    if not config.long_weight:
        return groups, examples.weights
    speech = np.concatenate(groups)
    speech = speech[speech < examples.num_speech]
    long = speech[examples.lengths.seconds[speech] >= config.long_seconds]
    return [*groups, long], [*examples.weights, config.long_weight]


def _hash_plan(
    plan: buckets.TrainPlan,
    files: NoiseFiles | None = None,
    hints: HintDrawer | None = None,
) -> str:
    """Fingerprint of all that a plan, its noise, channels and hints depend on."""
    digest = hashlib.sha256()
    lengths = plan.lengths
    arrays = (lengths.seconds, lengths.phonemes, lengths.repeats, lengths.tokens)
    for array in (*arrays, *plan.groups):
        digest.update(np.ascontiguousarray(array).tobytes())
    facts = (plan.buckets, plan.weights, plan.speeds.tolist(), plan.seed)
    digest.update(repr(facts).encode())
    if plan.distribution:
        digest.update(repr(plan.distribution).encode())
    if plan.channels:
        digest.update(repr(plan.channels).encode())
        if plan.channels.tempo_share:
            digest.update(repr(("tempo", plan.channels.tempo_share)).encode())
    if files:
        digest.update(files.seconds.tobytes())
    if hints:
        digest.update(hints.fingerprint().encode())
    return digest.hexdigest()[:16]


def make_train_iterator(
    config: DataConfig,
    *,
    rank: int = 0,
    hosts: int = 1,
    report: SkipReport | None = None,
) -> TrainIterator:
    """Endless (or `config.epochs` long) training batches of this host.

    Args:
        config: what to read.
        rank: number of this host.
        hosts: number of hosts; each gets batch / hosts rows of every global batch.
        report: counts what is skipped; a fresh one if None (`iterator.report`).

    Returns:
        A Grain iterator over dicts of numpy arrays, b = batch / hosts rows:
        audio float32 [b, S], audio_mask bool [b, S], phonemes int32 [b, P],
        phonemes_mask bool, tokens int32 [b, L], tokens_mask bool, index int32 [b]
        (into `open_corpus(config)`), valid bool [b] (False: the row could not be read
        and is masked throughout); with hints also suffix int32 [b, L'] and wanted int32
        [b, L"] with their masks. S, P, L are fixed per bucket. A row without speech
        has no phoneme, one token (`<|im_end|>`), and is valid.

    Raises:
        ValueError: bad configuration, bad manifest line, or no usable example.
    """
    report = SkipReport() if report is None else report
    examples = survey(config, report, training=True)
    return TrainIterator(config, examples, report, rank, hosts)


def iterate_eval(
    config: DataConfig,
    *,
    rank: int = 0,
    hosts: int = 1,
    report: SkipReport | None = None,
    only: Collection[int] | None = None,
) -> Iterator[Arrays]:
    """Every example exactly once, shortest first, in the buckets' fixed shapes.

    Weights, speeds, noise, channels, examples without speech, seed and epochs of the
    configuration do not matter here. The last batch of a bucket is filled with rows of
    index -1 and `valid` False.

    Args:
        config: what to read; audio longer than the largest bucket is skipped, counted.
        rank: number of this host.
        hosts: number of hosts.
        report: counts what is skipped; pass one to read it afterwards.
        only: examples to deliver; None for all.

    Yields:
        The arrays of `make_train_iterator`.
    """
    report = SkipReport() if report is None else report
    examples = survey(config, report, training=False, only=only)
    if not examples.usable.any():
        return
    shapes = make_buckets(config)
    usable = np.flatnonzero(examples.usable)
    plan = buckets.plan_evaluation(usable, examples.lengths, shapes)
    clean = Augmenter(examples, None, config.seed)
    loader = BatchLoader(examples, shapes, rank, hosts, config.cache_mb, False, clean)
    batches = grain.MapDataset.range(len(plan)).map(_PlanLoader(plan, loader))
    ahead = iter(_read_ahead(batches, config))
    try:
        for loaded in ahead:
            yield _account(loaded, examples.corpus, report)
    finally:
        ahead.close()


@dataclass(repr=False)
class _PlanLoader:
    """Position in a finite plan → loaded batch."""

    plan: list[Batch]
    loader: BatchLoader

    def __call__(self, position: int) -> dict[str, Any]:
        return self.loader.load(self.plan[position])
