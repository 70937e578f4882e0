"""Sources of live audio: their pace, their errors, and what waits."""

import numpy as np
import pytest

from nim4_jax.data.audio import reading
from nim4_jax.decode.live import audio_sources

RATE = 16_000


def test_files_are_fed_when_a_microphone_would():
    now, waited = [10.0], []

    def sleep(seconds):
        waited.append(seconds)
        now[0] += seconds

    packets = [np.zeros(size, np.float32) for size in (1_600, 1_600, 3_200)]
    paced = audio_sources.hold_pace(iter(packets), lambda: now[0], sleep)
    due = []
    for _ in paced:
        due.append(now[0] - 10.0)
        now[0] += 0.15  # what the recogniser takes: longer than a packet
    assert due == pytest.approx([0.1, 0.25, 0.4])
    assert waited == pytest.approx([0.1])


def test_an_error_in_a_source_comes_behind_its_packets():
    def break_down():
        yield from (1, 2)
        raise OSError("unplugged")

    inbox = audio_sources.Inbox(RATE, 9)
    inbox.fill(break_down())
    packets = iter(inbox)
    assert [next(packets), next(packets)] == [1, 2]
    with pytest.raises(OSError, match="unplugged"):
        next(packets)


def test_a_source_that_cannot_wait_fills_no_memory():
    inbox, packet = audio_sources.Inbox(RATE, 0, most=3), np.zeros(2, np.int16)
    assert [inbox.put(packet) for _ in range(5)] == [True] * 3 + [False] * 2
    inbox.end()
    assert len(list(inbox)) == 3


def test_a_packet_that_cannot_be_resampled_is_left_out():
    warned = []
    good = np.random.default_rng(0).normal(0, 0.1, 800).astype(np.float32)
    packets = [good[:300], np.full(9, np.inf, np.float32), good[300:]]
    made = np.concatenate(list(audio_sources.convert(packets, 8_000, warned.append)))
    np.testing.assert_array_equal(made, reading.resample(good, 8_000, RATE))
    assert len(warned) == 1 and "left out" in warned[0]
