"""The plain WebSocket, /v1/stream: PCM up, JSON events down, for ten lines of code.

    client                               server
    GET /v1/stream?rate=16000         →
                                      ←  {"event": "ready", …}
    {"rate": 8000, "hints": […]}      →                         before audio, if at all
                                      ←  {"event": "configured", …}
    PCM16, little-endian, mono        →
                                      ←  {"event": "partial", …} {"event": "final", …}
    {"type": "end"}                   →
                                      ←  {"event": "final", …} {"event": "done", …}

A message that is wrong is answered with {"event": "error", …} and changes nothing.
"""

from __future__ import annotations

import asyncio
import json
from typing import Annotated, Any

import numpy as np
import pydantic
from starlette.datastructures import QueryParams
from starlette.websockets import WebSocket, WebSocketDisconnect

from nim4_jax.data.audio.audio_error import HIGHEST_RATE, LOWEST_RATE
from nim4_jax.data.audio.resample import StreamResampler
from nim4_jax.decode.endpoint import EndpointConfig
from nim4_jax.decode.live import display
from nim4_jax.decode.live.session import StreamError
from nim4_jax.retrieval import names
from nim4_jax.serving.server import auth, errors
from nim4_jax.serving.server.engine import Options
from nim4_jax.serving.server.errors import ServeError
from nim4_jax.serving.server.languages import check_languages
from nim4_jax.serving.server.state import ServerState
from nim4_jax.serving.server.streams import BrokenOff, Stream

NORMAL, GOING_AWAY, VIOLATION, INTERNAL, TRY_LATER = 1000, 1001, 1008, 1011, 1013
_CODES = {"slow_reader": VIOLATION, "overloaded": TRY_LATER}
_MOST_ERRORS = 50
_STALL_SECONDS = 30.0
_NEVER = 1e6  # s
_SUBPROTOCOL = "nim4"
_IGNORED = (*auth.QUERY, "model")


class Endpointing(pydantic.BaseModel):
    """When an utterance is over.

    Attributes:
        silence_ms: without speech that end it.
        prefix_ms: of audio kept before speech.
        threshold: probability of speech at which it begins.
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    silence_ms: int = pydantic.Field(600, ge=100, le=10_000)
    prefix_ms: int = pydantic.Field(300, ge=0, le=2_000)
    threshold: float = pydantic.Field(0.5, ge=0.05, le=1.0)

    def make(self) -> EndpointConfig:
        """For the engine."""
        return EndpointConfig(
            threshold=self.threshold,
            release=0.7 * self.threshold,
            end_silence=self.silence_ms / 1000,
            pre_roll=self.prefix_ms / 1000,
        )


Hint = Annotated[str, pydantic.Field(max_length=256)]


class Settings(pydantic.BaseModel):
    """What a client may ask for.

    Attributes:
        rate: of its audio, Hz.
        language: that is spoken; the model knows by itself.
        hints: names for every prompt.
        hotwords: list of the server, of which names are found.
        chunk_ms: length of chunks; None for the server's default.
        endpointing: whether, and when, pauses end utterances; else the audio's end does
            and its length.
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    rate: int = pydantic.Field(16_000, ge=LOWEST_RATE, le=HIGHEST_RATE)
    language: str | None = None
    hints: tuple[Hint, ...] = pydantic.Field((), max_length=256)
    hotwords: str | None = None
    chunk_ms: int | None = None
    endpointing: bool | Endpointing = True

    def make(self, state: ServerState) -> Options:
        """For the engine.

        Raises:
            ServeError: a field with a value that this server has not.
        """
        config = state.config
        chunk_ms = self.chunk_ms or config.chunk_ms[0]
        if not state.engine.has_chunk(chunk_ms):
            raise ServeError(
                400,
                "invalid_value",
                f"chunk_ms={chunk_ms}; this server has {list(config.chunk_ms)}.",
                param="chunk_ms",
            )
        check_languages([self.language] if self.language else [], config, "language")
        boundaries = None
        if isinstance(self.endpointing, Endpointing):
            boundaries = self.endpointing.make()
        elif not self.endpointing:
            boundaries = EndpointConfig(end_silence=_NEVER)
        found = state.lists.find(self.hotwords)
        return Options(
            chunk_ms,
            tuple(name for name in map(names.clean, self.hints) if name),
            found.retriever if found else None,
            boundaries,
        )


