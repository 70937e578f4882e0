"""Near matches among many names: recall at a phoneme error, false hints, time a step.

Names are said by the simulator, in bundled commands; false hints are counted on the
bundled recordings, heard by the shipped stage-1 model in chunks of 640 ms.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Sequence

import numpy as np

from nim4_jax.data import audio, sources
from nim4_jax.decode.segments import Batcher
from nim4_jax.eval import hypotheses
from nim4_jax.eval.hypotheses import Hypothesis
from nim4_jax.launch import recognition
from nim4_jax.launch.benchmarks import measure
from nim4_jax.retrieval.database import Database, Gate
from nim4_jax.retrieval.hotwords import HotwordRetriever, StreamState
from nim4_jax.retrieval.layer import Layer
from nim4_jax.retrieval.phonetic_index import PhoneticIndex
from nim4_jax.text import phonemes

_MODEL = "package:nano_stage1.safetensors"
_SPEECH = "bundled:commands:test"
_STEP = 16  # encoder frames
_RATES = (0, 5, 10, 20)  # percent
_SHAPES = (3.0, 6.0, 12.0), (16, 16, 8)

Said = tuple[frozenset[str], Hypothesis]
"""Names that count as found, and what was heard."""


def run(base: Database, folder: str, full: bool) -> list[measure.Row]:
    """Figures of near retrieval; the peer is ScaNN with the same verification.

    Args:
        base: the names.
        folder: where ScaNN's index over its windows is kept.
        full: more names are said.
    """
    measure.need("scann")
    layers = {
        "ours": Layer(base),
        "scann": Layer(base, index=open_index(base, folder)),
        "exact": Layer(base, Gate(near_rate=0.0)),
    }
    retrievers = {name: HotwordRetriever([layer]) for name, layer in layers.items()}
    rng = np.random.default_rng(0)
    said = {rate: say_names(base, 2000 if full else 500, rate, rng) for rate in _RATES}
    speech = hear_speech()
    rows = _time_steps(retrievers, [heard for _, heard in said[10]], "simulated")
    rows += _time_steps(retrievers, [heard for _, heard in speech], "speech")
    for rate in _RATES:
        found = {name: recall(r, said[rate]) for name, r in retrievers.items()}
        near, peer = found["ours"], found["scann"]
        ratio, count = near / peer, len(said[rate])
        rows += [
            measure.Row(
                f"near_recall_per{rate}", "", near, peer, "ScaNN", ratio, count
            ),
            _plain(f"exact_recall_per{rate}", "", found["exact"], count),
        ]
    seconds = sum(len(heard.log_probs) * heard.frame_seconds for _, heard in speech)
    minutes = seconds / 60
    false = {name: count_false(r, speech) / minutes for name, r in retrievers.items()}
    near, exact = false["ours"], false["exact"]
    return [
        *rows,
        measure.Row(
            "false_hints_per_min_near",
            "1/min",
            near,
            exact,
            "exact matches only",
            exact / near if near else None,
            len(speech),
        ),
        _plain("false_hints_per_min_exact", "1/min", exact, len(speech)),
        _plain("false_hints_per_min_scann", "1/min", false["scann"], len(speech)),
    ]


def _plain(figure: str, unit: str, ours: float, runs: int) -> measure.Row:
    return measure.Row(figure, unit, ours, None, "none", None, runs)


def open_index(base: Database, folder: str) -> PhoneticIndex:
    """ScaNN's index over the windows of a database, trained once and kept."""
    windows = base.windows.phonemes
    if os.path.isdir(folder):
        index = PhoneticIndex.load(folder)
        if len(index) != len(windows) or set(map(bytes, index.windows)) != set(
            map(bytes, windows)
        ):
            index = PhoneticIndex.updated(folder, windows)
            index.save(folder)
        return index
    index = PhoneticIndex.build(windows)
    index.save(folder)
    return index


