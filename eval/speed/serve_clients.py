"""Clients of /v1/stream that speak by the clock of the wall, in a process of their own.

A plan (JSON) on standard input, what came of it (JSON) on standard output. It imports
neither JAX nor the server, so that its processor time is that of clients.

python -m nim4_jax.eval.speed.serve_clients < plan.json
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import json
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from websockets.asyncio.client import ClientConnection, connect

RATE = 16_000
PACKET_SECONDS = 0.05
"""As LiveKit sends."""

_AHEAD = 2.0  # s from when all are connected to the first sample
_APART = 0.02  # s between the beginnings of two streams, at least
_PATIENCE = 15.0  # s that a stream may take to end behind its audio
_CONNECTING = 16  # at once


@dataclasses.dataclass(frozen=True)
class Plan:
    """What the clients shall do.

    Attributes:
        url: of the plain WebSocket.
        tracks: .npy with int16 [tracks, samples]; stream i plays one of them, turned
            around, so that no two say the same at the same time.
        streams: how many.
        seconds: of audio in each.
        late_share: of all chunks, that may be late before they give up; None: any.
        cores: that the process may run on.
    """

    url: str
    tracks: str
    streams: int
    seconds: float
    late_share: float | None = None
    cores: tuple[int, ...] = ()


@dataclasses.dataclass
class Outcome:
    """What came of a plan. Delays are seconds from when all the audio that an event
    needed had been due, until it had come.

    Attributes:
        partials: a delay each.
        finals: a delay each.
        pacing: how late packets were sent: the clients' own fault.
        chunk_seconds: length of the streams' chunks.
        late: partials that came more than a chunk late.
        failed: streams that did not end as they should.
        error: of the first of those.
        gave_up: whether too many were late.
        processor_seconds: of this process.
    """

    partials: list[float] = dataclasses.field(default_factory=list)
    finals: list[float] = dataclasses.field(default_factory=list)
    pacing: list[float] = dataclasses.field(default_factory=list)
    chunk_seconds: float = 0.0
    late: int = 0
    failed: int = 0
    error: str = ""
    gave_up: bool = False
    processor_seconds: float = 0.0


class _Run:
    """All clients of a plan."""

    def __init__(self, plan: Plan):
        self.plan, self.outcome = plan, Outcome()
        tracks = np.load(plan.tracks, mmap_mode="r")
        self._tracks = [bytes(track) for track in tracks]
        self._over = asyncio.Event()

    async def go(self) -> Outcome:
        """Until all have ended, or it makes no sense to go on."""
        plan = self.plan
        async with contextlib.AsyncExitStack() as stack:
            gate = asyncio.Semaphore(_CONNECTING)

            async def enter() -> ClientConnection:
                async with gate:
                    opened = connect(plan.url, compression=None, ping_interval=None)
                    socket = await stack.enter_async_context(opened)
                    ready = json.loads(await socket.recv())
                    self.outcome.chunk_seconds = ready["chunk_ms"] / 1000
                    return socket

            sockets = await asyncio.gather(*(enter() for _ in range(plan.streams)))
            gc.collect()
            gc.freeze()  # a look at all of it is late packets
            apart = max(_APART, self.outcome.chunk_seconds / plan.streams)
            first = time.monotonic() + _AHEAD
            calls = [
                asyncio.create_task(self._call(socket, number, first + number * apart))
                for number, socket in enumerate(sockets)
            ]
            ending = asyncio.create_task(self._over.wait())
            done = asyncio.gather(*calls)
            await asyncio.wait([done, ending], return_when=asyncio.FIRST_COMPLETED)
            self.outcome.gave_up = self._over.is_set()
            tasks: list[asyncio.Task[Any]] = [*calls, ending]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        self.outcome.processor_seconds = time.process_time()
        return self.outcome

    async def _call(self, socket: ClientConnection, number: int, begin: float) -> None:
        """One stream."""
        reading = asyncio.create_task(self._read(socket, begin))
        try:
            await self._speak(socket, number, begin)
            async with asyncio.timeout(_PATIENCE):
                await reading
        except Exception as error:
            self.outcome.failed += 1
            self.outcome.error = self.outcome.error or repr(error)
        finally:
            reading.cancel()

    async def _speak(self, socket: ClientConnection, number: int, begin: float) -> None:
        """Every packet when its last sample is due."""
        for sent, packet in enumerate(self._cut(number), 1):
            due = begin + sent * PACKET_SECONDS
            await asyncio.sleep(due - time.monotonic())
            self.outcome.pacing.append(time.monotonic() - due)
            await socket.send(packet)
        await socket.send('{"type": "end"}')

    def _cut(self, number: int) -> Iterator[bytes]:
        track = memoryview(self._tracks[number % len(self._tracks)])
        size = 2 * round(PACKET_SECONDS * RATE)
        whole = len(track) // size
        turned = number // len(self._tracks) * 37  # packets
        for place in range(round(self.plan.seconds / PACKET_SECONDS)):
            begin = (place + turned) % whole * size
            yield bytes(track[begin : begin + size])

    async def _read(self, socket: ClientConnection, begin: float) -> None:
        """Events until the stream is done.

        Raises:
            RuntimeError: it ended otherwise.
        """
        outcome = self.outcome
        async for message in socket:
            now, told = time.monotonic(), json.loads(message)
            kind = told["event"]
            if kind == "done":
                return
            if kind == "error":
                raise RuntimeError(told["error"]["code"])
            delay = now - begin - told.get("heard", 0.0)
            if kind == "final":
                outcome.finals.append(delay)
            elif kind == "partial":
                outcome.partials.append(delay)
                if delay > outcome.chunk_seconds:
                    self._note_late()
        raise RuntimeError("the connection ended before the stream")

    def _note_late(self) -> None:
        self.outcome.late += 1
        plan = self.plan
        chunks = plan.streams * plan.seconds / self.outcome.chunk_seconds
        if plan.late_share is not None and self.outcome.late > plan.late_share * chunks:
            self._over.set()


def run(plan: Plan) -> Outcome:
    """Do it, on the cores that are given."""
    if plan.cores and hasattr(os, "sched_setaffinity"):
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, plan.cores)

    async def go() -> Outcome:
        return await _Run(plan).go()

    return asyncio.run(go())


def main() -> None:
    """Entry point of the process."""
    values: dict[str, Any] = json.load(sys.stdin)
    json.dump(dataclasses.asdict(run(Plan(**values))), sys.stdout)


if __name__ == "__main__":
    main()