def read_settings(values: dict[str, Any], before: Settings) -> Settings:
    """Settings with some changed.

    Raises:
        ServeError: one that is unknown, or has a value that it cannot have.
    """
    try:
        return Settings(**{**before.model_dump(exclude_unset=True), **values})
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        param = str(first["loc"][0])
        unknown = first["type"] == "extra_forbidden"
        raise ServeError(
            400,
            "unknown_field" if unknown else "invalid_value",
            f"{param} is no setting; there are {', '.join(Settings.model_fields)}."
            if unknown
            else f"{'.'.join(map(str, first['loc']))}: {first['msg']}.",
            param=param,
        ) from None


def read_query(query: QueryParams) -> Settings:
    """Settings of the address; hints by commas or one after the other.

    Raises:
        ServeError: see `read_settings`.
    """
    values: dict[str, Any] = {k: v for k, v in query.items() if k not in _IGNORED}
    if "hints" in values:
        values["hints"] = ",".join(query.getlist("hints")).split(",")
    return read_settings(values, Settings())


async def serve(websocket: WebSocket, state: ServerState) -> None:
    """One client.

    Raises:
        ServeError: before the upgrade: settings that are wrong.
    """
    settings = read_query(websocket.query_params)
    settings.make(state)
    offered = websocket.scope.get("subprotocols", ())
    await websocket.accept(_SUBPROTOCOL if _SUBPROTOCOL in offered else None)
    conversation = _Conversation(websocket, state, settings)
    try:
        await conversation.run()
    finally:
        conversation.close()


