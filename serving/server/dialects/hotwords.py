"""Lists of names that clients keep on the server: /v1/hotwords.

    GET    /v1/hotwords               all that a client may name
    PUT    /v1/hotwords/NAME          create one, or give it other names
    GET    /v1/hotwords/NAME          its version and statistics
    PATCH  /v1/hotwords/NAME          {"add": […], "remove": […]} in one step
    DELETE /v1/hotwords/NAME
    GET    /v1/hotwords/NAME/names    its names, page by page

Each answer has the version as its `ETag`; `If-Match` changes that version or none.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import tempfile
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any, TypeVar

import pydantic
from fastapi import FastAPI
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from nim4_jax.serving.server import auth, hotword_builder, hotword_messages
from nim4_jax.serving.server.auth import Tenant
from nim4_jax.serving.server.errors import ServeError
from nim4_jax.serving.server.hotword_messages import Deleted, Listing, PageQuery
from nim4_jax.serving.server.hotword_versions import Condition, ListVersion
from nim4_jax.serving.server.state import ServerState

T = TypeVar("T")

_FORMS = {
    "application/json": "json",
    "text/plain": "txt",
    "text/csv": "csv",
    "text/tab-separated-values": "tsv",
    "application/jsonl": "jsonl",
    "application/x-ndjson": "jsonl",
}
_BLOCK = 1 << 20
_TAG = re.compile(r'(?:W/)?"([^"]*)"')


def add(app: FastAPI, state: ServerState) -> None:
    """The routes."""

    @app.get("/v1/hotwords")
    async def list_lists(request: Request) -> Response:
        found = state.lists.list(find_tenant(request))
        return _answer(Listing(data=tuple(one.facts for one in found)))

    @app.get("/v1/hotwords/{name}")
    async def show(request: Request, name: str) -> Response:
        return _tell(state.lists.find(find_tenant(request), name))

    @app.get("/v1/hotwords/{name}/names")
    async def list_names(request: Request, name: str) -> Response:
        version = state.lists.find(find_tenant(request), name)
        asked = _read_query(request)
        page = await asyncio.to_thread(version.read_page, asked.start, asked.limit)
        return _answer(page, version.etag)

    @app.put("/v1/hotwords/{name}")
    async def replace(request: Request, name: str) -> Response:
        tenant = find_tenant(request)
        _check_name(name)
        form = _find_form(request)
        async with _receive(request, state, tenant, form) as upload:
            work = state.lists.replace(
                tenant, name, upload, form, _read_condition(request)
            )
            made = await _note(request, state, "replace", name, work)
            _note_version(request, made)
        return _tell(made, 201 if made.facts.version == 1 else 200)

    @app.patch("/v1/hotwords/{name}")
    async def change(request: Request, name: str) -> Response:
        tenant = find_tenant(request)
        if (form := _find_form(request)) != "json":
            raise _refuse_form(("application/json",))
        async with _receive(request, state, tenant, form) as upload:
            work = state.lists.change(tenant, name, upload, _read_condition(request))
            made = await _note(request, state, "change", name, work)
            _note_version(request, made)
        return _tell(made)

    @app.delete("/v1/hotwords/{name}")
    async def remove(request: Request, name: str) -> Response:
        tenant = find_tenant(request)
        work = state.lists.remove(tenant, name, _read_condition(request))
        await _note(request, state, "delete", name, work)
        return _answer(Deleted(id=name))


def find_tenant(request: Request) -> Tenant:
    """Who calls."""
    return request.scope["state"]["tenant"]


def _check_name(name: str) -> None:
    if not hotword_messages.NAME.fullmatch(name):
        raise ServeError(
            400,
            "invalid_value",
            "a list's name has up to 64 small letters, digits, dots, hyphens and "
            "underscores, the first a letter or digit.",
            param="name",
        )


def _read_query(request: Request) -> PageQuery:
    """Which page."""
    query = request.query_params.items()
    try:
        return PageQuery.model_validate({k: v for k, v in query if k not in auth.QUERY})
    except pydantic.ValidationError as error:
        raise hotword_messages.explain(error) from None


def _find_form(request: Request) -> str:
    """What the body is; one that does not say is a name a line."""
    kind = request.headers.get("content-type", "text/plain")
    form = _FORMS.get(kind.partition(";")[0].strip().lower())
    if form is None:
        raise _refuse_form(tuple(_FORMS))
    return form


def _refuse_form(kinds: tuple[str, ...]) -> ServeError:
    told = f"the body is one of {', '.join(kinds)}."
    return ServeError(415, "unsupported_media_type", told, param="Content-Type")


def _read_condition(request: Request) -> Condition:
    """`If-Match` and `If-None-Match: *`."""
    match = request.headers.get("if-match")
    absent = request.headers.get("if-none-match", "").strip() == "*"
    if match is None or match.strip() == "*":
        return Condition(exists=match is not None, absent=absent)
    return Condition(match=frozenset(_TAG.findall(match)), absent=absent)


@contextlib.asynccontextmanager
async def _receive(
    request: Request, state: ServerState, tenant: Tenant, form: str
) -> AsyncIterator[Path]:
    """The body in a file, as long as it is needed.

    Raises:
        ServeError: more than the client may send, or no room for it.
    """
    most = tenant.list_mib << 20
    if int(request.headers.get("content-length", 0)) > most:
        raise _too_large(tenant)
    try:
        with tempfile.NamedTemporaryFile(
            suffix=f".{form}", dir=state.lists.store.uploads
        ) as file:
            size, block = 0, bytearray()
            async for data in request.stream():
                size += len(data)
                if size > most:
                    raise _too_large(tenant)
                block += data
                if len(block) > _BLOCK:
                    await asyncio.to_thread(file.write, bytes(block))
                    block.clear()
            await asyncio.to_thread(file.write, bytes(block))
            await asyncio.to_thread(file.flush)
            yield Path(file.name)
    except ClientDisconnect:
        raise ServeError(499, "client_gone", "the client has gone.") from None
    except OSError as error:
        raise hotword_builder.explain(error) from error


def _too_large(tenant: Tenant) -> ServeError:
    told = f"a list may be sent in {tenant.list_mib} MiB."
    return ServeError(413, "request_too_large", told, param="names")


async def _note(
    request: Request, state: ServerState, kind: str, name: str, work: Awaitable[T]
) -> T:
    """Wait for a change, count it, and have it in the log."""
    status = "failed"
    facts: dict[str, Any] = {"hotwords": name[:64], "change": kind}
    request.scope["state"]["facts"] = facts
    try:
        made = await work
        status = "done"
    finally:
        state.metrics.hotword_changes.labels(kind, status).inc()
    return made


def _note_version(request: Request, made: ListVersion) -> None:
    told = {"version": made.etag, "names": made.facts.statistics.names}
    request.scope["state"]["facts"] |= told


def _tell(version: ListVersion, status: int = 200) -> Response:
    return _answer(version.facts, version.etag, status)


def _answer(message: Any, etag: str = "", status: int = 200) -> Response:
    """A message as JSON."""
    headers = {"cache-control": "no-cache", **({"etag": f'"{etag}"'} if etag else {})}
    body = message.model_dump_json()
    return Response(body, status, headers, media_type="application/json")
