"""Hotword retrieval among a million names: speed, memory, recall.

The database is built at the first run, from what `nim4 fetch_names` writes, and kept.
"""

from __future__ import annotations

import concurrent.futures
import itertools
import os
import random
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from nim4_jax.data.sources import opening
from nim4_jax.eval.speed import measure, near_retrieval
from nim4_jax.retrieval import automaton, database
from nim4_jax.retrieval.database import Database
from nim4_jax.retrieval.gate import Gate
from nim4_jax.retrieval.hotwords import HotwordRetriever, StreamState
from nim4_jax.retrieval.layer import Layer
from nim4_jax.retrieval.names import Name, read_names
from nim4_jax.retrieval.pronunciation import pronounce
from nim4_jax.serving import hotword_build
from nim4_jax.text import phonemes

NAMES = "corpus/names.jsonl"
_SCAN, _STEP, _STREAMS, _THREADS = 64, 8, 64, 4
_ADDED = 1000
_PAUSE = 1e-3
"""Seconds between two scans of a server with some hundred streams."""


def open_database(entries: int) -> tuple[Database, str]:
    """A database of that many names, built once, and its folder.

    Raises:
        ValueError: there is no list, or it is shorter.
    """
    folder = f"corpus/hotwords-{entries}"
    if not os.path.exists(os.path.join(folder, database.MANIFEST)):
        if not os.path.exists(NAMES):
            raise ValueError(f"no list at {NAMES}; nim4 fetch_names --out={NAMES}.")
        listed = list(read_names(NAMES))
        if len(listed) < entries:
            raise ValueError(f"{NAMES} holds {len(listed)} names, not {entries}.")
        chosen = random.Random(0).sample(listed, entries)
        hotword_build.build(chosen, folder, workers=os.cpu_count() or 1)
    return database.load(folder), folder


def make_speech(base: Database, count: int) -> list[np.ndarray]:
    """Commands with names of the list between, cut into pieces of 64 phonemes."""
    rng = np.random.default_rng(0)
    records = opening.open_source("bundled:commands:test")
    spoken = [bytes(phonemes.encode_phonemes(r["text"])) for r in records]
    pieces, stream = [], b""
    for sentence in itertools.cycle(spoken):
        key = int(rng.integers(len(base.machine.lengths)))
        stream += sentence + base.machine.spell(key)
        while len(stream) >= _SCAN:
            pieces.append(np.frombuffer(stream[:_SCAN], np.uint8).copy())
            stream = stream[_SCAN:]
        if len(pieces) >= count:
            return pieces[:count]
    raise ValueError("there are no bundled commands.")


def time_calls(
    works: Sequence[Callable[[Any], object]], pieces: Sequence[Any]
) -> np.ndarray:
    """Microseconds of each call, [works, pieces], the works by turns."""
    times = np.zeros((len(works), len(pieces)))
    for work in works:
        work(pieces[0])
    for place, piece in enumerate(pieces):
        for number, work in enumerate(works):
            times[number, place] = _time_once(work, piece)
    return times


def _time_once(work: Callable[[Any], object], piece: Any) -> float:
    """Microseconds of one call."""
    began = time.perf_counter_ns()
    work(piece)
    return (time.perf_counter_ns() - began) / 1e3


def _row(figure: str, unit: str, ours: float, runs: int, peer=None, name="none"):
    ratio = None if peer is None else peer / ours
    return measure.Row(figure, unit, ours, peer, name, ratio, runs)


