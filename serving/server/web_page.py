"""The page at /: a microphone, names and recordings, in a browser."""

from __future__ import annotations

from importlib import resources

from fastapi import FastAPI
from starlette.responses import Response

_FILES = {
    "index.html": "text/html; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "recorder.js": "text/javascript; charset=utf-8",
    "transcript.js": "text/javascript; charset=utf-8",
}

PATHS = ("/", *(f"/page/{name}" for name in _FILES if name != "index.html"))
"""What anybody may load: it is the same for all. What the page asks for needs a key."""

_HEADERS = {
    # Nothing from elsewhere runs in it, and it stands in no other page's frame.
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "permissions-policy": "microphone=(self)",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-cache",
}


def add(app: FastAPI) -> None:
    """The page's routes."""
    folder = resources.files(__package__) / "page"
    for path in PATHS:
        name = path.removeprefix("/page/").removeprefix("/") or "index.html"
        app.add_api_route(
            path,
            _make_route((folder / name).read_bytes(), _FILES[name]),
            methods=["GET"],
        )


def _make_route(content: bytes, media_type: str):
    async def give() -> Response:
        return Response(content, media_type=media_type, headers=_HEADERS)

    return give
