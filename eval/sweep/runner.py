"""A sweep: models × modes × benchmarks × hotwords, a stored cell for each.

A cell whose fingerprint has not changed is not measured again, so a sweep that was
killed anywhere goes on where it was. Several hosts that share the folder share the
cells; whoever finds all of them finished writes the report.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import itertools
import json
import os
import shutil
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nim4_jax.decode import hotwords as finding
from nim4_jax.decode.hotwords import HotwordList
from nim4_jax.eval import evaluation, hints
from nim4_jax.eval.hints import HintConfig
from nim4_jax.eval.measures import normalisers
from nim4_jax.eval.reports import report
from nim4_jax.eval.streaming import StreamedRecogniser
from nim4_jax.eval.sweep import (
    benchmarks,
    cells,
    fingerprints,
    summary,
    systems,
)
from nim4_jax.eval.sweep.benchmarks import Benchmark
from nim4_jax.eval.sweep.cells import ABSENT, DONE, FAILED, UNFIT, Cell, Key
from nim4_jax.eval.sweep.peers import PEERS
from nim4_jax.eval.sweep.systems import Hotwords, Load, Mode, Model, Opened
from nim4_jax.retrieval.gate import LATTICE, check_near

Identify = Callable[[str], str]
"""Model → checksum of it; raises ValueError where there is none."""


_INSTANT = 0.1  # s: what takes less was not measured


@dataclasses.dataclass(frozen=True)
class SweepConfig:
    """What is measured, and how; `configs/evaluate.py` says more.

    Attributes:
        models: as `Model.parse` reads them.
        benchmarks: as `benchmarks.find` finds them.
        modes: as `Mode.parse` reads them.
        hotwords: as `Hotwords.parse` reads them.
        limit: utterances per benchmark, 0 for all.
        left: chunks that a stream's chunk sees to its left.
        phonemes: whether phoneme heads are scored, offline.
        hint_count: misleading names an utterance.
        hint_names: where further ones come from, "" for nowhere.
        hint_seed: of their draws.
        seen: transcripts of the training.
        find_keywords: by counting words, where records list none.
        near: where names of a list are looked for nearly, one of `gate.WAYS`.
    """

    models: tuple[str, ...]
    benchmarks: tuple[str, ...]
    modes: tuple[str, ...] = (systems.OFFLINE,)
    hotwords: tuple[str, ...] = ("none",)
    limit: int = 0
    left: int = 4
    phonemes: bool = False
    hint_count: int = 4
    hint_names: str = ""
    hint_seed: int = 0
    seen: tuple[str, ...] = ()
    find_keywords: bool = False
    near: str = LATTICE

    def make_hints(self) -> HintConfig:
        """Everything about hints but their mode.

        Raises:
            ValueError: a list of names or transcripts that cannot be read.
        """
        return HintConfig(
            count=self.hint_count,
            names=hints.read_names(self.hint_names) if self.hint_names else (),
            find=self.find_keywords,
            seen=hints.read_texts(self.seen) if self.seen else None,
            seed=self.hint_seed,
        )


@dataclasses.dataclass(frozen=True)
class Task:
    """A cell to be measured.

    Attributes:
        key: of the cell.
        model: which.
        mode: how it hears.
        benchmark: what it hears.
        hotwords: which names its prompts hold.
        fingerprint: of all that the result depends on.
        refusal: (status, reason) where it is known before that nothing can be measured.
    """

    key: Key
    model: Model
    mode: Mode
    benchmark: Benchmark
    hotwords: Hotwords
    fingerprint: str
    refusal: tuple[str, str] | None = None

    def settles(self, cell: Cell | None) -> bool:
        """Whether a stored cell is this one's, finished or failed."""
        if cell is None or cell.fingerprint != self.fingerprint:
            return False
        told = (cell.status, cell.reason)
        return told == self.refusal if self.refusal else cell.status != ABSENT


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What has become of a sweep.

    Attributes:
        cells: finished ones of all hosts.
        left: cells that other hosts have not finished yet.
    """

    cells: tuple[Cell, ...]
    left: int = 0

    @property
    def failed(self) -> list[Cell]:
        """Cells that broke."""
        return [cell for cell in self.cells if cell.status == FAILED]


def plan(config: SweepConfig, identify: Identify) -> list[Task]:
    """All cells, those of one model and mode together; nothing is loaded yet.

    Raises:
        ValueError: a model, benchmark, mode or list that is not there, or makes no
            sense.
    """
    models = systems.parse_all(Model.parse, config.models, "model")
    modes = systems.parse_all(Mode.parse, config.modes, "mode")
    hotwords = systems.parse_all(Hotwords.parse, config.hotwords, "hotwords")
    check_near(config.near)
    found = benchmarks.find(config.benchmarks)
    for benchmark in found:
        if not benchmarks.missing(benchmark):
            normalisers.check(benchmark.normaliser)
    known: dict[Any, Any] = {}
    for model in models:
        own, peer = model.origin, PEERS.get(model.name)
        known[model] = identify(own) if own or not peer else peer.find_versions()
    for names in hotwords:
        known[names] = names.name
        if names.path:
            digest = finding.identify(names.path, config.near)
            known[names] = [digest, config.near]
    hint_facts = dataclasses.asdict(config.make_hints())
    numbers = [config.limit, config.left, config.phonemes]
    versions = [importlib.metadata.version("nim4-jax"), fingerprints.identify_code()]
    facts = _hash([hint_facts, numbers, versions])
    data = {one.name: fingerprints.describe_data(one) for one in found}
    tasks = []
    for model, mode, benchmark, names in itertools.product(
        models, modes, found, hotwords
    ):
        key = Key(model.name, benchmark.name, mode.name, names.name)
        parts = [dataclasses.asdict(key), known[model], known[names], facts]
        fingerprint = _hash([*parts, data[benchmark.name]])
        refusal = _refuse(model, mode, benchmark, names)
        task = Task(key, model, mode, benchmark, names, fingerprint, refusal)
        tasks.append(task)
    systems.check_folders((task.key.folder, task.key) for task in tasks)
    return tasks


def _hash(facts: Any) -> str:
    text = json.dumps(facts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _refuse(
    model: Model, mode: Mode, benchmark: Benchmark, names: Hotwords
) -> tuple[str, str] | None:
    """Why nothing can be measured, as far as that is known without the model."""
    if reason := benchmarks.missing(benchmark):
        return ABSENT, reason
    reason = systems.refuse(model, mode, names, benchmark.lang)
    return (UNFIT, reason) if reason else None


def deal(tasks: Sequence[Task], shard: tuple[int, int]) -> Sequence[Task]:
    """The share of host I of N: neighbours, which are of few models.

    Raises:
        ValueError: no such host.
    """
    number, hosts = shard
    if not 0 <= number < hosts:
        raise ValueError(f"shard {number} of {hosts}; expected 0 … {hosts - 1}.")
    first, last = (len(tasks) * place // hosts for place in (number, number + 1))
    return tasks[first:last]


def run(
    config: SweepConfig,
    out: str,
    *,
    load: Load,
    identify: Identify,
    shard: tuple[int, int] = (0, 1),
    say: Callable[[str], None] = print,
) -> Outcome:
    """Measure what is not measured yet, and write the report when all cells are there.

    Args:
        config: what.
        out: folder of cells/, report.md, report.html and report.json.
        load: loads a model.
        identify: tells a model from another.
        shard: (number, count) of hosts that share the folder.
        say: told a line for each cell.

    Raises:
        ValueError: see `plan`; nothing was measured.
        OSError: no room for a cell or the report; the same sweep goes on later.
    """
    tasks = plan(config, identify)
    runner = _Runner(config, load)
    mine = deal(tasks, shard)
    todo = [task for task in mine if not _is_finished(task, cells.read(out, task.key))]
    if len(todo) < len(mine):
        say(f"{len(mine) - len(todo)} of {len(mine)} cells are finished already")
    spent: list[float] = []
    for number, task in enumerate(todo):
        start = time.perf_counter()
        cell = runner.measure(task)
        cells.write(out, cell)
        spent.append(time.perf_counter() - start)
        say(_tell(cell, spent, todo[number + 1 :]))
    runner.close()
    stored = [(task, cells.read(out, task.key)) for task in tasks]
    finished = tuple(cell for task, cell in stored if cell and task.settles(cell))
    if len(finished) == len(tasks):
        write_report(out, finished)
    return Outcome(finished, len(tasks) - len(finished))


def _is_finished(task: Task, cell: Cell | None) -> bool:
    """Whether nothing is left to do; what failed is tried again."""
    return task.settles(cell) and cell is not None and cell.status != FAILED


def _tell(cell: Cell, spent: Sequence[float], coming: Sequence[Task]) -> str:
    """Which cell of how many, how long it took, and how long the others may take."""
    key = cell.key
    what = cell.status if cell.status == DONE else f"{cell.status}: {cell.reason}"
    long = [seconds for seconds in spent if seconds > _INSTANT] or [0.0]
    left = sum(long) / len(long) * sum(not task.refusal for task in coming)
    return (
        f"cell {len(spent)} of {len(spent) + len(coming)}: {key.model}, "
        f"{key.benchmark}, {key.mode}, hotwords {key.hotwords}: {what}, "
        f"{spent[-1]:.1f} s; {len(coming)} left, about {left:.0f} s"
    )


class _Runner:
    """Measures cells; what neighbours share is loaded once."""

    def __init__(self, config: SweepConfig, load: Load):
        self._config = config
        self._load = load
        self._hints = config.make_hints()
        self._place: tuple[Model, Mode] | None = None
        self._opened: Opened | Exception | None = None
        self._lists: dict[str, HotwordList] = {}

    def close(self) -> None:
        """Let the model go."""
        self._place = self._opened = None

    def measure(self, task: Task) -> Cell:
        """The cell of a task, whatever becomes of it."""
        empty = Cell(task.key, FAILED, fingerprint=task.fingerprint)
        if task.refusal:
            status, reason = task.refusal
            return dataclasses.replace(empty, status=status, reason=reason)
        try:
            opened = self._open(task.model, task.mode)
            if opened.lacks and not self._hears_phonemes(task):
                return dataclasses.replace(empty, status=UNFIT, reason=opened.lacks)
            return self._evaluate(task, opened)
        # Whatever breaks one cell, an error of a compiler or of a peer, is its result.
        except Exception as error:
            if os.environ.get("NIM4_TRACEBACK"):
                traceback.print_exc()
            unfit = isinstance(error.__cause__, hints.NoNames)
            reason = str(error) if unfit else f"{type(error).__name__}: {error}"
            status = UNFIT if unfit else FAILED
            return dataclasses.replace(empty, status=status, reason=reason)

    def _open(self, model: Model, mode: Mode) -> Opened:
        """The model in that mode; the one before makes room for it."""
        if self._place != (model, mode):
            self.close()
            self._place = model, mode
            try:
                self._opened = Opened(model, mode, self._config.left, self._load)
            except Exception as error:
                self._opened = error
        if isinstance(self._opened, Exception):
            raise self._opened
        assert self._opened is not None
        return self._opened

    def _hears_phonemes(self, task: Task) -> bool:
        """Whether phonemes are scored: of models, where they are heard as a whole."""
        bare = task.hotwords.name == "none" and not task.mode.chunk_ms
        return self._config.phonemes and bare and bool(task.model.origin)

    def _evaluate(self, task: Task, opened: Opened) -> Cell:
        names = self._find_list(task.hotwords.path) if task.hotwords.path else None
        system = opened.prepare(task.benchmark.lang, names)
        settings = evaluation.EvalConfig(
            bucket_seconds=opened.bucket_seconds,
            rows=opened.rows,
            normaliser=task.benchmark.normaliser,
            lang=task.benchmark.lang,
            text=not opened.lacks,
            phonemes=self._hears_phonemes(task),
            hints=dataclasses.replace(self._hints, mode=task.hotwords.mode),
            limit=self._config.limit,
        )
        result = evaluation.evaluate_set(
            system, task.benchmark.source, settings, shared=opened.shared
        )
        (summary,) = report.build(task.model.name, [result])["sets"]
        if isinstance(system, StreamedRecogniser):
            summary["streaming"] = system.latency.summary()
        if names is not None:
            summary["hotword_list"] = {
                "names": len(names.base),
                "near": self._config.near,
            }
        rows = report.list_rows([result])
        return Cell(task.key, DONE, "", task.fingerprint, summary, rows)

    def _find_list(self, path: str) -> HotwordList:
        if path not in self._lists:
            self._lists[path] = HotwordList.open(path, self._config.near)
        return self._lists[path]


def write_report(out: str, finished: Sequence[Cell]) -> None:
    """Write the report beside its place, then put it there: hosts may do so at once."""
    partial = Path(out, f".report.{os.getpid()}.tmp")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        summary.write(str(partial), finished)
        for path in sorted(partial.iterdir()):
            os.replace(path, Path(out, path.name))
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def read_shard(text: str) -> tuple[int, int]:
    """(I, N) from "I/N".

    Raises:
        ValueError: it is something else.
    """
    number, slash, count = text.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal()):
        raise ValueError(f"--shard={text}; expected I/N, such as 0/4 … 3/4.")
    if not int(number) < int(count):
        raise ValueError(f"--shard={text}; the first number must be 0 … N − 1.")
    return int(number), int(count)