def say_names(
    base: Database, count: int, percent: int, rng: np.random.Generator
) -> list[Said]:
    """Names that may be found, each somewhere in a command."""
    records = sources.open_source(_SPEECH)
    allowed = np.flatnonzero(base.allow(Gate()))
    said = []
    for key in rng.choice(allowed, count):
        command = phonemes.encode_phonemes(records[rng.integers(len(records))]["text"])
        cut = int(rng.integers(len(command) + 1))
        spoken = [*command[:cut], *base.machine.spell(int(key)), *command[cut:]]
        names = frozenset(name.text for name in base.names_of(int(key)))
        said.append((names, hypotheses.simulate(spoken, percent / 100, rng)))
    return said


def hear_speech() -> list[Said]:
    """What the shipped model hears of the bundled test recordings, and what was said.

    The transcript stands for all names that it contains.
    """
    recogniser = recognition.load(_MODEL, chunk_ms=40 * _STEP).recogniser
    records = sources.open_source(_SPEECH)
    batcher = Batcher(*_SHAPES)
    heard: dict[int, Hypothesis] = {}

    def hear(batches) -> None:
        for batch in batches:
            scored = recogniser.score_phonemes(batch.audio)
            heard.update(zip(map(int, batch.keys), map(Hypothesis.read, scored)))

    for index in range(len(records)):
        hear(batcher.add(index, audio.decode(records[index]["audio"])))
    hear(batcher.flush())
    return [
        (frozenset([records[index]["text"]]), heard[index])
        for index in sorted(heard)
        if index >= 0
    ]


def scan(
    retriever: HotwordRetriever,
    heard: Hypothesis,
    watch: Callable[[float], None] = lambda seconds: None,
) -> StreamState:
    """A whole hearing in steps of 16 frames, as a stream brings it."""
    state = StreamState()
    for begin in range(0, len(heard.log_probs), _STEP):
        now = slice(*np.searchsorted(heard.frames, [begin, begin + _STEP]))
        piece = heard.log_probs[begin : begin + _STEP]
        started = time.perf_counter()
        state, _ = retriever.scan(state, heard.phonemes[now], piece, heard.times[now])
        watch(time.perf_counter() - started)
    return state


def _time_steps(
    retrievers: dict[str, HotwordRetriever], heard: Sequence[Hypothesis], kind: str
) -> list[measure.Row]:
    """A step's time, the two by turns."""
    times: dict[str, list[float]] = {"ours": [], "scann": []}
    for name in times:
        scan(retrievers[name], heard[0])
    for one in heard:
        for name, own in times.items():
            scan(retrievers[name], one, own.append)
    rows = []
    for percent in (50, 99):
        ours, peer = (np.percentile(own, percent) * 1e3 for own in times.values())
        figure = f"near_step16_p{percent}_ms" + ("" if kind == "speech" else f"_{kind}")
        count = len(times["ours"])
        rows.append(
            measure.Row(
                figure,
                "ms",
                float(ours),
                float(peer),
                "ScaNN",
                float(peer / ours),
                count,
            )
        )
    return rows


def recall(retriever: HotwordRetriever, said: Sequence[Said]) -> float:
    """Share of the hearings in which the name was found."""
    found = [
        bool(names & {hit.text for hit in scan(retriever, heard).hits})
        for names, heard in said
    ]
    return float(np.mean(found))


def count_false(retriever: HotwordRetriever, speech: Sequence[Said]) -> int:
    """Hits that are not in what was said."""
    return sum(
        not _contains(text, hit.text)
        for (text,), heard in speech
        for hit in scan(retriever, heard).hits
    )


def _contains(text: str, name: str) -> bool:
    """Whether a text has a name in it, as words if it is written in letters."""
    text, name = (re.sub(r"[^\w']+", " ", t).strip().casefold() for t in (text, name))
    return f" {name} " in f" {text} " if name.isascii() else name in text