def run(full: bool, threads: int, entries: int) -> list[measure.Row]:
    """Figures of exact retrieval, each with daachorse's where it has one."""
    del threads
    daachorse, ahocorasick = measure.need("daachorse"), measure.need("ahocorasick")
    base, folder = open_database(entries)
    machine = base.machine
    spelled, begins = machine.spell_all()
    flat = spelled.tobytes()
    keys = [flat[begin:end] for begin, end in itertools.pairwise(begins.tolist())]
    began = time.perf_counter()
    automaton.build(keys)
    built = time.perf_counter() - began
    double_array = daachorse.DoubleArrayAhoCorasick(keys)
    linked = ahocorasick.Automaton()
    for number, key in enumerate(keys):
        linked.add_word(key.decode("latin-1"), number)
    linked.make_automaton()
    pieces = make_speech(base, 20_000 if full else 5_000)
    allowed = machine.allow(base.allow(Gate()))
    works = (
        lambda piece: machine.scan(automaton.ROOT, piece, allowed=allowed),
        lambda piece: double_array.find_overlapping(piece.tobytes()),
        lambda piece: list(linked.iter(piece.tobytes().decode("latin-1"))),
    )
    _check(machine, double_array, pieces[:200])
    whole = np.percentile(time_calls(works, pieces), (50, 99), axis=1)
    steps = [piece[:_STEP] for piece in pieces]
    short = np.percentile(time_calls(works[:1], steps), (50, 99), axis=1)
    runs = len(pieces)
    rows = [
        _row("exact_scan64_p50_us", "us", whole[0, 0], runs, whole[0, 1], "daachorse"),
        _row("exact_scan64_p99_us", "us", whole[1, 0], runs, whole[1, 1], "daachorse"),
        _row(
            "exact_scan64_p99_us_vs_pyahocorasick",
            "us",
            whole[1, 0],
            runs,
            whole[1, 2],
            "pyahocorasick",
        ),
        _row("exact_step8_p99_us", "us", short[1, 0], runs),
        _row("load_first_hit_ms", "ms", _time_load(folder, pieces[0]), 9),
        _row("bytes_per_entry", "B", base.nbytes / len(base), 1),
        _row("build_1m_s", "s", built * 1e6 / len(base), 1),
    ]
    return [
        *rows,
        _time_sentences(base, allowed),
        *(_time_ten_times(keys, pieces, whole[1, 0]) if full else []),
        *_time_updates(base, pieces),
        _time_streams(machine, pieces, allowed),
        *near_retrieval.run(base, folder, full),
    ]


def _check(machine, peer, pieces) -> None:
    """Both find the same.

    Raises:
        ValueError: they do not.
    """
    for piece in pieces:
        _, matches = machine.scan(automaton.ROOT, piece)
        ours = sorted(zip(matches.keys.tolist(), matches.ends.tolist()))
        theirs = sorted((m[2], m[1]) for m in peer.find_overlapping(piece.tobytes()))
        if ours != theirs:
            raise ValueError("the two find different names; times mean nothing.")


def _time_sentences(base: Database, allowed: np.ndarray) -> measure.Row:
    """A sentence with a name in it: its phonemes against FlashText on its letters."""
    peer = measure.need("flashtext").KeywordProcessor()
    names = [base.name(number).text for number in range(len(base))]
    for name in names:
        peer.add_keyword(name)
    records = opening.open_source("bundled:commands:test")
    sentences = [
        f"{records[i % len(records)]['text']} {names[i * 997 % len(names)]}"
        for i in range(1000)
    ]
    heard = [np.asarray(phonemes.encode_phonemes(s), np.uint8) for s in sentences]
    works = (
        lambda pair: base.machine.scan(automaton.ROOT, pair[0], allowed=allowed),
        lambda pair: peer.extract_keywords(pair[1]),
    )
    ours, theirs = np.percentile(
        time_calls(works, [*zip(heard, sentences)]), 99, axis=1
    )
    return _row("exact_scan_sentence_p99_us", "us", ours, 1000, theirs, "FlashText")


def _time_ten_times(
    keys: Sequence[bytes], pieces: Sequence[np.ndarray], before: float
) -> list[measure.Row]:
    """Ten times the keys, each with a spoken digit behind it."""
    digits = [bytes(phonemes.encode_phonemes(f"{d}")) for d in range(9)]
    more = [*keys, *(key + digit for digit in digits for key in keys)]
    began = time.perf_counter()
    machine, _ = automaton.build(more)
    built = time.perf_counter() - began
    p99 = np.percentile(
        time_calls([lambda piece: machine.scan(automaton.ROOT, piece)], pieces), 99
    )
    return [
        _row("build_10x_s", "s", built, 1),
        _row(
            "exact_scan64_10x_p99_us", "us", p99, len(pieces), before, "a tenth of it"
        ),
    ]


