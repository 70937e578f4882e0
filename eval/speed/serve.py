"""A server and its clients: how many streams it holds, how late, and what is busy.

    this process ─ starts ─ server ── /v1/stream ── clients (a process of their own)

Each trial has a fresh server, staggered clients that speak in real time, and packets of
50 ms. N streams are held where at most `LATE` of the partials come more than a chunk
late, 95 % of the finals within `FINAL` seconds, and no stream breaks off. Accuracy is
none of this module's business.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import logging

from nim4_jax.data.audio import reading
from nim4_jax.eval import stream_runs
from nim4_jax.eval.measures import latency
from nim4_jax.eval.speed import measure
from nim4_jax.eval.speed.serve_process import DEVICES, Address, start
from nim4_jax.eval.speed.streaming import LATE, load_speech

FINAL = 1.0
"""Seconds from a known end of speech to the final, for 95 % of them."""

_FIRST = 8  # streams tried first
_SECONDS = (15.0, 120.0)  # quick and full; short trials flatter
_GRAIN = (3, 16)  # see `stream_runs.find_most`
_TRACKS = 16
_CLIENTS = "nim4_jax.eval.speed.serve_clients"
_SLACK = 120.0  # s that clients may take beside their audio


@dataclasses.dataclass(frozen=True)
class Settings:
    """What may be chosen.

    Attributes:
        model: workdir, .safetensors or bundle to serve.
        device: one of DEVICES: "none" is a server whose device costs nothing.
        url: of the plain WebSocket of a server that runs, instead.
        clips: folder of recordings that clients play; "" for the packaged commands.
        streams: most that are tried.
        seconds: of each trial; 0 for the default.

    Raises:
        ValueError: nothing to serve, or two things.
    """

    model: str = ""
    device: str = "model"
    url: str = ""
    clips: str = ""
    streams: int = 32
    seconds: float = 0.0

    def __post_init__(self):
        served = [bool(self.model), bool(self.url), self.device == "none"]
        if self.device not in DEVICES or sum(served) != 1:
            raise ValueError(
                "what shall be served? Give one of --model=WORKDIR, --url=ws://…/v1/"
                f"stream and --device=none; got {self}."
            )


@dataclasses.dataclass(frozen=True)
class Trial:
    """Of some number of streams.

    Attributes:
        streams: how many.
        seconds: of audio of each.
        outcome: see `serve_clients.Outcome`, as a dict.
        processor: seconds that each part of the server took, by its name; empty where
            the server does not say.
    """

    streams: int
    seconds: float
    outcome: dict
    processor: dict[str, float]

    @property
    def held(self) -> bool:
        """Whether the server held them."""
        outcome = self.outcome
        limit = outcome["chunk_seconds"]
        final = latency.summarise(outcome["finals"])["p95"]
        return (
            not outcome["gave_up"]
            and not outcome["failed"]
            and latency.late_share(outcome["partials"], limit) <= LATE
            and (final is None or final <= FINAL)
        )


def run(full: bool, threads: int, settings: Settings) -> list[measure.Row]:
    """The most streams that are held, and figures of that trial.

    Args:
        full: trials of two minutes, and a finer search.
        threads: cores of the server, which the launcher has limited this process to.
            Clients get the machine's others, or share them where there are none.
        settings: see there.

    Raises:
        ValueError: the server does not start, or clips that cannot be read.
    """
    seconds = settings.seconds or _SECONDS[full]
    trials: dict[int, Trial] = {}
    with tempfile.TemporaryDirectory() as folder:
        tracks = write_tracks(Path(folder), load_clips(settings.clips), seconds)

        def holds(count: int) -> bool:
            with start(settings, count) as address:
                # One stream is shown even if it is late.
                trial = try_streams(address, tracks, count, seconds, patient=count == 1)
            trials[count] = trial
            outcome = trial.outcome
            verdict = "held" if trial.held else "not held"
            logging.info(
                "%d streams: %s (%d of %d partials late, %d streams failed %s)",
                *(count, verdict, outcome["late"], len(outcome["partials"])),
                *(outcome["failed"], outcome["error"]),
            )
            return trial.held

        held = stream_runs.find_most(holds, _FIRST, settings.streams, _GRAIN[full])
    return describe(held, trials[held or 1], len(trials))


def load_clips(folder: str) -> list[np.ndarray]:
    """Recordings, float32 at 16 kHz.

    Raises:
        ValueError: no file in the folder, or one that is no audio.
    """
    if not folder:
        return load_speech()
    files = sorted(path for path in Path(folder).glob("*") if path.is_file())
    if not files:
        raise ValueError(f"--clips={folder}: no files there; name a folder of audio.")
    return [reading.decode(str(path)) for path in files]


def write_tracks(folder: Path, clips: Sequence[np.ndarray], seconds: float) -> Path:
    """What clients say, int16 [tracks, samples]; clips and pauses in turn."""
    joined = [stream_runs.join_speech(clips, seconds, seed) for seed in range(_TRACKS)]
    path = folder / "tracks.npy"
    np.save(path, np.stack([reading.to_int16(track) for track in joined]))
    return path


def try_streams(
    address: Address,
    tracks: Path,
    count: int,
    seconds: float,
    *,
    patient: bool = False,
) -> Trial:
    """So many clients of a server, each for so long.

    Args:
        address: of the server.
        tracks: see `write_tracks`.
        count: of clients.
        seconds: of audio of each.
        patient: whether to go on where too many chunks are late.

    Raises:
        RuntimeError: the clients' process failed.
    """
    plan = {
        "url": address.url,
        "tracks": str(tracks),
        "streams": count,
        "seconds": seconds,
        "late_share": None if patient else LATE,
        "cores": list_other_cores(),
    }
    before = address.read_processor()
    done = subprocess.run(
        [sys.executable, "-m", _CLIENTS],
        input=json.dumps(plan),
        capture_output=True,
        text=True,
        timeout=2 * seconds + _SLACK,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"the clients failed: {done.stderr.strip()[-500:]}.")
    after = address.read_processor()
    spent = {part: after[part] - before.get(part, 0.0) for part in after}
    return Trial(count, seconds, json.loads(done.stdout), spent)


def list_other_cores() -> list[int]:
    """Cores that are not this process', else all."""
    if not hasattr(os, "sched_getaffinity"):
        return []
    own, every = os.sched_getaffinity(0), set(range(os.cpu_count() or 1))
    return sorted(every - own or every)


def describe(held: int, trial: Trial, trials: int) -> list[measure.Row]:
    """Rows: the number held; delays and processor time of the trial that is shown."""

    def row(figure: str, unit: str, value: float, runs: int) -> measure.Row:
        return measure.Row(figure, unit, value, None, "none", None, runs)

    outcome = trial.outcome
    rows = [row("served_streams_held", "streams", held, trials)]
    for name, delays in (
        ("partial_lag", outcome["partials"]),
        ("speech_end_to_final", outcome["finals"]),
        ("client_packet_lateness", outcome["pacing"]),
    ):
        summary = latency.summarise(delays)
        for rank in latency.PERCENTILES:
            value = 1e3 * (summary[f"p{rank}"] or 0.0)
            rows.append(row(f"{name}_p{rank}_ms", "ms", value, len(delays)))
    audio = trial.streams * trial.seconds
    taken = {**trial.processor, "clients": outcome["processor_seconds"]}
    for part, spent in taken.items():
        figure = f"{part}_processor_ms_per_audio_second"
        rows.append(row(figure, "ms", 1e3 * spent / audio, trial.streams))
    return rows
