"""Decoding of uploaded files in a separate process with limits on memory and time.

python -m nim4_jax.serving.server.decoding      the process: a JSON line in, one out

What a decoder does with bytes that nobody expected, crashes among it, happens there.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import resource
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from nim4_jax.data.audio import reading
from nim4_jax.data.audio.reading import AudioError

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
        self._idle: queue.SimpleQueue[_Process] = queue.SimpleQueue()
        self._all = [_Process(mebibytes, seconds) for _ in range(processes)]
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
        try:
            told = process.ask(
                {"path": str(path), "out": str(out), "most": max_seconds}
            )
        finally:
            self._idle.put(process)
        if told.get("reason"):
            raise AudioError(told["reason"], _NAME, told["detail"])
        return np.memmap(out, np.float32, mode="r").view(np.ndarray)

    def close(self) -> None:
        """End the processes."""
        for process in self._all:
            process.kill()


class _Process:
    """One of them, started anew when it has died."""

    def __init__(self, mebibytes: int, seconds: int):
        self._limits, self._seconds = (str(mebibytes), str(seconds)), seconds
        self._process: subprocess.Popen | None = None

    def ask(self, job: dict) -> dict:
        """What it says of a job; a process that says nothing is killed.

        One that had died since the last job is no fault of this one.
        """
        used = self._process is not None
        told = self._ask(job)
        if told is None and used:
            told = self._ask(job)
        if told is None:
            return {"reason": _UNREADABLE, "detail": "the decoder broke off"}
        return told

    def _ask(self, job: dict) -> dict | None:
        """What it says; None: it has died."""
        process = self._start()
        assert process.stdin and process.stdout
        with contextlib.suppress(BrokenPipeError):  # it has died: it says nothing
            process.stdin.write(json.dumps(job).encode() + b"\n")
            process.stdin.flush()
        ready, _, _ = select.select([process.stdout], [], [], self._seconds + 5.0)
        if not ready:
            self.kill()
            return {"reason": _UNREADABLE, "detail": "decoding took too long"}
        if line := process.stdout.readline():
            return json.loads(line)
        self.kill()
        return None

    def kill(self) -> None:
        """End it, and what it has started."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe:
                pipe.close()

    def _start(self) -> subprocess.Popen:
        if self._process is not None and self._process.poll() is not None:
            self.kill()
        if self._process is None:
            kept = ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH", "PYTHONPATH", "TMPDIR")
            environment = {key: os.environ[key] for key in kept if key in os.environ}
            # Each thread of a BLAS would ask for memory that nobody uses.
            environment["OPENBLAS_NUM_THREADS"] = environment["OMP_NUM_THREADS"] = "1"
            self._process = subprocess.Popen(
                [sys.executable, "-m", __spec__.name, *self._limits],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,
            )
        return self._process


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
