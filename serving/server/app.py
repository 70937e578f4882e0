"""The ASGI application: routes and middleware."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.websockets import WebSocket

from nim4_jax.serving.server import metrics as metrics_module
from nim4_jax.serving.server import web_page
from nim4_jax.serving.server.dialects import hotwords, realtime, stream, transcriptions
from nim4_jax.serving.server.door import App, Door
from nim4_jax.serving.server.errors import ServeError
from nim4_jax.serving.server.state import ServerState


def create(state: ServerState) -> App:
    """The whole application of a server.

    Its engine starts and ends with it.
    """
    app = FastAPI(
        title="nim4 serve",
        lifespan=_make_lifespan(state),
        # Pages that list the routes load scripts from elsewhere.
        docs_url=None,
        redoc_url=None,
    )
    app.add_exception_handler(ServeError, _answer_error)
    app.add_exception_handler(HTTPException, _answer_http_error)
    app.add_exception_handler(Exception, _answer_bug)
    _add_operations(app, state)
    _add_dialects(app, state)
    hotwords.add(app, state)
    web_page.add(app)
    return Door(app, state)


def _make_lifespan(state: ServerState):
    @contextlib.asynccontextmanager
    async def live(_: FastAPI) -> AsyncIterator[None]:
        state.engine.start()
        yield
        state.jobs.close()
        state.engine.stop()
        state.lists.close()

    return live


def _add_operations(app: FastAPI, state: ServerState) -> None:
    """What operators and their machines ask for."""

    @app.get("/health/live")
    async def live() -> Response:
        alive = state.engine.failure is None
        return JSONResponse({"live": alive}, 200 if alive else 503)

    @app.get("/health/ready")
    async def ready() -> Response:
        return JSONResponse({"ready": state.ready}, 200 if state.ready else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        state.metrics.ready.set(state.ready)
        content = state.metrics.render()
        return Response(content, media_type=metrics_module.CONTENT_TYPE)


def _add_dialects(app: FastAPI, state: ServerState) -> None:
    """What clients ask for."""
    created = int(time.time())

    def describe(name: str) -> dict[str, Any]:
        own = {"id": name, "object": "model"}
        return {**own, "created": created, "owned_by": "nim4-jax"}

    @app.get("/v1/models")
    async def list_models() -> Response:
        models = [describe(state.config.model_name)]
        return JSONResponse({"object": "list", "data": models})

    @app.get("/v1/models/{name}")
    async def find_model(name: str) -> Response:
        if name not in (state.config.model_name, *state.config.aliases):
            raise ServeError(
                404, "model_not_found", "there is no such model.", param="model"
            )
        return JSONResponse(describe(name))

    @app.post("/v1/audio/transcriptions")
    async def transcribe(request: Request) -> Response:
        return await transcriptions.serve(request, state)

    @app.websocket("/v1/stream")
    async def listen(websocket: WebSocket) -> None:
        await stream.serve(websocket, state)

    @app.websocket("/v1/realtime")
    async def converse(websocket: WebSocket) -> None:
        await realtime.serve(websocket, state)


async def _answer_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ServeError)
    headers = {}
    if error.retry_after is not None:
        headers["retry-after"] = str(error.retry_after)
    if error.status in (408, 413):
        headers["connection"] = "close"
    return JSONResponse({"error": error.describe()}, error.status, headers)


async def _answer_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    codes = {404: "unknown_url", 405: "method_not_allowed"}
    code = codes.get(error.status_code, "invalid_request")
    message = f"{request.method}: {error.detail}."
    told = ServeError(error.status_code, code, message)
    return await _answer_error(request, told)


async def _answer_bug(request: Request, _: Exception) -> Response:
    """What went wrong is in the log, not in the answer."""
    told = ServeError(500, "server_error", "the server made a mistake.")
    return await _answer_error(request, told)
