"""The server process: started from settings, shut down gracefully by signals."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import socket
import sys
import time
from collections.abc import Callable

import uvicorn

from nim4_jax.decode.recogniser import Loaded
from nim4_jax.serving import recognisers
from nim4_jax.serving.server import app, auth, door, hotword_finding
from nim4_jax.serving.server.auth import Admission, Keys
from nim4_jax.serving.server.config import ServerConfig, is_loopback
from nim4_jax.serving.server.engine import Engine, EngineConfig
from nim4_jax.serving.server.hotword_lists import HotwordLists
from nim4_jax.serving.server.http_protocol import TimedHttp
from nim4_jax.serving.server.metrics import Metrics
from nim4_jax.serving.server.state import ServerState
from nim4_jax.serving.server.transcription_jobs import Jobs
from nim4_jax.serving.server.wyoming import WyomingServer

_PING_SECONDS = 20.0
_PONG_SECONDS = 120.0  # behind what a client that sends fast has sent already
_LAST_SECONDS = 5.0  # for connections that are closed already to end


def make_state(
    config: ServerConfig, keys: Keys, load: Callable[[], Loaded] | None = None
) -> ServerState:
    """A server that has not started.

    Args:
        config: its settings.
        keys: of its clients.
        load: makes the recogniser; None for that of `config.model`.

    Raises:
        ValueError: no model, or lists of names that cannot be read.
    """
    if not config.model and load is None:
        raise ValueError(
            "which model? No whole one comes with the package yet: give "
            "--model=WORKDIR or FILE.safetensors (make demo trains one in minutes), or "
            "--bundle=DIR."
        )
    metrics = Metrics()
    lists = open_lists(config, metrics)
    engine = Engine(
        load or (lambda: recognisers.load(config.model, left=config.left)),
        EngineConfig(
            streams=config.streams,
            chunk_ms=config.chunk_ms,
            left=config.left,
            window=config.window_ms / 1000,
            waiting=config.waiting_seconds,
            unsent=config.unsent_events,
            file_rows=config.file_rows,
            file_share=config.file_share,
            finds=True,
        ),
        metrics=metrics,
        on_ready=_settle,
    )
    return ServerState(
        config=config,
        keys=keys,
        engine=engine,
        jobs=Jobs(engine, config),
        lists=lists,
        metrics=metrics,
        admission=Admission(config.streams),
    )


def open_lists(config: ServerConfig, metrics: Metrics) -> HotwordLists:
    """The lists that the settings name, and those of clients.

    Raises:
        ValueError: one of the former cannot be read, or the folder of the latter.
    """
    return HotwordLists.open(
        config.hotwords,
        config.hotwords_dir,
        metrics,
        builders=config.hotword_builders,
        build_mib=config.hotword_mib,
        build_seconds=config.hotword_seconds,
    )


def _settle() -> None:
    """What is there by now stays: the collector need not look at it again and again.

    A look at all that JAX and a model consist of takes some tenths of a second.
    """
    hotword_finding.warm_up()
    gc.collect()
    gc.freeze()
    print("ready", file=sys.stderr, flush=True)


def _is_no_refusal(record: logging.LogRecord) -> bool:
    """uvicorn calls a WebSocket that was answered by 503 or 401 an error of ours."""
    return "without completing handshake" not in record.getMessage()


class Server(uvicorn.Server):
    """uvicorn, which lets streams end before it does.

    Attributes:
        state: what its routes share.
        wyoming: the socket to listen at for Wyoming, once it is bound; None for none.
    """

    wyoming: socket.socket | None = None

    def __init__(self, state: ServerState):
        """A server that has not started."""
        config = state.config
        super().__init__(
            uvicorn.Config(
                app.create(state),
                host=config.host,
                port=config.port,
                # Its lines of info have addresses with their queries, keys among them.
                log_level="warning",
                access_log=False,
                http=TimedHttp,
                ws="websockets-sansio",
                ws_max_size=config.message_kib << 10,
                ws_per_message_deflate=False,
                ws_ping_interval=_PING_SECONDS,
                ws_ping_timeout=_PONG_SECONDS,
                timeout_graceful_shutdown=int(_LAST_SECONDS),
                server_header=False,
            )
        )
        logging.getLogger("uvicorn.error").addFilter(_is_no_refusal)
        self.state = state
        self._draining: asyncio.Task | None = None
        state.engine.on_end = self._end_failed

    def bind(self) -> socket.socket:
        """The socket to listen at, bound; and that of Wyoming, if there is one."""
        config = self.state.config
        listening = _bind(config.host, config.port, config)
        if config.wyoming_port is not None:
            own = _bind(config.wyoming_host, config.wyoming_port, config)
            self.wyoming = own
        return listening

    def handle_exit(self, sig: int, frame) -> None:
        """A signal: in good order; a second one: at once."""
        if self._draining is not None:
            self.should_exit = self.force_exit = True
            return
        loop = self._loop
        loop.call_soon_threadsafe(self._begin_drain)

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Until a signal, or the engine's end."""
        self._loop = asyncio.get_running_loop()
        async with contextlib.AsyncExitStack() as stack:
            if self.wyoming is not None:
                other = WyomingServer(self.state)
                await stack.enter_async_context(other.listen(self.wyoming))
            await super().serve(sockets)

    def _begin_drain(self) -> None:
        if self._draining is None:
            self._draining = asyncio.create_task(self._drain())

    async def _drain(self) -> None:
        """No new work; streams and files that are open end, within the grace time."""
        state = self.state
        state.draining.set()
        until = time.monotonic() + state.config.grace_seconds
        while (state.admission.streams or len(state.jobs)) and (
            time.monotonic() < until
        ):
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.1)  # for the last bytes
        self.should_exit = True

    def _end_failed(self) -> None:
        """From the engine's thread: it has failed, its clients are being told."""
        self._loop.call_soon_threadsafe(self._begin_drain)


