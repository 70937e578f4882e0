"""The plain WebSocket protocol, /v1/stream: PCM up, JSON events down.

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
from typing import Any

import numpy as np
import pydantic
from starlette.datastructures import QueryParams
from starlette.websockets import WebSocket

from nim4_jax.data.audio.audio_error import HIGHEST_RATE, LOWEST_RATE
from nim4_jax.data.audio.resample import StreamResampler
from nim4_jax.decode.endpoint import EndpointConfig
from nim4_jax.decode.live import display
from nim4_jax.decode.live.session import StreamError
from nim4_jax.serving.server import auth
from nim4_jax.serving.server.auth import Tenant
from nim4_jax.serving.server.dialects.conversation import (
    GOING_AWAY,
    NORMAL,
    SLICE,
    STALL_SECONDS,
    Conversation,
    parse,
)
from nim4_jax.serving.server.engine import Options
from nim4_jax.serving.server.errors import ServeError
from nim4_jax.serving.server.hotword_finding import Asked
from nim4_jax.serving.server.hotword_messages import Keywords, ListNames
from nim4_jax.serving.server.languages import check_languages
from nim4_jax.serving.server.state import ServerState
from nim4_jax.serving.server.streams import Stream, describe_names

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

    silence_ms: int = pydantic.Field(default=600, ge=100, le=10_000)
    prefix_ms: int = pydantic.Field(default=300, ge=0, le=2_000)
    threshold: float = pydantic.Field(default=0.5, ge=0.05, le=1.0)

    def make(self) -> EndpointConfig:
        """For the engine."""
        return EndpointConfig(
            threshold=self.threshold,
            release=0.7 * self.threshold,
            end_silence=self.silence_ms / 1000,
            pre_roll=self.prefix_ms / 1000,
        )


class Settings(pydantic.BaseModel):
    """What a client may ask for.

    Attributes:
        rate: of its audio, Hz.
        language: that is spoken; the model knows by itself.
        hints: names for every prompt.
        hotwords: lists of the server, of which names are found.
        chunk_ms: length of chunks; None for the server's default.
        endpointing: whether, and when, pauses end utterances; else the audio's end does
            and its length.
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    rate: int = pydantic.Field(default=16_000, ge=LOWEST_RATE, le=HIGHEST_RATE)
    language: str | None = None
    hints: Keywords = ()
    hotwords: ListNames = ()
    chunk_ms: int | None = None
    endpointing: bool | Endpointing = True

    async def make(self, state: ServerState, tenant: Tenant) -> Options:
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
        asked = Asked(tenant, self.hints, self.hotwords)
        found = await state.find_names(asked, chunk_ms)
        return Options(chunk_ms, found.hints, found.follow(), boundaries)


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
    """Settings of the address; lists by commas or one after the other.

    Raises:
        ServeError: see `read_settings`.
    """
    values: dict[str, Any] = {k: v for k, v in query.items() if k not in _IGNORED}
    for name in ("hints", "hotwords"):
        if name in values:
            values[name] = ",".join(query.getlist(name)).split(",")
    return read_settings(values, Settings())


async def serve(websocket: WebSocket, state: ServerState) -> None:
    """One client.

    Raises:
        ServeError: before the upgrade: settings that are wrong.
    """
    settings = read_query(websocket.query_params)
    options = await settings.make(state, websocket.scope["state"]["tenant"])
    offered = websocket.scope.get("subprotocols", ())
    await websocket.accept(_SUBPROTOCOL if _SUBPROTOCOL in offered else None)
    await _Conversation(websocket, state, settings, options).run()


