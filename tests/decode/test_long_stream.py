"""Hours of audio: flat memory, and the same times every minute.

NIM4_STREAM_HOURS=2 makes it two hours; by default it is three minutes.
"""

import gc
import os
import resource

import numpy as np
import pytest

from nim4_jax.data.audio import reading
from nim4_jax.data.sources import opening
from nim4_jax.decode.live.events import Final
from nim4_jax.decode.live.listener import Listener
from nim4_jax.decode.live.stream_config import StreamConfig
from nim4_jax.decode.silero import WINDOW, Silero
from nim4_jax.serving import recognisers

RATE = 16_000
HOURS = float(os.environ.get("NIM4_STREAM_HOURS", "0.05"))
PERIOD = 600 * WINDOW  # 19.2 s: what repeats does so in the same windows


@pytest.fixture(scope="module")
def period() -> np.ndarray:
    """Some commands with pauses, filled up with quiet noise."""
    records = opening.open_source("bundled:commands:test")
    samples = np.random.default_rng(0).normal(0, 1e-4, PERIOD).astype(np.float32)
    place = RATE
    for index in range(0, 30, 6):
        spoken = reading.decode(records[index]["audio"])
        if place + len(spoken) + RATE > PERIOD:
            break
        samples[place : place + len(spoken)] += spoken
        place += len(spoken) + RATE
    return samples


def measure_memory() -> int:
    """Bytes that the process holds now."""
    with open("/proc/self/statm") as counts:
        return int(counts.read().split()[1]) * resource.getpagesize()


@pytest.mark.timeout(7200)
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="Linux only")
def test_hours_of_audio_are_the_first_minute_again(model_files, period):
    config = StreamConfig(suffix_tokens=40, text_tokens=96)
    loaded = recognisers.load(
        model_files[0], chunk_ms=config.chunk_ms, left=config.left
    )
    listener = Listener(loaded.recogniser, config=config, detector=Silero())
    session = listener.open()
    rounds = max(4, round(HOURS * 3600 * RATE / PERIOD))
    first: list[Final] = []
    memory = []
    for number in range(rounds):
        finals = []
        for place in range(0, PERIOD, 4000):
            session.feed(period[place : place + 4000])
            told = listener.drain()
            finals += [event for _, event in told if isinstance(event, Final)]
        if number == 1:  # the first of all hears nothing before it
            first = finals
        if number > 1:
            assert_later(finals, first, (number - 1) * PERIOD / RATE)
        gc.collect()
        memory.append(measure_memory())
    assert len(first) >= 3
    # The first rounds make what is made once; then nothing grows.
    assert memory[-1] - memory[len(memory) // 2] < 8e6
    listener.drop(session)


def assert_later(finals: list[Final], first: list[Final], seconds: float):
    """The same finals, so much later."""
    assert [final.text for final in finals] == [final.text for final in first]
    for final, before in zip(finals, first):
        for word, same in zip(final.words, before.words, strict=True):
            assert word.start - seconds == pytest.approx(same.start, abs=0.04)
            assert word.end - seconds == pytest.approx(same.end, abs=0.04)
