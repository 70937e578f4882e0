"""Pacing by a clock that the tests run themselves."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nim4_jax.data.audio import reading
from nim4_jax.data.sources import opening
from nim4_jax.decode.live.listener import Listener
from nim4_jax.decode.live.stream_config import StreamConfig
from nim4_jax.eval import stream_runs, streaming
from nim4_jax.features import SAMPLE_RATE
from nim4_jax.serving import recognisers

CONFIG = StreamConfig(
    chunk=4,
    left=2,
    unstable_tokens=3,
    draft_tokens=4,
    chunks=8,
    text_tokens=32,
    suffix_tokens=40,
)


class Clock:
    """Time passes in sleep, and a little with every look."""

    def __init__(self, step):
        self.now, self.step = 100.0, step

    def __call__(self):
        self.now += self.step
        return self.now

    def sleep(self, seconds):
        assert seconds >= 0.0
        self.now += seconds


@pytest.fixture(scope="module")
def listener(model_files):
    loaded = recognisers.load(
        model_files[0], chunk_ms=CONFIG.chunk_ms, left=CONFIG.left
    )
    return Listener(loaded.recogniser, streams=2, config=CONFIG)


@pytest.fixture(scope="module")
def recordings():
    records = opening.open_source("bundled:commands:test")
    return [reading.decode(records[number]["audio"]) for number in (0, 3)]


def name_events(events):
    return [(type(event), event.utterance, event.heard) for event in events]


def test_a_paced_stream_says_what_it_says_at_once(listener, recordings):
    """As many chunks as were taken; nothing early, nothing later than the clock is."""
    alone = streaming.transcribe(listener, recordings)
    before = listener.metrics.chunks
    clock = Clock(1e-4)
    run = stream_runs.pace(listener, recordings, clock=clock, sleep=clock.sleep)
    assert len(run.chunk_delays) == listener.metrics.chunks - before > 0
    assert run.latency.streams == 2 and run.latency.early == 0
    assert run.latency.finals == sum(
        type(event).__name__ == "Final" for events in alone for event in events
    )
    assert run.latency.audio_seconds == pytest.approx(
        sum(map(len, recordings)) / SAMPLE_RATE, abs=0.05
    )
    # A window of the detector is known with the packet that ends it, 20 ms at most.
    assert min(run.chunk_delays) >= 0.0
    assert max(run.chunk_delays) < 0.1
    longest = max(map(len, recordings)) / SAMPLE_RATE
    assert clock.now - 100.0 == pytest.approx(longest, abs=CONFIG.seconds + 0.1)
    assert not run.gave_up and 0.0 < run.latency.busy_seconds < longest


def test_a_run_that_is_too_late_is_broken_off(listener, recordings):
    """Each look at the clock takes longer than a chunk; all places are free again."""
    clock = Clock(2 * CONFIG.seconds)
    run = stream_runs.pace(
        listener, recordings, most_late=2, clock=clock, sleep=clock.sleep
    )
    assert run.gave_up and 3 <= len(run.chunk_delays) <= 4
    for session in [listener.open() for _ in range(listener.streams)]:
        listener.drop(session)


def test_joined_speech_has_pauses_and_the_length(recordings):
    joined = stream_runs.join_speech(recordings, 9.5, seed=3)
    assert joined.shape == (152_000,) and joined.dtype == np.float32
    np.testing.assert_array_equal(
        joined, stream_runs.join_speech(recordings, 9.5, seed=3)
    )
    first = next(one for one in recordings if np.array_equal(joined[: len(one)], one))
    assert not joined[len(first) : len(first) + round(0.3 * SAMPLE_RATE)].any()


@given(st.integers(0, 70), st.integers(1, 64), st.integers(1, 64))
def test_the_search_finds_the_most_that_holds(capacity, first, most):
    """Within a quarter; never more than was tried, and exact where it is small."""
    tried = []

    def holds(number):
        tried.append(number)
        return number <= capacity

    found, best = stream_runs.find_most(holds, first, most), min(capacity, most)
    assert found <= best and best - found <= max(0, found // 4 - 1)
    assert found == 0 or found in tried
    assert len(set(tried)) == len(tried) <= 9 and all(1 <= n <= most for n in tried)