class _Conversation(Conversation):
    """A client's messages, and what they are answered with."""

    def __init__(
        self,
        websocket: WebSocket,
        state: ServerState,
        settings: Settings,
        options: Options,
    ):
        super().__init__(websocket, state)
        self._settings, self._options = settings, options
        self._stream: Stream | None = None
        self._opened: asyncio.Future[Stream | None] = asyncio.Future()
        self._resampler: StreamResampler | None = None
        self._half = b""  # of a sample whose other byte has not come

    async def greet(self) -> None:
        await self.send({"event": "ready", "id": self.id, **self._describe()})

    def close(self) -> None:
        if self._stream is None:
            return
        self.state.engine.drop(self._stream)
        self.state.metrics.stream_audio.inc(self._stream.seconds)
        facts: dict[str, Any] = {"audio_seconds": round(self._stream.seconds, 2)}
        if self._stream.final_seconds is not None:
            facts["longest_final"] = round(self._stream.final_seconds, 3)
        facts |= describe_names(self._settings.hotwords, self._stream.hits)
        self.websocket.scope["state"]["facts"] = facts

    async def take(self, message: dict[str, Any]) -> None:
        if (text := message.get("text")) is not None:
            before = self._settings
            await self._take_message(text)
            if self._settings is not before:
                await self.send({"event": "configured", **self._describe()})
            return
        data = message.get("bytes") or b""
        for begin in range(0, len(data), SLICE):
            await self._take_audio(data[begin : begin + SLICE])

    async def _take_message(self, text: str) -> None:
        """Settings, or the end."""
        values = parse(text)
        kind = values.pop("type", "start")
        if kind == "end":
            self._end()
        elif kind == "start":
            await self._configure(values)
        elif kind == "update":
            await self._update(values)
        else:
            raise ServeError(
                400,
                "unknown_type",
                "type is one of start, update and end.",
                param="type",
            )

    async def _configure(self, values: dict[str, Any]) -> None:
        if self._stream is not None:
            raise ServeError(
                400,
                "stream_has_begun",
                'settings come before the audio; {"type": "update"} changes hints.',
            )
        settings = read_settings(values, self._settings)
        self._options = await settings.make(self.state, self.tenant)
        self._settings = settings

    async def _update(self, values: dict[str, Any]) -> None:
        """Hints and lists, from the next chunk on."""
        if wrong := next((key for key in values if key not in _CHANGING), None):
            raise ServeError(
                400,
                "invalid_value",
                f"only {' and '.join(_CHANGING)} may change.",
                param=wrong,
            )
        settings = read_settings(values, self._settings)
        options = await settings.make(self.state, self.tenant)
        if self._stream is not None:
            session = self._stream.session
            session.hints, session.retriever = options.hints, options.retriever
        self._settings, self._options = settings, options

    def _open(self) -> Stream:
        """The stream, from the first audio on."""
        if self._stream is None:
            self._stream = self.state.engine.open(self._options)
            self._resampler = StreamResampler(self._settings.rate)
            self._opened.set_result(self._stream)
        return self._stream

    async def _take_audio(self, data: bytes) -> None:
        if self.ended:
            raise ServeError(400, "stream_has_ended", "audio came behind the end.")
        stream = self._open()
        assert self._resampler is not None
        joined = self._half + data
        whole = len(joined) // 2 * 2
        self._half = joined[whole:]
        samples = np.frombuffer(joined[:whole], "<i2").astype(np.int16, copy=False)
        self._feed(stream, self._resampler.feed(samples))
        if stream.seconds > self.state.config.stream_seconds:
            self._end()
            raise ServeError(400, "stream_too_long", "the stream was ended.")
        await stream.wait_room(STALL_SECONDS)

    def _feed(self, stream: Stream, samples: np.ndarray) -> None:
        try:
            stream.feed(samples)
        except StreamError as error:
            raise ServeError(400, "invalid_audio", str(error)) from error

    def _end(self) -> None:
        """No more audio."""
        if self.ended:
            return
        stream = self._open()
        self.ended = True
        assert self._resampler is not None
        self._feed(stream, self._resampler.finish())
        stream.end()

    def stop(self) -> None:
        if self._stream is not None:
            self._end()
        elif not self._opened.done():
            self.ended = True
            self._opened.set_result(None)

    async def write(self) -> None:
        stream = await self._opened
        while stream is not None and (event := await stream.outbox.get()) is not None:
            await self.send(display.describe(event))
        seconds = round(stream.seconds, 3) if stream else 0.0
        await self.send({"event": "done", "seconds": seconds})
        going = self.state.draining.is_set()
        await self.websocket.close(GOING_AWAY if going else NORMAL)

    async def tell(self, error: ServeError) -> None:
        await self.send({"event": "error", "error": error.describe()})

    def _describe(self) -> dict[str, Any]:
        """The settings as they are now."""
        config = self.state.config
        chunk_ms = self._settings.chunk_ms or config.chunk_ms[0]
        own = self._settings.model_dump(mode="json")
        return {"model": config.model_name, **own, "chunk_ms": chunk_ms}


_CHANGING = ("hints", "hotwords")
