"""A process of ours that works on one job at a time: a JSON line in, one out."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

_KEPT = ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH", "PYTHONPATH", "TMPDIR")


class WorkerProcess:
    """One of them, started anew when it has died."""

    def __init__(self, module: str, arguments: Sequence[str], seconds: float):
        """One that starts with its first job.

        Args:
            module: that is run.
            arguments: of its command line.
            seconds: that a job may take.
        """
        self._command = [sys.executable, "-m", module, *arguments]
        self._seconds = seconds
        self._process: subprocess.Popen | None = None
        self._closed = False

    def ask(self, job: dict[str, Any]) -> dict[str, Any] | None:
        """What it says of a job; None: it has died of it.

        One that had died since the last job is no fault of this one.

        Raises:
            TimeoutError: it took too long, and was killed.
        """
        used = self._process is not None
        told = self._ask(job)
        return self._ask(job) if told is None and used else told

    def close(self) -> None:
        """End it for good."""
        self._closed = True
        self.kill()

    def _ask(self, job: dict[str, Any]) -> dict[str, Any] | None:
        if self._closed:
            return None
        process = self._start()
        assert process.stdin and process.stdout
        with contextlib.suppress(BrokenPipeError):  # it has died: it says nothing
            process.stdin.write(json.dumps(job).encode() + b"\n")
            process.stdin.flush()
        ready, _, _ = select.select([process.stdout], [], [], self._seconds)
        if not ready:
            self.kill()
            raise TimeoutError(f"no answer after {self._seconds:.0f} s.")
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
            environment = {key: os.environ[key] for key in _KEPT if key in os.environ}
            # Each thread of a BLAS would ask for memory that nobody uses.
            environment["OPENBLAS_NUM_THREADS"] = environment["OMP_NUM_THREADS"] = "1"
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,
            )
        return self._process
