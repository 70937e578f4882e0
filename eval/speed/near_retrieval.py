"""Near matches among many names: recall at a phoneme error, false hints, time a step.

Names are said by the simulator, in bundled commands: any name of the list, also those
that the gate holds back. False hints are counted on the bundled recordings, in which
nobody says a name of the list, heard by the shipped stage-1 model in chunks of 640 ms.
"""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Callable, Sequence

import numpy as np

from nim4_jax.data.audio import reading
from nim4_jax.data.sources import opening
from nim4_jax.decode.segments import Batcher
from nim4_jax.eval.measures import hypotheses
from nim4_jax.eval.speed import measure
from nim4_jax.model_files import loading
from nim4_jax.retrieval import database
from nim4_jax.retrieval.database import Database
from nim4_jax.retrieval.gate import NOWHERE, SCANN
from nim4_jax.retrieval.hints import select_hints
from nim4_jax.retrieval.hotwords import HotwordRetriever, StreamState
from nim4_jax.retrieval.hypothesis import Hypothesis
from nim4_jax.retrieval.layer import Layer
from nim4_jax.serving import recognisers
from nim4_jax.text import phonemes
from nim4_jax.text.tokenizer import Tokenizer

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
        folder: of the database; ScaNN's index is added to it.
        full: more names are said.
    """
    measure.need("scann")
    database.index_folder(folder)
    layers = {
        "ours": Layer(base),
        "scann": Layer(database.load(folder, SCANN), near=SCANN),
        "exact": Layer(base, near=NOWHERE),
    }
    retrievers = {name: HotwordRetriever([layer]) for name, layer in layers.items()}
    rng = np.random.default_rng(0)
    said = {rate: say_names(base, 2000 if full else 500, rate, rng) for rate in _RATES}
    speech = hear_speech()
    rows = _time_steps(retrievers, [heard for _, heard in said[10]], "simulated")
    rows += _time_steps(retrievers, [heard for _, heard in speech], "speech")
    for rate in _RATES:
        rows += _compare_recall(retrievers, said[rate], rate)
    return rows + _compare_false(retrievers, speech)


def _compare_recall(
    retrievers: dict[str, HotwordRetriever], said: Sequence[Said], rate: int
) -> list[measure.Row]:
    """Of all names: how many are found, and how many come into the prompt."""
    found = {name: recall(each, said) for name, each in retrievers.items()}
    (near, hinted), (peer, peer_hinted) = found["ours"], found["scann"]
    count = len(said)
    return [
        measure.Row(
            f"near_recall_per{rate}", "", near, peer, "ScaNN", near / peer, count
        ),
        measure.Row(
            f"prompt_recall_per{rate}",
            "",
            hinted,
            peer_hinted,
            "ScaNN",
            hinted / peer_hinted,
            count,
        ),
        _plain(f"exact_recall_per{rate}", "", found["exact"][0], count),
    ]


def _compare_false(
    retrievers: dict[str, HotwordRetriever], speech: Sequence[Said]
) -> list[measure.Row]:
    """Names a minute that nobody said: hits, and what of them comes into the prompt."""
    seconds = sum(len(heard.log_probs) * heard.frame_seconds for _, heard in speech)
    false = {
        name: [count * 60 / seconds for count in count_false(each, speech)]
        for name, each in retrievers.items()
    }
    (near, hinted), (exact, _) = false["ours"], false["exact"]
    ratio = exact / near if near else None
    beside = "exact matches only"
    count = len(speech)
    return [
        measure.Row("false_hits_per_min", "1/min", near, exact, beside, ratio, count),
        _plain("false_hits_per_min_scann", "1/min", false["scann"][0], count),
        _plain("false_hints_per_min", "1/min", hinted, count),
        _plain("false_hints_per_min_scann", "1/min", false["scann"][1], count),
    ]


def _plain(figure: str, unit: str, ours: float, runs: int) -> measure.Row:
    return measure.Row(figure, unit, ours, None, "none", None, runs)


def say_names(
    base: Database, count: int, percent: int, rng: np.random.Generator
) -> list[Said]:
    """Names, each somewhere in a command; those that sound the same count too."""
    records = opening.open_source(_SPEECH)
    begins = base.first.astype(np.int64)
    said = []
    for number in rng.integers(len(base.named), size=count):
        key = int(np.searchsorted(begins, number, side="right")) - 1
        command = phonemes.encode_phonemes(records[rng.integers(len(records))]["text"])
        cut = int(rng.integers(len(command) + 1))
        spoken = [*command[:cut], *base.machine.spell(key), *command[cut:]]
        names = frozenset(name.text for name in base.names_of(key))
        said.append((names, hypotheses.simulate(spoken, percent / 100, rng)))
    return said


def hear_speech() -> list[Said]:
    """What the shipped model hears of the bundled test recordings, and what was said.

    The transcript stands for all names that it contains.
    """
    recogniser = recognisers.load(_MODEL, chunk_ms=40 * _STEP).recogniser
    records = opening.open_source(_SPEECH)
    batcher = Batcher(*_SHAPES)
    heard: dict[int, Hypothesis] = {}

    def hear(batches) -> None:
        for batch in batches:
            scored = recogniser.score_phonemes(batch.audio)
            heard.update(zip(map(int, batch.keys), map(Hypothesis.read, scored)))

    for index in range(len(records)):
        hear(batcher.add(index, reading.decode(records[index]["audio"])))
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


@functools.cache
def _tokenizer() -> Tokenizer:
    return Tokenizer.from_file(loading.find_tokenizer("nano"))


def recall(retriever: HotwordRetriever, said: Sequence[Said]) -> tuple[float, float]:
    """Shares of the hearings in which the name was found, and came into the prompt."""
    counts = np.zeros(2)
    for names, heard in said:
        hits = scan(retriever, heard).hits
        hinted = select_hints(hits, _tokenizer())
        counts += [bool(names & {hit.text for hit in hits}), bool(names & {*hinted})]
    found, in_prompt = (counts / len(said)).tolist()
    return found, in_prompt


def count_false(retriever: HotwordRetriever, speech: Sequence[Said]) -> tuple[int, int]:
    """Hits that are not in what was said, and hints."""
    hits, hints = 0, 0
    for (text,), heard in speech:
        found = scan(retriever, heard).hits
        hits += sum(not _contains(text, hit.text) for hit in found)
        chosen = select_hints(found, _tokenizer())
        hints += sum(not _contains(text, name) for name in chosen)
    return hits, hints


def _contains(text: str, name: str) -> bool:
    """Whether a text has a name in it, as words if it is written in letters."""
    text, name = (re.sub(r"[^\w']+", " ", t).strip().casefold() for t in (text, name))
    return f" {name} " in f" {text} " if name.isascii() else name in text
