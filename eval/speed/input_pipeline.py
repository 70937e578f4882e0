"""The input pipeline alone: Ogg Opus at 16 kHz to padded batches, on one core.

The speech is the bundled commands, joined to utterances of 2 to 15 s of one speaker and
written once, as single files and as an ArrayRecord data set. It is read by the iterator
that training reads, in the batches of the large sizes. Nothing is cached: each run
decodes, changes the speed, adds noise and pads anew. SpecAugment is in no figure: it
runs on the device, within the training step.

Figures count the seconds of the recordings as they are stored: neither slower speech
nor added silence makes the pipeline look faster. The machine may be busy with other
work, so each figure is there by the processor's time and by the clock.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from nim4_jax.configs import base
from nim4_jax.data.audio import reading
from nim4_jax.data.noise import mixing, noise_synthesis
from nim4_jax.data.pipeline import iterators, transforms
from nim4_jax.data.pipeline.config import fit_rows
from nim4_jax.data.sources import builders, examples, opening
from nim4_jax.eval.speed import measure
from nim4_jax.model_files import loading

_SECONDS = (2.0, 15.0)
_FEWEST = 10  # commands of a voice that is used
_TOP = 5  # parts of a profile that are shown

# What a profile tells apart: part, and the function that it is, by its owner and name.
# None of these functions calls another one of them.
_PARTS: tuple[tuple[str, Any, str], ...] = (
    ("reading", examples.Corpus, "__getitem__"),
    ("decoding", reading, "decode"),
    ("rounding", reading, "to_int16"),
    ("rounding", reading, "to_float32"),
    ("speed", reading, "change_speed"),
    ("babble", mixing, "mix_babble"),
    ("vehicle", noise_synthesis, "make_vehicle"),
    ("music", noise_synthesis, "make_music"),
    ("mixing", mixing, "pad_silence"),
    ("mixing", mixing, "mix"),
    ("padding", transforms, "pad_rows"),
)


class Speech(builders.ManifestBuilder):
    """The benchmark's utterances as a TFDS data set."""

    SPLIT_NAMES = ("train",)
    DESCRIPTION = "Bundled commands, joined for `nim4 bench input`."


def join_commands(count: int) -> Iterator[dict[str, Any]]:
    """Records of one voice each, with `samples`, float32 [S] at 16 kHz.

    Each lasts 2 s or more, and holds as many commands as fit into a length that is
    drawn from 2 … 15 s.
    """
    records = builders.open_bundled("commands", "train")
    voices: dict[str, list[dict[str, Any]]] = {}
    for index in range(len(records)):
        record = records[index]
        voices.setdefault(record["voice"], []).append(record)
    spoken = [voice for voice in voices.values() if len(voice) >= _FEWEST]
    rng = np.random.default_rng(0)
    for number in range(count):
        voice = spoken[number % len(spoken)]
        wanted, seconds, chosen = rng.uniform(*_SECONDS), 0.0, []
        for place in rng.permutation(len(voice)):
            record = voice[place]
            if seconds < _SECONDS[0] or seconds + record["duration"] <= wanted:
                chosen.append(record)
                seconds += record["duration"]
        yield {
            "id": f"speech-{number}",
            "text": ", ".join(record["text"] for record in chosen),
            "lang": chosen[0]["lang"],
            "voice": chosen[0]["voice"],
            "keywords": [],
            "samples": np.concatenate([reading.decode(r["audio"]) for r in chosen]),
        }


def write_corpus(folder: Path, count: int, threads: int) -> tuple[str, str]:
    """Write the utterances as Ogg Opus files and, the same bytes, as ArrayRecord.

    Returns:
        Specifications of the two as sources of `DataConfig`.
    """

    def write(record: dict[str, Any]) -> str:
        samples = record.pop("samples")
        record["audio"] = f"{record['id']}.opus"
        record["duration"] = len(samples) / reading.SAMPLE_RATE
        path = folder / record["audio"]
        soundfile.write(path, samples, reading.SAMPLE_RATE, "OPUS", format="OGG")
        return json.dumps(record, ensure_ascii=False) + "\n"

    with ThreadPoolExecutor(threads) as pool:
        lines = list(pool.map(write, join_commands(count)))
    manifest = folder / "train.jsonl"
    manifest.write_text("".join(lines), encoding="utf8")
    builders.build(Speech, folder, folder)
    return str(manifest), f"tfds:speech:train?data_dir={folder}"


def configure(source: str, **changes: Any) -> iterators.DataConfig:
    """One epoch of a source as the large sizes read it, with one thread.

    Args:
        source: specification.
        **changes: fields of `DataConfig`.
    """
    large = base.get_config("2b3").data
    names = {field.name for field in dataclasses.fields(iterators.DataConfig)}
    fields = {name: large[name] for name in large if name in names}
    fields |= {
        "sources": (source,),
        "tokenizer": loading.find_tokenizer("nano"),
        "threads": 1,
        "epochs": 1,
    }
    made = iterators.DataConfig(**(fields | changes))
    if made.batch_size:
        return made
    rows = fit_rows(made, shards=1, multiple=1)
    return dataclasses.replace(made, batch_size=rows, device_seconds=0.0)


