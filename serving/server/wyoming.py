"""Wyoming over TCP, the protocol of Home Assistant's voice assistants.

    client                                server
    describe                           →
                                       ←  info
    transcribe {language, names}       →
    audio-start, audio-chunk …         →
                                       ←  transcript-start, transcript-chunk …
    audio-stop                         →
                                       ←  …, transcript, transcript-stop

The client finds the end of what is said. Chunks are only appended; `transcript` has the
text that counts. What is wrong is answered by `error`, and ends the connection: clients
wait for a transcript or for that. The protocol has no authentication.

Source: github.com/OHF-Voice/wyoming, `wyoming/asr.py`, `wyoming/info.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
import uuid
from collections.abc import AsyncIterator
from typing import Annotated, Any

import numpy as np
import pydantic

from nim4_jax.data.audio.audio_error import HIGHEST_RATE, LOWEST_RATE
from nim4_jax.data.audio.resample import StreamResampler
from nim4_jax.decode import subtitles
from nim4_jax.decode.endpoint import EndpointConfig
from nim4_jax.decode.live.events import Event, Final, Partial
from nim4_jax.decode.live.session import StreamError
from nim4_jax.serving.server import languages
from nim4_jax.serving.server.auth import Tenant
from nim4_jax.serving.server.config import ServerConfig
from nim4_jax.serving.server.dialects.conversation import SLICE, STALL_SECONDS
from nim4_jax.serving.server.door import LOG
from nim4_jax.serving.server.engine import Options
from nim4_jax.serving.server.errors import ServeError
from nim4_jax.serving.server.hotword_finding import Asked
from nim4_jax.serving.server.hotword_messages import LONGEST_NAME, MOST_KEYWORDS
from nim4_jax.serving.server.state import ServerState
from nim4_jax.serving.server.streams import BrokenOff, Stream
from nim4_jax.serving.server.wyoming_events import (
    HEADER_BYTES,
    ProtocolError,
    WyomingEvent,
    encode,
    read,
)

_CONNECTIONS = 256
_NEVER = 1e6  # s
_UNSENT = 1 << 16  # bytes

Name = Annotated[str, pydantic.Field(max_length=LONGEST_NAME)]


class Transcribe(pydantic.BaseModel):
    """What a client asks for.

    Attributes:
        name: of the model.
        language: that is spoken; the model knows by itself.
        transcript_names: for the prompt; those that it has no room for are looked for.
        transcript_terms: the same, behind the names.
    """

    model_config = pydantic.ConfigDict(frozen=True)

    name: str | None = None
    language: str | None = None
    transcript_names: tuple[Name, ...] | None = None
    transcript_terms: tuple[Name, ...] | None = None

    def check(self, config: ServerConfig) -> None:
        """See that the server can do it.

        Raises:
            ServeError: another model or language.
        """
        if self.name and self.name not in (config.model_name, *config.aliases):
            raise ServeError(
                404, "model_not_found", "there is no such model.", param="name"
            )
        asked = [self.language] if self.language else []
        languages.check_languages(asked, config, "language")

    async def make(self, state: ServerState, tenant: Tenant) -> Options:
        """For the engine."""
        told = (*(self.transcript_names or ()), *(self.transcript_terms or ()))
        asked = Asked(tenant, told[:MOST_KEYWORDS])
        chunk_ms = state.config.chunk_ms[0]
        found = await state.find_names(asked, chunk_ms)
        boundaries = EndpointConfig(end_silence=_NEVER)
        return Options(chunk_ms, found.hints, found.follow(), boundaries)


class Format(pydantic.BaseModel):
    """Of audio.

    Attributes:
        rate: Hz.
        width: bytes of a sample.
        channels: which are averaged.
    """

    model_config = pydantic.ConfigDict(frozen=True)

    rate: int = pydantic.Field(ge=LOWEST_RATE, le=HIGHEST_RATE)
    width: int = pydantic.Field(ge=2, le=2)
    channels: int = pydantic.Field(ge=1, le=8)


def describe(state: ServerState) -> dict[str, Any]:
    """The data of `info`."""
    about = {
        "attribution": {"name": "nim4-jax", "url": ""},
        "installed": True,
        "version": None,
    }
    config = state.config
    model = {
        **about,
        "name": config.model_name,
        "description": "LLM-based speech recognition",
        "languages": list(config.languages),
    }
    program = {
        **about,
        "name": "nim4-jax",
        "description": "nim4 serve",
        "models": [model],
        "supports_transcript_streaming": True,
        "requires_external_vad": True,
    }
    return {"asr": [program]}


class _Turn:
    """From an audio-start to its transcript.

    Attributes:
        format: of its audio.
        stream: of the engine.
        resampler: to its rate.
        ended: whether no more audio is taken.
        texts: of utterances that are over.
        told: text of its chunks.
    """

    def __init__(self, form: Format, stream: Stream):
        self.format, self.stream = form, stream
        self.resampler = StreamResampler(form.rate)
        self.ended = False
        self.texts: list[str] = []
        self.told = ""
        self.id, self.began = uuid.uuid4().hex[:16], time.monotonic()


class _Connection:
    """One client."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        state: ServerState,
        tenant: Tenant,
    ):
        self._reader, self._writer = reader, writer
        self._state, self._tenant = state, tenant
        self._asked = Transcribe()
        self._turn: _Turn | None = None
        self._writing: asyncio.Task | None = None

    async def run(self) -> None:
        """Until the client goes, does something wrong, or the server stops."""
        reading = asyncio.create_task(self._read())
        draining = asyncio.create_task(self._state.draining.wait())
        try:
            await asyncio.wait((reading, draining), return_when=asyncio.FIRST_COMPLETED)
            if not reading.done():
                await _cancel(reading)
                with contextlib.suppress(ProtocolError):
                    self._end()
                await self._await_transcript()
        finally:
            await _cancel(reading, draining, self._writing)
            if self._turn is not None:
                self._leave(self._turn, 499)
            self._writer.close()

    async def _read(self) -> None:
        """Events, as they come."""
        with contextlib.suppress(ConnectionError):
            try:
                while (event := await self._receive()) is not None:
                    await self._take(event)
                if self._turn is not None and self._turn.ended:
                    await self._await_transcript()  # it may only have stopped to send
            except ProtocolError as error:
                await self._refuse(error.code, str(error))
            except (ServeError, BrokenOff) as error:
                await self._refuse(error.code, error.message)
            except pydantic.ValidationError as error:
                first = error.errors(include_url=False)[0]
                place = ".".join(map(str, first["loc"]))
                await self._refuse("invalid_value", f"{place}: {first['msg']}.")
            except TimeoutError:
                await self._refuse("idle", "no event came for too long.")
            except Exception:
                LOG.exception("a Wyoming connection ended by a mistake of the server")
                await self._refuse("server_error", "the server made a mistake.")

    async def _receive(self) -> WyomingEvent | None:
        async with asyncio.timeout(self._state.config.idle_seconds):
            return await read(self._reader)

    async def _take(self, event: WyomingEvent) -> None:
        """What an event asks for; unknown ones nothing, as the protocol has it."""
        if event.kind == "describe":
            await self._send("info", describe(self._state))
        elif event.kind == "ping":
            text = event.data.get("text")
            await self._send("pong", {"text": text} if isinstance(text, str) else {})
        elif event.kind == "transcribe":
            asked = Transcribe.model_validate(event.data)
            asked.check(self._state.config)
            self._asked = asked
        elif event.kind == "audio-start":
            await self._begin(Format.model_validate(event.data))
        elif event.kind == "audio-chunk":
            await self._hear(Format.model_validate(event.data), event.payload)
        elif event.kind == "audio-stop":
            self._end()

    async def _begin(self, form: Format) -> None:
        """A new stream; behind the transcript of the one before.

        Raises:
            ServeError: there is no place for it.
        """
        if self._turn is not None and not self._turn.ended:
            raise ProtocolError("unexpected_event", "audio has started already.")
        await self._await_transcript()
        state = self._state
        state.check_ready()
        state.admission.count_request(self._tenant)
        options = await self._asked.make(state, self._tenant)
        state.admission.take_place(self._tenant)
        try:
            self._turn = _Turn(form, state.engine.open(options))
        except BaseException:
            state.admission.leave(self._tenant)
            raise
        state.metrics.streams.set(state.admission.streams)
        self._asked = Transcribe()  # it was for this turn
        self._writing = asyncio.create_task(self._write(self._turn))

    async def _hear(self, form: Format, payload: bytes) -> None:
        """Audio; some clients do not say that it starts."""
        if self._turn is None or self._turn.ended:
            await self._begin(form)
        turn = self._turn
        assert turn is not None
        if form != turn.format or len(payload) % (form.width * form.channels):
            told = "a chunk has whole samples, in the format that was begun with."
            raise ProtocolError("invalid_audio", told)
        samples = np.frombuffer(payload, "<i2").astype(np.int16, copy=False)
        if form.channels > 1:
            samples = samples.reshape(-1, form.channels)
        for begin in range(0, len(samples), SLICE):
            self._feed(turn, turn.resampler.feed(samples[begin : begin + SLICE]))
            if turn.stream.seconds > self._state.config.stream_seconds:
                raise ProtocolError("stream_too_long", "the stream was ended.")
            await turn.stream.wait_room(STALL_SECONDS)

    def _feed(self, turn: _Turn, samples: np.ndarray) -> None:
        try:
            turn.stream.feed(samples)
        except StreamError as error:
            raise ProtocolError("invalid_audio", str(error)) from error

    def _end(self) -> None:
        """No more audio of the turn, if there is one."""
        turn = self._turn
        if turn is not None and not turn.ended:
            turn.ended = True
            self._feed(turn, turn.resampler.finish())
            turn.stream.end()

    async def _await_transcript(self) -> None:
        if self._writing is not None:
            await asyncio.wait((self._writing,))

    async def _write(self, turn: _Turn) -> None:
        """A turn's events, to its transcript; then its place is free."""
        status = 499
        try:
            await self._send("transcript-start")
            while (event := await turn.stream.outbox.get()) is not None:
                await self._tell(turn, event)
            text = subtitles.join_texts(turn.texts)
            await self._append(turn, text)
            found = languages.find_languages(text)
            spoken = {"language": found[0]} if found else {}
            await self._send("transcript", {"text": text, **spoken})
            await self._send("transcript-stop")
            status = 200
        except BrokenOff as error:
            status = 500
            await self._refuse(error.code, error.message)
        except (ConnectionError, TimeoutError):
            self._writer.transport.abort()  # who does not read is not waited for
        finally:
            self._leave(turn, status)

    async def _tell(self, turn: _Turn, event: Event) -> None:
        if isinstance(event, Final):
            turn.texts.append(event.text)
            await self._append(turn, subtitles.join_texts(turn.texts))
        elif isinstance(event, Partial):
            kept = event.text[: event.stable]
            await self._append(turn, subtitles.join_texts([*turn.texts, kept]))

    async def _append(self, turn: _Turn, text: str) -> None:
        """What of a text is new; nothing where it has become another one."""
        if text.startswith(turn.told) and text != turn.told:
            new, turn.told = text[len(turn.told) :], text
            await self._send("transcript-chunk", {"text": new})

    def _leave(self, turn: _Turn, status: int) -> None:
        """Give back what the turn had, and note it."""
        if self._turn is not turn:
            return
        self._turn = None
        state, stream = self._state, turn.stream
        state.engine.drop(stream)
        state.admission.leave(self._tenant)
        metrics = state.metrics
        metrics.streams.set(state.admission.streams)
        metrics.stream_audio.inc(stream.seconds)
        metrics.requests.labels("wyoming", str(status)).inc()
        facts = {
            "request": turn.id,
            "tenant": self._tenant.name,
            "kind": "wyoming",
            "route": "wyoming",
            "status": status,
            "seconds": round(time.monotonic() - turn.began, 3),
            "audio_seconds": round(stream.seconds, 2),
        }
        LOG.info(json.dumps(facts))

    async def _refuse(self, code: str, message: str) -> None:
        """Tell what is wrong; nothing more is read or written."""
        self._state.metrics.refusals.labels(code).inc()
        try:
            await self._send("error", {"text": message, "code": code})
            self._writer.close()
        except (ConnectionError, TimeoutError):
            self._writer.transport.abort()

    async def _send(self, kind: str, data: dict[str, Any] | None = None) -> None:
        """An event, to who reads it in time.

        Raises:
            ConnectionError, TimeoutError: nobody does.
        """
        self._writer.write(encode(WyomingEvent(kind, data or {})))
        async with asyncio.timeout(self._state.config.send_seconds):
            await self._writer.drain()


