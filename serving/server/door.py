"""Middleware before every route: authentication, admission, size limits.

An ASGI application around another one, so that no route can be without it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.datastructures import Headers, QueryParams

from nim4_jax.serving.server import auth, web_page
from nim4_jax.serving.server.auth import ANYONE, Tenant
from nim4_jax.serving.server.errors import ClientGone, ServeError
from nim4_jax.serving.server.state import ServerState

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

PROBES = ("/health/live", "/health/ready")

OPEN = (*PROBES, *web_page.PATHS)
"""Routes without a key: what probes ask, and a page that is the same for all."""

_SAFE = ("GET", "HEAD", "OPTIONS")

LOG = logging.getLogger("nim4_jax.serving.server")

_ANSWER = "websocket.http.response"
"""ASGI's extension by which a WebSocket that is refused gets an answer of HTTP."""

_VIOLATION, _TRY_LATER = 1008, 1013  # codes of a WebSocket's end


class Door:
    """Lets requests in, or answers them; logs each."""

    def __init__(self, app: App, state: ServerState):
        """Around an application.

        Args:
            app: what is behind the door.
            state: of the server.
        """
        self._app, self._state = app, state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        visit = _Visit(scope)
        answer = visit.watch(send, self._state.config.send_seconds)
        try:
            try:
                visit.tenant = self._let_in(scope)
                bounded = self._bound(scope, receive)
                if scope["type"] == "http":
                    await self._app(scope, bounded, answer)
                else:
                    await self._keep_place(visit, bounded, answer)
            except ServeError as error:
                if visit.status:
                    raise
                await _refuse(scope, receive, answer, error)
                visit.code, visit.status = error.code, visit.status or error.status
        except ClientGone:
            visit.code = "slow_reader"
        finally:
            self._note(visit)

    def _let_in(self, scope: Scope) -> Tenant:
        """Who it is.

        Raises:
            ServeError: nobody who may come in.
        """
        headers = {key: value for key, value in Headers(scope=scope).items()}
        keys, state = self._state.keys, self._state
        auth.check_origin(headers, state.config.origins, bool(keys))
        if scope["path"] in OPEN:
            return ANYONE
        tenant = ANYONE
        if keys:
            query = QueryParams(scope.get("query_string", b""))
            offered = scope.get("subprotocols", ())
            found = keys.find(auth.find_key(headers, query, offered) or "")
            if found is None:
                raise ServeError(
                    401, "invalid_api_key", "a valid API key is needed for this."
                )
            tenant = found
        scope.setdefault("state", {})["tenant"] = tenant
        size = headers.get("content-length", "0")
        if not size.isdecimal() or int(size) > state.config.upload_mib << 20:
            raise _too_large(state.config.upload_mib)
        works = scope["type"] == "websocket" or scope["method"] not in _SAFE
        if works:
            state.check_ready()
            state.admission.count_request(tenant)
        return tenant

    async def _keep_place(self, visit: _Visit, receive: Receive, send: Send) -> None:
        """A stream has a place before it is let in, and none behind its end."""
        admission, metrics = self._state.admission, self._state.metrics
        admission.take_place(visit.tenant)
        metrics.streams.set(admission.streams)
        try:
            await self._app(visit.scope, receive, send)
        finally:
            admission.leave(visit.tenant)
            metrics.streams.set(admission.streams)

    def _bound(self, scope: Scope, receive: Receive) -> Receive:
        """What is received, as long as it is not too much or too slow."""
        if scope["type"] == "websocket":
            return receive
        config = self._state.config
        left, until = config.upload_mib << 20, time.monotonic() + config.upload_seconds
        uploading = True

        async def bounded() -> Message:
            nonlocal left, uploading
            if not uploading:
                return await receive()
            try:
                async with asyncio.timeout(max(0.0, until - time.monotonic())):
                    message = await receive()
            except TimeoutError:
                raise ServeError(
                    408, "upload_too_slow", "the request took too long to come."
                ) from None
            left -= len(message.get("body", b""))
            if left < 0:
                raise _too_large(config.upload_mib)
            uploading = message.get("more_body", False)
            return message

        return bounded

    def _note(self, visit: _Visit) -> None:
        """The request's line of the log, and its count."""
        metrics, scope = self._state.metrics, visit.scope
        route = getattr(scope.get("route"), "path", "other")
        if scope["path"] in OPEN:
            route = scope["path"]
        status = str(visit.status or 499)
        metrics.requests.labels(route, status).inc()
        if visit.code:
            metrics.refusals.labels(visit.code).inc()
        facts = {
            "request": visit.id,
            "tenant": visit.tenant.name,
            "kind": scope["type"],
            "route": route,
            "status": int(status),
            "seconds": round(time.monotonic() - visit.began, 3),
            **({"refused": visit.code} if visit.code else {}),
            **scope.get("state", {}).get("facts", {}),
        }
        if scope["path"] not in OPEN:
            LOG.info(json.dumps(facts, ensure_ascii=False))


class _Visit:
    """A request on its way."""

    def __init__(self, scope: Scope):
        self.scope, self.began = scope, time.monotonic()
        self.id = uuid.uuid4().hex[:16]
        self.tenant, self.status, self.code = ANYONE, 0, ""
        scope.setdefault("state", {})["request_id"] = self.id

    def watch(self, send: Send, seconds: float) -> Send:
        """What is sent, with the id in its headers, to who reads it in time."""

        async def watched(message: Message) -> None:
            kind = message["type"]
            if kind.endswith("response.start") or kind == "websocket.accept":
                self.status = message.get("status", 101)
                headers = [*message.get("headers", ())]
                message["headers"] = [*headers, (b"x-request-id", self.id.encode())]
            try:
                async with asyncio.timeout(seconds):
                    await send(message)
            except TimeoutError:
                raise ClientGone from None

        return watched


def _too_large(mebibytes: int) -> ServeError:
    return ServeError(
        413, "request_too_large", f"a request may have {mebibytes} MiB.", param="file"
    )


async def _refuse(
    scope: Scope, receive: Receive, send: Send, error: ServeError
) -> None:
    """Answer in place of the application; a WebSocket before it is one."""
    body = json.dumps({"error": error.describe()}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    if error.retry_after is not None:
        headers.append((b"retry-after", str(error.retry_after).encode()))
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if error.status in (408, 413):
        headers.append((b"connection", b"close"))
    kind = "http"
    if scope["type"] == "websocket":
        await receive()  # websocket.connect
        if _ANSWER not in (scope.get("extensions") or {}):
            # The server before this application can only close it, which is a 403.
            code = _TRY_LATER if error.retry_after is not None else _VIOLATION
            close = {"type": "websocket.close", "code": code, "reason": error.code}
            await send(close)
            return
        kind = "websocket.http"
    start = {"type": f"{kind}.response.start", "status": error.status}
    await send({**start, "headers": headers})
    await send({"type": f"{kind}.response.body", "body": body})