class Reader:
    """The epoch of one configuration, over and over."""

    def __init__(self, config: iterators.DataConfig):
        self._iterator = iterators.make_train_iterator(config)
        self._start = self._iterator.get_state()

    def read(self) -> float:
        """Read the epoch from its first batch on.

        Returns:
            Seconds of the recordings that were read for its rows.

        Raises:
            ValueError: a row could not be read.
        """
        self._iterator.set_state(self._start)
        stored = self._iterator.plan.lengths.seconds
        seconds = sum(float(stored[batch["index"]].sum()) for batch in self._iterator)
        if self._iterator.report.counts:
            raise ValueError(f"rows are missing:\n{self._iterator.report.summary()}")
        return seconds


@dataclasses.dataclass(frozen=True)
class Rate:
    """Seconds of audio in a second of one core: by its own time, and by the clock."""

    cpu: float
    wall: float


def time_works(works: dict[str, Callable[[], float]], runs: int) -> dict[str, Rate]:
    """Medians of interleaved runs, after one of each to warm up.

    Args:
        works: each does its work and returns the seconds of audio in it.
        runs: timed runs of each.
    """
    rates: dict[str, list[Rate]] = {name: [] for name in works}
    for turn in range(runs + 1):
        for name, work in works.items():
            busy, began = time.process_time(), time.perf_counter()
            seconds = work()
            cpu, wall = time.process_time() - busy, time.perf_counter() - began
            if turn:
                rates[name].append(Rate(seconds / cpu, seconds / wall))
    return {
        name: Rate(
            statistics.median(rate.cpu for rate in found),
            statistics.median(rate.wall for rate in found),
        )
        for name, found in rates.items()
    }


@contextlib.contextmanager
def _watch_parts() -> Iterator[dict[str, float]]:
    """Seconds of the processor in each part, growing while the context is open.

    A general profiler takes longer for a call than many calls here take.
    """
    spent = dict.fromkeys((part for part, _, _ in _PARTS), 0.0)

    def watch(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Any:
            began = time.process_time()
            try:
                return function(*arguments, **options)
            finally:
                spent[part] += time.process_time() - began

        return timed

    found = [(owner, name, getattr(owner, name)) for _, owner, name in _PARTS]
    try:
        for (part, _, _), (owner, name, function) in zip(_PARTS, found):
            setattr(owner, name, watch(part, function))
        yield spent
    finally:
        for owner, name, function in found:
            setattr(owner, name, function)


def profile(config: iterators.DataConfig) -> dict[str, float]:
    """Percent of the processor's time that each part of an epoch takes, largest first.

    Everything happens in one thread, after an epoch to warm up.
    """
    reader = Reader(dataclasses.replace(config, threads=0))
    reader.read()
    with _watch_parts() as spent:
        began = time.process_time()
        reader.read()
        whole = time.process_time() - began
    shares = {part: 100 * seconds / whole for part, seconds in spent.items()}
    shares["rest"] = 100 - sum(shares.values())
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def _decode_alone(manifest: str) -> tuple[Callable[[], float], Callable[[], float]]:
    """Decoding every file whole: ours, and libsndfile's without anything around it."""
    source = opening.open_source(manifest)
    paths = [source[index]["audio"] for index in range(len(source))]

    def ours() -> float:
        return sum(len(reading.decode(path)) for path in paths) / reading.SAMPLE_RATE

    def theirs() -> float:
        decoded = (soundfile.read(path, dtype="float32")[0] for path in paths)
        return sum(map(len, decoded)) / reading.SAMPLE_RATE

    return ours, theirs


def _show(name: str, runs: int, ours: Rate, peer: Rate | None = None) -> list:
    """Two rows of one work; here more is better."""
    rows = []
    for clock in ("cpu", "wall"):
        own, other = getattr(ours, clock), peer and getattr(peer, clock)
        rows.append(
            measure.Row(
                figure=f"{name}_x_realtime_per_core_{clock}",
                unit="x real time",
                ours=own,
                peer=other,
                peer_name="soundfile.read" if peer else "none",
                ratio=own / other if other else None,
                runs=runs,
            )
        )
    return rows


def _show_alone(figure: str, unit: str, value: float) -> measure.Row:
    return measure.Row(figure, unit, value, None, "none", None, 1)


def run(full: bool, threads: int) -> list[measure.Row]:
    """Decoding alone, the pipeline clean, augmented, and with noise in every row."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files, archive = write_corpus(folder, 200 if full else 48, threads)
        clean = {"speed_perturb": (1.0,), "noise_share": 0.0}
        configs = {
            "clean_files": configure(files, **clean),
            "clean_archive": configure(archive, **clean),
            "augmented_archive_before_spec_augment": configure(archive),
            "noise_on_all_archive_before_spec_augment": configure(
                archive, noise_share=1.0
            ),
        }
        decode, plain = _decode_alone(files)
        works = {"decode_alone": decode, "peer": plain}
        works |= {name: Reader(config).read for name, config in configs.items()}
        runs = 5 if full else 3
        rates = time_works(works, runs)
        peer = rates.pop("peer")
        rows = _show("decode_alone", runs, rates.pop("decode_alone"), peer)
        for name, rate in rates.items():
            rows += _show(name, runs, rate)
        for name, config in configs.items():
            shares = list(profile(config).items())[:_TOP]
            rows += [
                _show_alone(f"{name}_{part}_percent", "%", share)
                for part, share in shares
            ]
        size = sum(path.stat().st_size for path in folder.glob("*.opus"))
        seconds = plain()
        rows.append(_show_alone("recordings_minutes", "min", seconds / 60))
        rows.append(_show_alone("recordings_kbit_s", "kbit/s", size / seconds / 125))
    return rows