class WyomingServer:
    """Listens on a socket, beside the server of all else."""

    def __init__(self, state: ServerState):
        """One that does not listen yet."""
        self._state = state
        self._tenant = Tenant(name="wyoming", streams=state.config.wyoming_streams)
        self._connections: set[asyncio.Task] = set()

    @contextlib.asynccontextmanager
    async def listen(self, listening: socket.socket) -> AsyncIterator[None]:
        """While the context is open; its end ends the connections too.

        Args:
            listening: bound.
        """
        limit = HEADER_BYTES
        server = await asyncio.start_server(self._accept, sock=listening, limit=limit)
        try:
            yield
        finally:
            server.close()
            await _cancel(*self._connections)

    async def _accept(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(self._connections) >= _CONNECTIONS or self._state.draining.is_set():
            writer.close()
            return
        self._connections.add(task)
        writer.transport.set_write_buffer_limits(_UNSENT)
        connection = _Connection(reader, writer, self._state, self._tenant)
        try:
            await connection.run()
        except asyncio.CancelledError:
            return  # asyncio logs servers' tasks that are cancelled
        finally:
            self._connections.discard(task)


async def _cancel(*tasks: asyncio.Task | None) -> None:
    """End tasks, and wait for them."""
    going = [task for task in tasks if task is not None]
    for task in going:
        task.cancel()
    await asyncio.gather(*going, return_exceptions=True)
