"""OpenAI's Realtime API, transcription sessions over a WebSocket: /v1/realtime.

    session.update                 → session.updated; what is absent stays
    input_audio_buffer.append      → speech_started … delta … speech_stopped, committed,
                                     conversation.item.added, .done, completed
    input_audio_buffer.commit      → the utterance ends here
    input_audio_buffer.clear       → cleared; nothing more is said of that audio

Deltas are only ever appended: of a partial, what will not change any more is sent. What
goes wrong with an utterance is `.failed`, since clients take `error` for the end.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import dataclasses
import math
import uuid
from typing import Any

import numpy as np
from starlette.websockets import WebSocket

from nim4_jax.data.audio.resample import StreamResampler
from nim4_jax.decode import subtitles
from nim4_jax.decode.live import events
from nim4_jax.decode.live.events import (
    Event,
    Final,
    Partial,
    SpeechStarted,
    SpeechStopped,
)
from nim4_jax.serving.server.dialects import g711, realtime_session
from nim4_jax.serving.server.dialects.conversation import (
    GOING_AWAY,
    SLICE,
    STALL_SECONDS,
    Conversation,
    parse,
)
from nim4_jax.serving.server.dialects.realtime_session import PARTIALS, Session
from nim4_jax.serving.server.engine import Options
from nim4_jax.serving.server.errors import ServeError
from nim4_jax.serving.server.state import ServerState
from nim4_jax.serving.server.streams import BrokenOff, Stream, describe_names

_PCM_RATE = 24_000
_LEAST_SECONDS = 0.1  # of audio that a commit needs
_SUBPROTOCOL = "realtime"
_TRANSCRIPTION = "conversation.item.input_audio_transcription"


async def serve(websocket: WebSocket, state: ServerState) -> None:
    """One client.

    Raises:
        ServeError: before the upgrade: it wants something else than transcription.
    """
    query = websocket.query_params
    if query.get("intent", "transcription") != "transcription":
        raise ServeError(
            400, "invalid_value", "only intent=transcription is served.", param="intent"
        )
    model = query.get("model")
    if model not in (None, state.config.model_name, *state.config.aliases):
        raise ServeError(
            404, "model_not_found", "there is no such model.", param="model"
        )
    offered = websocket.scope.get("subprotocols", ())
    await websocket.accept(_SUBPROTOCOL if _SUBPROTOCOL in offered else None)
    await _Conversation(websocket, state).run()


@dataclasses.dataclass(eq=False)
class _Turn:
    """A stream of the engine: many utterances by VAD, one item without.

    Attributes:
        stream: of the engine.
        resampler: from the client's rate.
        alone: whether it is one item, whatever the pauses.
        start: where it begins in the client's audio, s.
        item: id of the utterance that is open.
        told: text of its deltas.
        texts: of its finals, where it is one item.
        asked: whether the client has asked for its end.
        cleared: whether nothing more is said of it.
        done: set behind its last event.
    """

    stream: Stream
    resampler: StreamResampler
    alone: bool
    start: float
    item: str = ""
    told: str = ""
    texts: list[str] = dataclasses.field(default_factory=list)
    asked: bool = False
    cleared: bool = False
    done: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)


class _Conversation(Conversation):
    """A client's events, and the server's."""

    def __init__(self, websocket: WebSocket, state: ServerState):
        super().__init__(websocket, state)
        self._session = Session.model_validate({})
        self._options: Options | None = None  # of the session
        self._hits = 0  # of streams that have ended
        self._turn: _Turn | None = None
        self._last: _Turn | None = None  # that was opened
        self._turns: asyncio.Queue[_Turn | None] = asyncio.Queue()
        self._half = b""
        self._samples = 0  # since the last commit, at the client's rate
        self._seconds = 0.0  # of all audio before the turn
        self._event_id: str | None = None  # of the client's message
        self._previous: str | None = None

    async def greet(self) -> None:
        await self._emit("session.created", session=self._describe())

    async def take(self, message: dict[str, Any]) -> None:
        self._event_id = None
        text = message.get("text")
        if text is None:
            raise ServeError(400, "invalid_event", "events are JSON texts.")
        event = parse(text)
        given = event.get("event_id")
        self._event_id = given if isinstance(given, str) else None
        takers = {
            "session.update": self._update,
            "input_audio_buffer.append": self._append,
            "input_audio_buffer.commit": self._commit,
            "input_audio_buffer.clear": self._clear,
        }
        kind = event.get("type")
        if kind not in takers:
            raise ServeError(
                400,
                "unknown_event",
                f"type is one of {', '.join(takers)}.",
                param="type",
            )
        await takers[kind](event)

    async def tell(self, error: ServeError) -> None:
        told = {**error.describe(), "event_id": self._event_id}
        await self._emit("error", error=told)

    def stop(self) -> None:
        self.ended = True
        self._end_turn()
        self._turns.put_nowait(None)

    def close(self) -> None:
        seconds = self._seconds
        if self._last is not None:
            self.state.engine.drop(self._last.stream)
            seconds += self._last.stream.seconds if self._turn else 0.0
        self.state.metrics.stream_audio.inc(seconds)
        asked = self._session.heard.transcription
        self.websocket.scope["state"]["facts"] = {
            "audio_seconds": round(seconds, 2),
            **describe_names(asked.hotwords if asked else (), self._hits),
        }

    async def _update(self, event: dict[str, Any]) -> None:
        session = realtime_session.update(self._session, event.get("session"))
        options = await session.make(self.state, self.tenant)
        before, self._session = self._session, session
        self._options = options
        if self._turn is not None:
            same = before.heard.format == session.heard.format
            if same and before.heard.turn_detection == session.heard.turn_detection:
                own = self._turn.stream.session
                own.hints, own.retriever = options.hints, options.retriever
            else:
                self._end_turn()  # the next audio is heard otherwise
        await self._emit("session.updated", session=self._describe())

    async def _append(self, event: dict[str, Any]) -> None:
        if self.ended:
            return  # the server stops
        audio = event.get("audio")
        try:
            data = base64.b64decode(audio, validate=True)
        except (binascii.Error, TypeError, ValueError):
            raise ServeError(
                400, "invalid_audio", "audio is no base64.", param="audio"
            ) from None
        for begin in range(0, len(data), SLICE):
            await self._feed(data[begin : begin + SLICE])

    async def _feed(self, data: bytes) -> None:
        kind = self._session.heard.format.type
        if kind == "audio/pcm":
            joined = self._half + data
            whole = len(joined) // 2 * 2
            self._half = joined[whole:]
            samples = np.frombuffer(joined[:whole], "<i2").astype(np.int16, copy=False)
        else:
            samples = g711.decode(data, kind)
        turn = await self._open_turn()
        self._samples += len(samples)
        turn.stream.feed(turn.resampler.feed(samples))
        await turn.stream.wait_room(STALL_SECONDS)

    async def _open_turn(self) -> _Turn:
        """The turn that audio goes to; one at a time is in the engine."""
        if self._turn is None:
            if self._last is not None:
                await self._last.done.wait()
            heard = self._session.heard
            if self._options is None:
                self._options = await self._session.make(self.state, self.tenant)
            stream = self.state.engine.open(self._options)
            resampler = StreamResampler(self._rate)
            alone = heard.turn_detection is None
            self._turn = _Turn(stream, resampler, alone, self._seconds)
            if alone:
                self._turn.item = _name("item")
            self._last = self._turn
            self._turns.put_nowait(self._turn)
        return self._turn

    @property
    def _rate(self) -> int:
        """Of the client's audio, Hz."""
        own = self._session.heard.format
        telephone = own.type != "audio/pcm"
        return g711.RATE if telephone else own.rate or _PCM_RATE

    def _end_turn(self) -> None:
        """No more audio for the turn; its events come."""
        turn, self._turn = self._turn, None
        self._half, self._samples = b"", 0
        if turn is not None:
            turn.stream.feed(turn.resampler.finish())
            turn.stream.end()
            self._seconds += turn.stream.seconds

    async def _commit(self, _: dict[str, Any]) -> None:
        if self._samples < _LEAST_SECONDS * self._rate or self._turn is None:
            raise ServeError(
                400,
                "input_audio_buffer_commit_empty",
                f"there are less than {_LEAST_SECONDS * 1000:.0f} ms of audio.",
            )
        turn = self._turn
        turn.asked = True
        if turn.alone:
            await self._emit_item(turn.item)
        self._end_turn()

    async def _clear(self, _: dict[str, Any]) -> None:
        turn, self._turn = self._turn, None
        self._half, self._samples = b"", 0
        if turn is not None:
            turn.cleared = True
            self._seconds += turn.stream.seconds
            self.state.engine.drop(turn.stream)
        await self._emit("input_audio_buffer.cleared")

    async def write(self) -> None:
        while (turn := await self._turns.get()) is not None:
            try:
                await self._write_turn(turn)
            except BrokenOff as error:
                if error.code != "stream_failed":
                    raise
                await self._fail(turn, error)
            finally:
                self._hits += turn.stream.hits
                self.state.engine.drop(turn.stream)
                turn.done.set()
        await self.websocket.close(GOING_AWAY)

    async def _write_turn(self, turn: _Turn) -> None:
        while (event := await turn.stream.outbox.get()) is not None:
            if turn.cleared:
                continue
            if turn.alone:
                self._gather(turn, event)
            else:
                await self._write_event(turn, event)
            if isinstance(event, Partial) and PARTIALS in (self._session.include or ()):
                told = {"item_id": turn.item, "stable": event.stable}
                await self._emit(PARTIALS, text=event.text, **told)
        if turn.cleared:
            return
        if turn.alone and turn.asked:
            text = subtitles.join_texts(turn.texts)
            await self._complete(turn, text, turn.stream.seconds)
        elif turn.asked:  # a commit where nobody spoke
            turn.item = _name("item")
            await self._emit_item(turn.item)
            await self._complete(turn, "", 0.0)

    def _gather(self, turn: _Turn, event: Event) -> None:
        """One item of all that is heard."""
        if isinstance(event, Final):
            turn.texts.append(event.text)

    async def _write_event(self, turn: _Turn, event: Event) -> None:
        """An utterance is an item."""
        if isinstance(event, SpeechStarted):
            turn.item, turn.told = _name("item"), ""
            at = round(1000 * (turn.start + event.start))
            kind = "input_audio_buffer.speech_started"
            await self._emit(kind, audio_start_ms=at, item_id=turn.item)
        elif isinstance(event, Partial):
            await self._append_delta(turn, event.text[: event.stable])
        elif isinstance(event, SpeechStopped):
            at = round(1000 * (turn.start + event.end))
            kind = "input_audio_buffer.speech_stopped"
            await self._emit(kind, audio_end_ms=at, item_id=turn.item)
            await self._emit_item(turn.item)
            if event.reason == events.STREAM_ENDED:
                turn.asked = False  # this is the item that was asked for
            else:
                self._samples = 0
        elif isinstance(event, Final):
            await self._complete(turn, event.text, event.end - event.start)

    async def _append_delta(self, turn: _Turn, text: str) -> None:
        """What of a text is new; nothing where it has become another one."""
        if text.startswith(turn.told) and text != turn.told:
            delta, turn.told = text[len(turn.told) :], text
            await self._emit(
                f"{_TRANSCRIPTION}.delta",
                item_id=turn.item,
                content_index=0,
                delta=delta,
            )

    async def _complete(self, turn: _Turn, text: str, seconds: float) -> None:
        await self._append_delta(turn, text)
        await self._emit(
            f"{_TRANSCRIPTION}.completed",
            item_id=turn.item,
            content_index=0,
            transcript=text,
            usage={"type": "duration", "seconds": math.ceil(seconds)},
        )
        turn.told = ""

    async def _fail(self, turn: _Turn, error: BrokenOff) -> None:
        """The item has no text; the next audio begins a new one."""
        if self._turn is turn:
            self._seconds += turn.stream.seconds
            self._turn = None
        told = {"type": "server_error", "code": error.code, "message": error.message}
        await self._emit(
            f"{_TRANSCRIPTION}.failed",
            item_id=turn.item or _name("item"),
            content_index=0,
            error={**told, "param": None},
        )

    async def _emit_item(self, item: str) -> None:
        """An utterance has become an item of the conversation."""
        before, self._previous = self._previous, item
        placed = {"previous_item_id": before}
        await self._emit("input_audio_buffer.committed", item_id=item, **placed)
        content = {"type": "input_audio", "transcript": None}
        described = {
            "id": item,
            "object": "realtime.item",
            "type": "message",
            "role": "user",
            "status": "completed",
            "content": [content],
        }
        for kind in ("added", "done"):
            await self._emit(f"conversation.item.{kind}", item=described, **placed)

    async def _emit(self, kind: str, **fields: Any) -> None:
        await self.send({"type": kind, "event_id": _name("event"), **fields})

    def _describe(self) -> dict[str, Any]:
        """The session as clients see it."""
        own = self._session.model_dump(mode="json", exclude_none=True)
        heard = own["audio"]["input"]
        heard["format"]["rate"] = self._rate
        heard.setdefault("turn_detection", None)
        heard.setdefault("noise_reduction", None)
        heard.setdefault("transcription", {}).setdefault(
            "model", self.state.config.model_name
        )
        return {
            "id": f"sess_{self.id}",
            "object": "realtime.transcription_session",
            **own,
        }


def _name(kind: str) -> str:
    return f"{kind}_{uuid.uuid4().hex[:20]}"
