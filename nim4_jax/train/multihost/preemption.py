"""Handling of SIGTERM and SIGINT: the step is finished and saved before exit.

The exit code is `errors.EXIT_AGAIN`: the same command goes on where it was.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils

from nim4_jax.process.errors import Interrupted

_LOOK = 0.25  # seconds between two looks while sleeping


class Preemption:
    """Listens for SIGTERM (a machine is taken away) and SIGINT (Ctrl-C).

                      outside `deferred`     inside, one process     several hosts
    SIGTERM           raises Interrupted     `requested` is true     JAX tells all hosts
    SIGINT            raises Interrupted     `requested` is true     as SIGTERM
    SIGINT again      ends the process       ends the process        ends the process

    Where `jax.distributed` is up, its preemption service has the SIGTERM and finds a
    step that all hosts will reach: begin to listen after it was initialised.
    """

    def __init__(self, *signals: signal.Signals):
        """Take what to listen for; SIGTERM and SIGINT by default."""
        self._signals = signals or (signal.SIGTERM, signal.SIGINT)
        self._before: dict[int, Any] = {}
        self._asked = ""
        self._deferred = False
        self._calls = 0

    def __enter__(self) -> Preemption:
        """Listen from now on; in the main thread only, where Python hears signals."""
        if threading.current_thread() is threading.main_thread():
            for number in self._signals:
                if number != signal.SIGTERM or not jax.distributed.is_initialized():
                    self._before[number] = signal.signal(number, self._hear)
        return self

    def __exit__(self, *_: Any) -> None:
        """As before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def requested(self) -> bool:
        """Whether to save and end now; all hosts ask after each step, and agree."""
        if not jax.distributed.is_initialized():
            return bool(self._asked)
        # Not the step: the service wants numbers that rise from one stage to the next.
        self._calls += 1
        return multihost_utils.reached_preemption_sync_point(self._calls)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside, signals wait for `requested` or `sleep` to be called, or for the end.

        Raises:
            Interrupted: a signal came, and what was inside had ended by itself.
        """
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        self.check()

    def check(self) -> None:
        """Stop here if asked to; one of several hosts does not stop by itself.

        Raises:
            Interrupted: a signal came.
        """
        if self._asked and not jax.distributed.is_initialized():
            raise Interrupted(f"{self._asked} was received")

    def sleep(self, seconds: float) -> None:
        """As `time.sleep`, but a signal ends it; on several hosts all sleep alike.

        Raises:
            Interrupted: a signal came, to any of the hosts.
        """
        looks = max(1, round(seconds / _LOOK))  # equally many on each host
        for _ in range(looks):
            time.sleep(seconds / looks)
            if self.requested():
                raise Interrupted(f"{self._asked or 'a signal'} was received")

    def _hear(self, number: int, frame: Any) -> None:
        del frame
        name = signal.Signals(number).name
        if self._asked and number == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
            return
        self._asked = name
        if jax.distributed.is_initialized():
            os.kill(os.getpid(), signal.SIGTERM)  # the preemption service hears it
        if not self._deferred:
            self.check()
        # Printing is not safe in here: the signal may have come in the midst of it.
        os.write(2, f"\n{name}: the step is finished and saved\n".encode())
