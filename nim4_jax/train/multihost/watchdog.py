"""A watchdog that reports a hanging run with stack traces and ends the process.

A host that hangs stops all others in their next collective, silently. So each one tells
the coordinator of `jax.distributed` every now and then where it is; when nothing has
happened for too long, each says which hosts it is waiting for, and exits with
`errors.EXIT_HUNG`, so that the scheduler starts the run again.
"""

from __future__ import annotations

import dataclasses
import faulthandler
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import jax
from jax._src import distributed  # its key-value store has no public name

from nim4_jax.process import errors

_PLACE = "nim4/heartbeats"
_LONGEST = 60.0  # seconds between two heartbeats, at most
_MISSED = 3  # heartbeats that a host may leave out before it counts as silent


@dataclasses.dataclass(frozen=True)
class Beat:
    """A heartbeat: what a host reports of itself.

    Attributes:
        count: of its heartbeats.
        step: where it is.
        phase: what it does there.
        name: of the machine, with the process id.
    """

    count: int
    step: int
    phase: str
    name: str


class Watchdog:
    """Ends the process when nothing is marked for too long.

    Use it as a context around what is watched.
    """

    def __init__(
        self,
        minutes: float,
        end: Callable[[int], Any] = os._exit,
    ):
        """Take how long nothing may happen (0: for ever) and how to end.

        Raises:
            ValueError: a negative time.
        """
        if minutes < 0:
            raise ValueError(
                f"config.timeout_minutes={minutes}; give minutes, or 0 for ever."
            )
        self._limit, self._end = 60 * minutes, end
        self._period = min(_LONGEST, self._limit / 10)
        self._name = f"{socket.gethostname()}, process {os.getpid()}"
        self._place, self._since = (0, "starting"), time.monotonic()
        self._closed = threading.Event()
        self._heard: dict[int, tuple[Beat, float]] = {}

    def __enter__(self) -> Watchdog:
        """Watch from now on."""
        self.touch()
        if self._limit:
            for work in (self._watch, self._beat):
                threading.Thread(target=work, daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        """Watch no more."""
        self._closed.set()

    def mark(self, step: int, phase: str) -> None:
        """The run has come so far: it begins `phase` of `step`."""
        self._place = (step, phase)
        self.touch()

    def touch(self) -> None:
        """The run waits for something on purpose."""
        self._since = time.monotonic()

    def _watch(self) -> None:
        while not self._closed.wait(min(1.0, self._period)):
            if time.monotonic() - self._since > self._limit:
                print(f"error: {self._describe()}", file=sys.stderr)
                # Where each thread stands, for who wants to know why.
                faulthandler.dump_traceback(sys.stderr)
                sys.stderr.flush()
                self._end(errors.EXIT_HUNG)
                return

    def _beat(self) -> None:
        """In a thread of its own: the coordinator may be the one that hangs."""
        client, rank = distributed.global_state.client, jax.process_index()
        count = 0
        while client is not None and not self._closed.wait(self._period):
            count += 1
            beat = Beat(count, *self._place, self._name)
            text = json.dumps(dataclasses.asdict(beat))
            try:
                client.key_value_set(f"{_PLACE}/{rank}", text, allow_overwrite=True)
                rows = client.key_value_dir_get(_PLACE)
            except Exception:  # who cannot be reached shows by being silent
                continue
            for key, value in rows:
                self._hear(int(key.rsplit("/", 1)[1]), Beat(**json.loads(value)))

    def _hear(self, rank: int, beat: Beat) -> None:
        known = self._heard.get(rank)
        if known is None or known[0].count != beat.count:
            self._heard[rank] = (beat, time.monotonic())

    def _describe(self) -> str:
        """Where this host is, and which others it waits for."""
        step, phase = self._place
        own = jax.process_index()
        lines = [
            f"nothing has happened for {self._limit / 60:.3g} minutes in step {step}, "
            f"{phase}, on host {own} ({self._name}); giving up with exit code "
            f"{errors.EXIT_HUNG}: run the same command again."
        ]
        if jax.process_count() > 1:
            lines += self._describe_others(own, step) or [
                "every host is heard and is in the same step."
            ]
        return "\n  ".join(lines)

    def _describe_others(self, own: int, step: int) -> list[str]:
        now, heard = time.monotonic(), dict(self._heard)
        patience = _MISSED * self._period
        if own not in heard or now - heard[own][1] > patience:
            name = heard[0][0].name if 0 in heard else "never heard"
            return [f"host 0 ({name}), the coordinator, does not answer."]
        lines = []
        for rank in range(jax.process_count()):
            if rank not in heard:
                lines.append(f"host {rank} was never heard.")
                continue
            beat, when = heard[rank]
            where = f"in step {beat.step}, {beat.phase}"
            if now - when > patience:
                lines.append(
                    f"host {rank} ({beat.name}) is silent for {now - when:.0f} s; it "
                    f"was {where}."
                )
            elif rank != own and beat.step < step:
                lines.append(f"host {rank} ({beat.name}) is behind: {where}.")
            elif rank != own and beat.phase != self._place[1]:
                lines.append(f"host {rank} ({beat.name}) is {where}.")
        return lines
