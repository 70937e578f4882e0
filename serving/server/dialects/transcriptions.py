"""OpenAI's `POST /v1/audio/transcriptions`, whole or as server-sent events."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import zlib
from collections.abc import AsyncIterator
from typing import Any

from starlette.datastructures import FormData
from starlette.formparsers import MultiPartException
from starlette.requests import Request as HttpRequest
from starlette.responses import (
    JSONResponse,
    PlainTextResponse,
    Response,
    StreamingResponse,
)

from nim4_jax.decode import subtitles
from nim4_jax.decode.transcripts import Passage, Recording, render
from nim4_jax.serving.server.auth import Tenant
from nim4_jax.serving.server.dialects import transcription_form
from nim4_jax.serving.server.dialects.transcription_form import Fields
from nim4_jax.serving.server.errors import ServeError
from nim4_jax.serving.server.hotword_finding import Asked
from nim4_jax.serving.server.languages import NAMES, find_languages
from nim4_jax.serving.server.state import ServerState
from nim4_jax.serving.server.transcription_jobs import Job, Request, describe_job

_MOST_FIELDS = 2_000
_LOOK_SECONDS = 0.5  # between two looks whether the client is still there
_TOKEN_SECONDS = 0.16


async def serve(request: HttpRequest, state: ServerState) -> Response:
    """One file.

    Raises:
        ServeError: it cannot be transcribed.
    """
    with state.jobs.take_room():
        form = await _receive(request)
        try:
            upload, fields = transcription_form.read(form)
            fields.check(state.config)
            asked = await make_request(fields, state, request.scope["state"]["tenant"])
            job = state.jobs.start(upload.file, asked)
        except BaseException:
            await form.close()
            raise
    if fields.stream:
        return StreamingResponse(
            _stream(request, state, job, fields, form),
            media_type="text/event-stream",
            headers={"cache-control": "no-store", "x-accel-buffering": "no"},
        )
    try:
        await _finish(request, job)
    finally:
        job.cancel()
        await form.close()
        request.scope["state"]["facts"] = describe_job(job)
    return _answer(job.recording, fields, state)


async def _receive(request: HttpRequest) -> FormData:
    try:
        return await request.form(max_files=1, max_fields=_MOST_FIELDS)
    except MultiPartException as error:
        raise ServeError(400, "invalid_form", error.message) from None


async def make_request(fields: Fields, state: ServerState, tenant: Tenant) -> Request:
    """What the job is asked for.

    Raises:
        ServeError: an unknown list.
    """
    found = await state.find_names(Asked(tenant, fields.keywords, fields.hotwords))
    timed = fields.response_format in ("srt", "vtt", "verbose_json")
    return Request(found.hints, found.hold(), fields.hotwords, timings=timed)


async def _finish(request: HttpRequest, job: Job) -> None:
    """Wait for a job, as long as its client does."""

    async def read() -> None:
        async for _ in job.passages():
            pass

    reading = asyncio.create_task(read())
    try:
        while not reading.done():
            await asyncio.wait([reading], timeout=_LOOK_SECONDS)
            if not reading.done() and await request.is_disconnected():
                raise ServeError(499, "client_gone", "the client has gone.")
        await reading
    finally:
        reading.cancel()
        with contextlib.suppress(asyncio.CancelledError, ServeError):
            await reading


async def _stream(
    request: HttpRequest, state: ServerState, job: Job, fields: Fields, form: FormData
) -> AsyncIterator[str]:
    """Server-sent events: the text as it is written."""
    told, passages = "", []
    try:
        async for passage in job.passages():
            passages.append(passage)
            text = _join(passages)
            event = {"type": "transcript.text.delta", "delta": text[len(told) :]}
            if fields.include:
                event["logprobs"] = _list_log_probs([passage], state)
            if event["delta"]:
                yield _pack(event)
            told = text
        done = {"type": "transcript.text.done", "text": told}
        done |= {"usage": _count_tokens(job.recording)}
        if fields.include:
            done["logprobs"] = _list_log_probs(passages, state)
        yield _pack(done)
    except ServeError as error:
        yield f"event: error\ndata: {json.dumps({'error': error.describe()})}\n\n"
    finally:
        job.cancel()
        request.scope["state"]["facts"] = describe_job(job)
        await form.close()
    yield "data: [DONE]\n\n"


def _pack(event: dict[str, Any]) -> str:
    text = json.dumps(event, ensure_ascii=False, allow_nan=False)
    return f"event: {event['type']}\ndata: {text}\n\n"


def _join(passages: list[Passage]) -> str:
    return subtitles.join_passages((p.start, p.end, p.text) for p in passages)


def _answer(recording: Recording, fields: Fields, state: ServerState) -> Response:
    """The whole transcript in the form that was asked for."""
    form = fields.response_format
    if form in ("text", "srt", "vtt"):
        kind = "text/vtt" if form == "vtt" else "text/plain"
        return PlainTextResponse(render(recording, form), media_type=kind)
    seconds = recording.duration
    answer: dict[str, Any] = {"text": recording.text}
    languages = find_languages(recording.text)
    if form == "json":
        answer["languages"] = [{"code": code} for code in languages]
        answer["usage"] = {"type": "duration", "seconds": math.ceil(seconds)}
    else:
        answer |= _describe(recording, fields)
    if fields.include:
        answer["logprobs"] = _list_log_probs(recording.passages, state)
    if recording.warning:
        answer["warning"] = "the end of the file could not be decoded."
    return JSONResponse(answer)


def _describe(recording: Recording, fields: Fields) -> dict[str, Any]:
    """What verbose_json has beside the text."""
    languages = find_languages(recording.text)
    answer: dict[str, Any] = {
        "task": "transcribe",
        "language": NAMES[languages[0]] if languages else fields.language or "english",
        "duration": round(recording.duration, 3),
        "usage": {"type": "duration", "seconds": math.ceil(recording.duration)},
    }
    if "segment" in fields.timestamp_granularities:
        answer["segments"] = [
            _describe_segment(number, passage)
            for number, passage in enumerate(recording.passages)
        ]
    if "word" in fields.timestamp_granularities:
        answer["words"] = [
            {
                "word": word.text,
                "start": round(word.start, 3),
                "end": round(word.end, 3),
                "confidence": round(word.confidence, 4),
            }
            for passage in recording.passages
            for word in passage.words
        ]
    return answer


def _describe_segment(number: int, passage: Passage) -> dict[str, Any]:
    content = passage.text.encode()
    ratio = len(content) / len(zlib.compress(content)) if content else 0.0
    return {
        "id": number,
        "seek": round(passage.start * 100),
        "start": round(passage.start, 3),
        "end": round(passage.end, 3),
        "text": passage.text,
        "tokens": list(passage.tokens),
        "temperature": 0.0,
        "avg_logprob": round(passage.log_prob / (len(passage.tokens) + 1), 4),
        "compression_ratio": round(ratio, 3),
        "no_speech_prob": 0.0 if passage.text else 1.0,
    }


def _list_log_probs(
    passages: list[Passage], state: ServerState
) -> list[dict[str, Any]]:
    """Tokens and their log probabilities, nats."""
    loaded = state.engine.loaded
    assert loaded is not None
    tokenizer = loaded.recogniser.tokenizer
    pairs = (
        (tokenizer.decode([token]), log_prob)
        for passage in passages
        for token, log_prob in zip(passage.tokens, passage.token_log_probs)
    )
    return [
        {"token": text, "bytes": list(text.encode()), "logprob": round(log_prob, 4)}
        for text, log_prob in pairs
    ]


def _count_tokens(recording: Recording) -> dict[str, Any]:
    """Tokens of the audio and of the text."""
    heard = math.ceil(recording.duration / _TOKEN_SECONDS)
    written = sum(len(passage.tokens) for passage in recording.passages)
    return {
        "type": "tokens",
        "input_tokens": heard,
        "output_tokens": written,
        "total_tokens": heard + written,
    }
