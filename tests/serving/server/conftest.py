"""An engine of the tiny model, and a server of it that real clients reach."""

import itertools

import numpy as np
import pytest

from nim4_jax.data.audio import reading
from nim4_jax.data.sources import opening
from nim4_jax.decode.live.stream_config import StreamConfig
from nim4_jax.serving import recognisers
from nim4_jax.serving.server.engine import Engine, EngineConfig

RATE = 16_000
# One and two widths of prompts: few programs to compile.
SIZES = (
    StreamConfig(chunk=4, left=4, chunks=40, text_tokens=64, suffix_tokens=32),
    StreamConfig(chunk=8, left=4, chunks=20, text_tokens=16, suffix_tokens=16),
)


@pytest.fixture(scope="session")
def sizes() -> tuple[StreamConfig, ...]:
    """Of the engine's streams."""
    return SIZES


@pytest.fixture(scope="session")
def engine(model_files):
    """The tiny model, for two streams of each size."""
    config = EngineConfig(streams=2, sizes=SIZES, finds=True)
    made = Engine(lambda: recognisers.load(model_files[0]), config)
    made.start()
    made.wait_ready(300)
    yield made
    made.stop()


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
