"""Concurrent reading and writing of a WebSocket until one side is done."""

from __future__ import annotations

import abc
import asyncio
import contextlib
import json
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from nim4_jax.serving.server import errors
from nim4_jax.serving.server.auth import Tenant
from nim4_jax.serving.server.door import LOG
from nim4_jax.serving.server.errors import ClientGone, ServeError
from nim4_jax.serving.server.state import ServerState
from nim4_jax.serving.server.streams import BrokenOff

NORMAL, GOING_AWAY, VIOLATION, INTERNAL, TRY_LATER = 1000, 1001, 1008, 1011, 1013
STALL_SECONDS = 30.0
"""That a client waits for a device that does not get on."""
SLICE = 1 << 16
"""Bytes of audio that are taken at once, however long a message is."""
MOST_ERRORS = 50
"""Wrong messages of a client, after which it is left."""
_CODES = {"slow_reader": VIOLATION, "overloaded": TRY_LATER}


class Conversation(abc.ABC):
    """One accepted WebSocket connection.

    Attributes:
        websocket: the connection.
        state: of the server.
        ended: whether no more audio is taken.
    """

    def __init__(self, websocket: WebSocket, state: ServerState):
        """One that has just begun."""
        self.websocket, self.state = websocket, state
        self.ended = False
        self._errors = 0

    @property
    def id(self) -> str:
        """Of the request."""
        return self.websocket.scope["state"]["request_id"]

    @property
    def tenant(self) -> Tenant:
        """Who calls."""
        return self.websocket.scope["state"]["tenant"]

    @abc.abstractmethod
    async def greet(self) -> None:
        """What is sent first."""

    @abc.abstractmethod
    async def take(self, message: dict[str, Any]) -> None:
        """A message of the client.

        Raises:
            ServeError: what is wrong with it.
        """

    @abc.abstractmethod
    async def write(self) -> None:
        """Send events, to the last one; then close."""

    @abc.abstractmethod
    async def tell(self, error: ServeError) -> None:
        """Send an error."""

    @abc.abstractmethod
    def stop(self) -> None:
        """The server shall stop: what was said gets its finals."""

    @abc.abstractmethod
    def close(self) -> None:
        """Give back what it had."""

    async def run(self) -> None:
        """Until one of the two sides is done."""
        tasks: list[asyncio.Task] = []
        try:
            with contextlib.suppress(WebSocketDisconnect):
                await self.greet()
                for work in (self._read, self.write, self._drain):
                    tasks.append(asyncio.create_task(work()))
                await asyncio.wait(tasks[:2], return_when=asyncio.FIRST_COMPLETED)
                for task in tasks[:2]:
                    if task.done():
                        await self._settle(task)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self.close()

    async def send(self, message: dict[str, Any]) -> None:
        """A message as JSON."""
        text = json.dumps(message, ensure_ascii=False, allow_nan=False)
        await self.websocket.send_text(text)

    async def _settle(self, task: asyncio.Task) -> None:
        """What a side that is done has come to."""
        try:
            await task
        except BrokenOff as error:
            fatal = ServeError(500, error.code, error.message, kind=errors.SERVER)
            await self._leave(fatal, _CODES.get(error.code, INTERNAL))
        except ServeError as error:
            await self._leave(error, VIOLATION)
        except (WebSocketDisconnect, ClientGone):
            raise
        except Exception:
            LOG.exception("a connection ended by a mistake of the server")
            await self._leave(errors.die("the server made a mistake."), INTERNAL)

    async def _leave(self, error: ServeError, code: int) -> None:
        try:
            await self._tell(error)
            await self.websocket.close(code, error.code)
        except (WebSocketDisconnect, RuntimeError):
            return  # nobody hears it

    async def _tell(self, error: ServeError) -> None:
        self.state.metrics.refusals.labels(error.code).inc()
        await self.tell(error)

    async def _read(self) -> None:
        """What the client sends, until it goes.

        Raises:
            ServeError, BrokenOff, WebSocketDisconnect: the conversation is over.
        """
        while True:
            message = await self._receive()
            try:
                await self.take(message)
            except ServeError as error:
                self._errors += 1
                if self._errors > MOST_ERRORS or error.status >= 500:
                    raise
                await self._tell(error)

    async def _receive(self) -> dict[str, Any]:
        seconds = None if self.ended else self.state.config.idle_seconds
        try:
            async with asyncio.timeout(seconds):
                message = await self.websocket.receive()
        except TimeoutError:
            told = f"no message came for {seconds:.0f} s."
            raise ServeError(408, "idle", told) from None
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1005))
        return dict(message)

    async def _drain(self) -> None:
        await self.state.draining.wait()
        self.stop()


def parse(text: str) -> dict[str, Any]:
    """A message that is a JSON object.

    Raises:
        ServeError: it is none.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        raise ServeError(400, "invalid_json", "the message is no JSON.") from None
    if not isinstance(values, dict):
        raise ServeError(400, "invalid_json", "expected a JSON object.")
    return values