class _Conversation:
    """A client's messages, and what they are answered with."""

    def __init__(self, websocket: WebSocket, state: ServerState, settings: Settings):
        self._websocket, self._state, self._settings = websocket, state, settings
        self._stream: Stream | None = None
        self._opened: asyncio.Future[Stream | None] = asyncio.Future()
        self._resampler: StreamResampler | None = None
        self._half = b""  # of a sample whose other byte has not come
        self._ended = False
        self._errors = 0

    async def run(self) -> None:
        """Until one of the two sides is done."""
        await self._send({"event": "ready", "id": self._id, **self._describe()})
        tasks = [asyncio.create_task(work()) for work in (self._read, self._write)]
        draining = asyncio.create_task(self._drain())
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                await self._settle(task)
        finally:
            for task in (*tasks, draining):
                task.cancel()
            await asyncio.gather(*tasks, draining, return_exceptions=True)

    def close(self) -> None:
        """Give back what it had."""
        if self._stream is None:
            return
        self._state.engine.drop(self._stream)
        self._state.metrics.stream_audio.inc(self._stream.seconds)
        facts: dict[str, Any] = {"audio_seconds": round(self._stream.seconds, 2)}
        if self._stream.final_seconds is not None:
            facts["longest_final"] = round(self._stream.final_seconds, 3)
        self._websocket.scope["state"]["facts"] = facts

    @property
    def _id(self) -> str:
        return self._websocket.scope["state"]["request_id"]

    async def _settle(self, task: asyncio.Task) -> None:
        """What a side that is done has come to."""
        try:
            await task
        except BrokenOff as error:
            fatal = ServeError(500, error.code, error.message, kind=errors.SERVER)
            await self._leave(fatal, _CODES.get(error.code, INTERNAL))
        except ServeError as error:
            await self._leave(error, VIOLATION)
        except WebSocketDisconnect:
            return

    async def _leave(self, error: ServeError, code: int) -> None:
        try:
            await self._tell(error)
            await self._websocket.close(code, error.code)
        except (WebSocketDisconnect, RuntimeError, TimeoutError):
            return  # nobody hears it

    async def _read(self) -> None:
        """What the client sends, until it goes.

        Raises:
            ServeError, BrokenOff, WebSocketDisconnect: the stream is over.
        """
        while True:
            message = await self._receive()
            try:
                if (text := message.get("text")) is not None:
                    self._take_message(text)
                elif data := message.get("bytes"):
                    await self._take_audio(data)
            except ServeError as error:
                self._errors += 1
                if self._errors > _MOST_ERRORS or error.status >= 500:
                    raise
                await self._tell(error)
            else:
                if self._changed():
                    told = {"event": "configured", **self._describe()}
                    await self._send(told)

    async def _receive(self) -> dict[str, Any]:
        seconds = None if self._ended else self._state.config.idle_seconds
        try:
            async with asyncio.timeout(seconds):
                message = await self._websocket.receive()
        except TimeoutError:
            raise ServeError(
                408, "idle", f"no message came for {seconds:.0f} s."
            ) from None
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1005))
        return dict(message)

    def _take_message(self, text: str) -> None:
        """Settings, or the end."""
        try:
            values = json.loads(text)
        except (ValueError, RecursionError):
            raise ServeError(400, "invalid_json", "the message is no JSON.") from None
        if not isinstance(values, dict):
            raise ServeError(400, "invalid_json", "expected a JSON object.")
        kind = values.pop("type", "start")
        if kind == "end":
            self._end()
        elif kind == "start":
            self._configure(values)
        elif kind == "update":
            self._update(values)
        else:
            raise ServeError(
                400,
                "unknown_type",
                "type is one of start, update and end.",
                param="type",
            )

    def _configure(self, values: dict[str, Any]) -> None:
        if self._stream is not None:
            raise ServeError(
                400,
                "stream_has_begun",
                'settings come before the audio; {"type": "update"} changes hints.',
            )
        settings = read_settings(values, self._settings)
        settings.make(self._state)
        self._settings = settings
        self._told = False

    def _update(self, values: dict[str, Any]) -> None:
        """Hints and lists, from the next chunk on."""
        if wrong := next((key for key in values if key not in _CHANGING), None):
            raise ServeError(
                400,
                "invalid_value",
                f"only {' and '.join(_CHANGING)} may change.",
                param=wrong,
            )
        settings = read_settings(values, self._settings)
        options = settings.make(self._state)
        if self._stream is not None:
            session = self._stream.session
            session.hints, session.retriever = options.hints, options.retriever
        self._settings = settings
        self._told = False

    _told = True

    def _changed(self) -> bool:
        """Whether the client has to be told of its settings."""
        changed, self._told = not self._told, True
        return changed

    def _open(self) -> Stream:
        """The stream, from the first audio on."""
        if self._stream is None:
            self._stream = self._state.engine.open(self._settings.make(self._state))
            self._resampler = StreamResampler(self._settings.rate)
            self._opened.set_result(self._stream)
        return self._stream

    async def _take_audio(self, data: bytes) -> None:
        if self._ended:
            raise ServeError(400, "stream_has_ended", "audio came behind the end.")
        stream = self._open()
        assert self._resampler is not None
        joined = self._half + data
        whole = len(joined) // 2 * 2
        self._half = joined[whole:]
        samples = np.frombuffer(joined[:whole], "<i2").astype(np.int16)
        self._feed(stream, self._resampler.feed(samples))
        if stream.seconds > self._state.config.stream_seconds:
            self._end()
            raise ServeError(400, "stream_too_long", "the stream was ended.")
        await stream.wait_room(_STALL_SECONDS)

    def _feed(self, stream: Stream, samples: np.ndarray) -> None:
        try:
            stream.feed(samples)
        except StreamError as error:
            raise ServeError(400, "invalid_audio", str(error)) from error

    def _end(self) -> None:
        """No more audio."""
        if self._ended:
            return
        self._ended = True
        if self._opened.done() and self._stream is None:
            return
        stream = self._open()
        assert self._resampler is not None
        self._feed(stream, self._resampler.finish())
        stream.end()

    async def _drain(self) -> None:
        """The server shall stop: what was said gets its finals."""
        await self._state.draining.wait()
        if self._stream is None:
            if not self._opened.done():
                self._opened.set_result(None)
        else:
            self._end()

    async def _write(self) -> None:
        """Events, until the last."""
        stream = await self._opened
        while stream is not None and (event := await stream.outbox.get()) is not None:
            await self._send(display.describe(event))
        seconds = round(stream.seconds, 3) if stream else 0.0
        await self._send({"event": "done", "seconds": seconds})
        going = self._state.draining.is_set()
        await self._websocket.close(GOING_AWAY if going else NORMAL)

    async def _tell(self, error: ServeError) -> None:
        self._state.metrics.refusals.labels(error.code).inc()
        await self._send({"event": "error", "error": error.describe()})

    async def _send(self, message: dict[str, Any]) -> None:
        text = json.dumps(message, ensure_ascii=False, allow_nan=False)
        await self._websocket.send_text(text)

    def _describe(self) -> dict[str, Any]:
        """The settings as they are now."""
        config = self._state.config
        chunk_ms = self._settings.chunk_ms or config.chunk_ms[0]
        own = self._settings.model_dump(mode="json")
        return {"model": config.model_name, **own, "chunk_ms": chunk_ms}


_CHANGING = ("hints", "hotwords")
