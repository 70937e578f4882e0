"""Decoding of uploaded files in a separate process with limits on memory and time.

python -m nim4_jax.serving.server.decoding      the process: a JSON line in, one out

What a decoder does with bytes that nobody expected, crashes among it, happens there.
"""

from __future__ import annotations

import json
import queue
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from nim4_jax.data.audio import reading
from nim4_jax.data.audio.reading import AudioError
from nim4_jax.serving.server.worker_process import WorkerProcess

_NAME = "the file"
_UNREADABLE = "unreadable audio"
_BLOCK_SECONDS = 10.0
_FILES = 64  # open at once


class Pool:
    """Some processes, each of which decodes one file at a time."""

    def __init__(self, processes: int, mebibytes: int, seconds: int):
        """Processes that start when they are first needed.

        Args:
            processes: at once.
            mebibytes: of memory, each.
            seconds: of time, for each file.
        """
        self._idle: queue.SimpleQueue[WorkerProcess] = queue.SimpleQueue()
        limits = str(mebibytes), str(seconds)
        self._all = [
            WorkerProcess(__name__, limits, seconds + 5.0) for _ in range(processes)
        ]
        for process in self._all:
            self._idle.put(process)

    def decode(self, path: Path, out: Path, max_seconds: float) -> np.ndarray:
        """Decode a file; waits for a process that is free.

        Args:
            path: of the file.
            out: for its samples.
            max_seconds: longest audio.

        Returns:
            float32 [S] at 16 kHz, mapped from `out`.

        Raises:
            AudioError: it cannot be decoded within the limits.
        """
        process = self._idle.get()
        told: dict[str, Any] | None
        try:
            told = process.ask(
                {"path": str(path), "out": str(out), "most": max_seconds}
            )
        except TimeoutError:
            told = {"reason": _UNREADABLE, "detail": "decoding took too long"}
        finally:
            self._idle.put(process)
        if told is None:
            told = {"reason": _UNREADABLE, "detail": "the decoder broke off"}
        if told.get("reason"):
            raise AudioError(told["reason"], _NAME, told["detail"])
        return np.memmap(out, np.float32, mode="r").view(np.ndarray)

    def close(self) -> None:
        """End the processes."""
        for process in self._all:
            process.close()


def _limit(mebibytes: int, seconds: int) -> None:
    """Bound this process; its processor time for the next file."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    until = int(used.ru_utime + used.ru_stime) + seconds
    wanted = {
        resource.RLIMIT_AS: mebibytes << 20,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: _FILES,
        resource.RLIMIT_CPU: until,
    }
    for which, most in wanted.items():
        _, hard = resource.getrlimit(which)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(which, (most, hard))


def _read(path: str, most: float) -> Iterator[np.ndarray]:
    """Blocks of a file that is no longer than it may be.

    Raises:
        AudioError: it cannot be read, or is longer.
    """
    _check_length(reading.read_duration(path, name=_NAME), most)
    seconds = 0.0
    try:
        for block in reading.read_blocks(path, _BLOCK_SECONDS, name=_NAME):
            seconds += len(block) / reading.SAMPLE_RATE
            _check_length(seconds, most)
            yield block
    except AudioError as error:
        # What could be decoded is transcribed, as `nim4 transcribe` does.
        if not seconds or error.reason == "too long":
            raise
    if not seconds:
        raise AudioError("zero length", _NAME, "it holds no sample")


def _check_length(seconds: float, most: float) -> None:
    if seconds > most:
        detail = f"it has more than the {most:.0f} s that are allowed"
        raise AudioError("too long", _NAME, detail)


def _decode(job: dict) -> dict:
    """What comes of a job."""
    try:
        with open(job["out"], "wb") as out:
            for block in _read(job["path"], job["most"]):
                out.write(block.tobytes())
    except AudioError as error:
        detail = error.detail.replace(job["path"], _NAME)
        return {"reason": error.reason, "detail": detail}
    except MemoryError:
        return {"reason": _UNREADABLE, "detail": "it needs too much memory"}
    return {}


def main() -> None:
    """The process."""
    mebibytes, seconds = map(int, sys.argv[1:3])
    for line in sys.stdin:
        _limit(mebibytes, seconds)
        print(json.dumps(_decode(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
