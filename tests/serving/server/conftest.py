"""An engine of the tiny model, and a server of it that real clients reach."""

import contextlib
import importlib.util
import itertools
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from nim4_jax.data.audio import reading
from nim4_jax.data.sources import opening
from nim4_jax.decode.live import display
from nim4_jax.decode.live.listener import Listener
from nim4_jax.decode.live.stream_config import StreamConfig
from nim4_jax.retrieval import database
from nim4_jax.retrieval.names import Name
from nim4_jax.retrieval.pronunciation import pronounce
from nim4_jax.serving import recognisers
from nim4_jax.serving.server import auth, hotword_finding, hotword_versions, running
from nim4_jax.serving.server.auth import Admission, Keys
from nim4_jax.serving.server.config import ServerConfig
from nim4_jax.serving.server.engine import Engine, EngineConfig
from nim4_jax.serving.server.hotword_versions import ListVersion
from nim4_jax.serving.server.running import Server
from nim4_jax.serving.server.state import ServerState
from nim4_jax.serving.server.transcription_jobs import Jobs

RATE = 16_000
# One and two widths of prompts: few programs to compile.
SIZES = (
    StreamConfig(chunk=4, left=4, chunks=40, text_tokens=64, suffix_tokens=32),
    StreamConfig(chunk=8, left=4, chunks=20, text_tokens=16, suffix_tokens=16),
)


class _SharedEngine(Engine):
    """One that goes on behind the end of a server."""

    def stop(self) -> None:
        """Not yet."""


@contextlib.contextmanager
def run_server(engine, keys: str = "", **settings):
    """A live server of the engine, in a thread of its own."""
    values = {"streams": 4, "chunk_ms": tuple(size.chunk_ms for size in SIZES)}
    config = ServerConfig(**{**values, "port": 0, "grace_seconds": 20.0, **settings})
    state = ServerState(
        config=config,
        keys=auth.read_keys("", {"NIM4_SERVE_KEYS": keys}) if keys else Keys([]),
        engine=engine,
        jobs=Jobs(engine, config),
        lists=running.open_lists(config, engine.metrics),
        metrics=engine.metrics,
        admission=Admission(config.streams),
    )
    server = Server(state)
    listening = server.bind()
    server.address = f"127.0.0.1:{listening.getsockname()[1]}"
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield server
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


@pytest.fixture(scope="session")
def share():
    """Gives a server a list of its settings, made of texts; returns the list."""

    def make(server, name: str, *texts: str) -> ListVersion:
        listed = [Name(text) for text in texts]
        readings = {text.text: pronounce(text) for text in listed}
        version = hotword_versions.share(name, database.build(listed, readings))
        server.state.lists._shared[name] = version
        return version

    return make


@pytest.fixture(scope="session")
def many(engine):
    """Keywords that no prompt has room for: those, and how they are to be shared."""
    words = "one two three four five six seven eight nine ten".split()
    keywords = ("perth", *(f"winter garden {word}" for word in words), "turn on")

    def split(reserve: bool):
        """Names for every prompt, and a list of the others."""
        tokenizer = engine.loaded.recogniser.tokenizer
        room = SIZES[0].suffix_tokens
        hints, rest = hotword_finding.split(keywords, tokenizer, room, reserve)
        assert rest
        return hints, hotword_finding.build_own(rest)

    return keywords, split


@pytest.fixture(scope="session")
def clients():
    """The module clients.py; tests are no package, so it is loaded by path."""
    path = Path(__file__).with_name("clients.py")
    spec = importlib.util.spec_from_file_location("clients", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def serve(engine):
    """Starts a server with these settings; a context."""
    return lambda **settings: run_server(engine, **settings)


@pytest.fixture(scope="session")
def start_server():
    """Starts a server of that engine with these settings; a context."""
    return run_server


@pytest.fixture(scope="module")
def server(serve):
    """Without keys, for this machine only."""
    with serve() as started:
        yield started


@pytest.fixture(scope="session")
def sizes() -> tuple[StreamConfig, ...]:
    """Of the engine's streams."""
    return SIZES


@pytest.fixture(scope="session")
def engine(model_files):
    """The tiny model, for two streams of each size."""
    config = EngineConfig(streams=2, sizes=SIZES, finds=True)
    made = _SharedEngine(
        lambda: recognisers.load(model_files[0]),
        config,
        on_ready=hotword_finding.warm_up,
    )
    made.start()
    made.wait_ready(300)
    yield made
    Engine.stop(made)


@pytest.fixture(scope="session")
def spoken() -> list[np.ndarray]:
    """Some short commands, float32 at 16 kHz."""
    records = opening.open_source("bundled:commands:test")
    decoded = (reading.decode(records[i]["audio"]) for i in range(30))
    return [samples for samples in decoded if len(samples) < 2.2 * RATE][:4]


@pytest.fixture(scope="session")
def talk(spoken):
    """Makes a stream of some commands with pauses, int16 at 16 kHz, as a client has."""

    def make(*numbers: int, pause: float = 0.9) -> np.ndarray:
        quiet = np.zeros(int(pause * RATE), np.float32)
        parts = ((spoken[number], quiet) for number in numbers)
        return reading.to_int16(np.concatenate([quiet, *itertools.chain(*parts)]))

    return make


@pytest.fixture(scope="session")
def alone(clients, model_files, sizes):
    """Finals of a listener alone, as JSON; samples float32 at 16 kHz."""
    recogniser = recognisers.load(model_files[0]).recogniser

    def hear(samples, size=sizes[0], **options):
        listener = Listener(recogniser, config=size)
        session = listener.open(**options)
        session.feed(samples)
        session.close()
        told = (display.describe(event) for _, event in listener.drain())
        return clients.strip(clients.pick(told, "final"))

    return hear
