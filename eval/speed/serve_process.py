"""The server of a trial: a process that is started and ended, or one that runs."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit, urlunsplit

DEVICES = ("model", "none")

_ROUTE = "/v1/stream"
_START_SECONDS = 900.0  # programs may have to be compiled
_STOP_SECONDS = 60.0
_PROCESSOR = re.compile(
    r'^nim4_processor_seconds_total\{part="(\w+)"\} (\S+)$', re.MULTILINE
)


class Served(Protocol):
    """What is to be served, see `serve.Settings`."""

    @property
    def model(self) -> str: ...

    @property
    def device(self) -> str: ...

    @property
    def url(self) -> str: ...


class Address:
    """Where a server is.

    Attributes:
        url: of its plain WebSocket, with a key in its query if it needs one.
    """

    def __init__(self, url: str):
        """Of a server that runs.

        Raises:
            ValueError: no address of a WebSocket.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("ws", "wss") or not parts.netloc:
            raise ValueError(f"--url={url}: expected ws://HOST:PORT{_ROUTE}.")
        self.url = url
        scheme = parts.scheme.replace("ws", "http")
        route = "/metrics"
        self._metrics = urlunsplit((scheme, parts.netloc, route, parts.query, ""))

    def read_processor(self) -> dict[str, float]:
        """Seconds that each part of the server has taken; empty if it does not say."""
        try:
            with urllib.request.urlopen(self._metrics, timeout=30) as answer:
                text = answer.read().decode()
        except OSError:
            return {}
        return {part: float(value) for part, value in _PROCESSOR.findall(text)}


@contextlib.contextmanager
def start(served: Served, streams: int) -> Iterator[Address]:
    """A server with places for so many streams, ready; ended behind the context.

    Raises:
        ValueError: it ends before it is ready; tells why.
    """
    if served.url:
        yield Address(served.url)
        return
    command = [sys.executable, "-m", "nim4_jax.eval.speed.idle_device"]
    if served.model:
        command = [sys.executable, "-m", "nim4_jax.launch.cli", "serve"]
        command.append(f"--model={served.model}")
    own = {"NIM4_SERVE_HOST": "127.0.0.1", "NIM4_SERVE_PORT": "0"}
    own["NIM4_SERVE_STREAMS"] = str(streams)
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "stderr"
        with told.open("wb") as file:
            process = subprocess.Popen(
                command,
                env={**os.environ, **own},
                stdout=subprocess.DEVNULL,
                stderr=file,
            )
        try:
            port = _await_ready(process, told)
            yield Address(f"ws://127.0.0.1:{port}{_ROUTE}")
        finally:
            _stop(process)


def _await_ready(process: subprocess.Popen, told: Path) -> int:
    """Its port."""
    until = time.monotonic() + _START_SECONDS
    while time.monotonic() < until and process.poll() is None:
        text = told.read_text(encoding="utf8", errors="replace")
        port = re.search(r"^listening at \S+ port (\d+)", text, re.MULTILINE)
        if port and re.search("^ready$", text, re.MULTILINE):
            return int(port[1])
        time.sleep(0.1)
    text = told.read_text(encoding="utf8", errors="replace").strip()
    raise ValueError(f"the server did not start: {text[-500:]}.")


def _stop(process: subprocess.Popen) -> None:
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