def _bind(host: str, port: int, config: ServerConfig) -> socket.socket:
    """A socket to listen at; a client that never reads loses its connection."""
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        milliseconds = round(2_000 * config.send_seconds)
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
    listening.bind((host, port))
    return listening


def run(config: ServerConfig, load: Callable[[], Loaded] | None = None) -> None:
    """Serve until a signal.

    Args:
        config: all settings.
        load: see `make_state`.

    Raises:
        ValueError: settings or a model that cannot be served.
        RuntimeError: the engine failed.
    """
    keys = auth.read_keys(config.keys_file)
    if not keys and not config.local:
        own = config.host
        host = config.wyoming_host if is_loopback(own) else own
        raise ValueError(
            f"host={host} can be reached by others, and there are no API keys: "
            "give keys_file or NIM4_SERVE_KEYS=TENANT:KEY, or serve 127.0.0.1 only."
        )
    log_to_stdout()
    server = Server(make_state(config, keys, load))
    listening = server.bind()
    host, port = listening.getsockname()[:2]
    print(f"settings:\n{config.describe()}", file=sys.stderr)
    told = "with API keys" if keys else "for this machine only: there are no API keys"
    print(f"listening at {host} port {port} {told}", file=sys.stderr, flush=True)
    if server.wyoming is not None:
        host, port = server.wyoming.getsockname()[:2]
        told = f"Wyoming at {host} port {port}, for whoever reaches it: it has no keys"
        print(told, file=sys.stderr, flush=True)
    server.run(sockets=[listening])
    failure = server.state.engine.failure
    if isinstance(failure, ValueError | OSError):
        raise failure
    if failure is not None:
        raise RuntimeError(f"the engine failed: {failure!r}") from failure
    if server.state.engine.loading:
        # A compiler cannot be interrupted, and must not meet an interpreter's end.
        sys.stdout.flush()
        os._exit(0)


def log_to_stdout() -> None:
    """A JSON line a request."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    door.LOG.handlers, door.LOG.propagate = [handler], False
    door.LOG.setLevel(logging.INFO)