def _time_load(folder: str, piece: np.ndarray) -> float:
    """Milliseconds from nothing but files to the first hits."""
    times = []
    for _ in range(9):
        began = time.perf_counter()
        base = database.load(folder)
        _, matches = base.machine.scan(automaton.ROOT, piece)
        [base.names_of(int(key)) for key in matches.keys]
        times.append(time.perf_counter() - began)
    return float(np.median(times)) * 1e3


def _time_updates(base: Database, pieces: Sequence[np.ndarray]) -> list[measure.Row]:
    """How long 1,000 more names take to be heard, and what scans take meanwhile."""
    layer = Layer(base)
    retriever = HotwordRetriever([layer])
    syllables = ("ba", "ko", "ri", "ten", "mu", "sal", "vo", "zhin", "gar", "lef")
    words = ["".join(w) for w in itertools.product(syllables, repeat=4)]
    times = np.zeros((_SCAN, 2))

    def scan(piece: np.ndarray) -> None:
        retriever.scan(StreamState(), piece, None, times)

    quiet = np.percentile(time_calls([scan], pieces), 99)
    visible, busy = [], []
    for turn in range(5):
        added = [Name(word) for word in words[turn * _ADDED : (turn + 1) * _ADDED]]
        heard = np.frombuffer(pronounce(added[-1])[0], np.uint8)
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            began = time.perf_counter()
            done = pool.submit(layer.add, added)
            while not done.done():
                busy.append(_time_once(scan, pieces[len(busy) % len(pieces)]))
                time.sleep(_PAUSE)
            visible.append(time.perf_counter() - began)
        state, _ = retriever.scan(StreamState(), heard, None, times[: len(heard)])
        if added[-1].text not in {hit.text for hit in state.hits}:
            raise ValueError(f"{added[-1].text!r} was added but is not heard.")
        layer.remove([name.text for name in added])
    quiet_too = []
    for piece in pieces[: len(busy)]:
        quiet_too.append(_time_once(scan, piece))
        time.sleep(_PAUSE)
    meanwhile, still = np.median(busy), np.median(quiet_too)
    made = "the same, nothing being added"
    return [
        _row("update_1000_visible_ms", "ms", float(np.median(visible)) * 1e3, 5),
        _row("retriever_scan64_p99_us", "us", float(quiet), len(pieces)),
        _row(
            "scan64_p50_us_while_updating",
            "us",
            float(meanwhile),
            len(busy),
            float(still),
            made,
        ),
    ]


def _time_streams(machine, pieces, allowed) -> measure.Row:
    """A tick of 64 streams by 4 threads, per stream, against one stream; p99."""
    size = _STREAMS // _THREADS

    def scan_one(piece: np.ndarray) -> None:
        machine.scan(automaton.ROOT, piece, allowed=allowed)

    def scan_batch(batch: Sequence[np.ndarray]) -> None:
        for piece in batch:
            scan_one(piece)

    ticks = [pieces[i : i + _STREAMS] for i in range(0, len(pieces), _STREAMS)]
    ticks = [tick for tick in ticks if len(tick) == _STREAMS] * 5
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:

        def serve(tick: Sequence[np.ndarray]) -> None:
            batches = [tick[i : i + size] for i in range(0, _STREAMS, size)]
            list(pool.map(scan_batch, batches))

        together = time_calls([serve], ticks)[0] / _STREAMS
    alone = time_calls([scan_one], pieces)
    return _row(
        "scan64_p99_us_64streams_4threads",
        "us",
        float(np.percentile(together, 99)),
        len(ticks),
        float(np.percentile(alone, 99)),
        "one stream",
    )
