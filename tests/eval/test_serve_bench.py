"""Trials of a server: counts and names alone; times may be any."""

import itertools
import threading
import time

import numpy as np
import pytest

from nim4_jax.decode.live.events import Final, Partial
from nim4_jax.decode.live.listener import Listener
from nim4_jax.decode.live.stream_config import StreamConfig
from nim4_jax.eval.speed import idle_device, serve
from nim4_jax.eval.speed.serve_process import Address
from nim4_jax.serving.server import auth, config, running

PARTS = ("network", "host", "device", "clients")


def check_rows(rows, streams):
    """All figures are there, of so many streams at most."""
    named = {row.figure: row for row in rows}
    assert named["served_streams_held"].ours in range(streams + 1)
    for name in ("partial_lag", "speech_end_to_final", "client_packet_lateness"):
        for rank in (50, 95, 99):
            assert named[f"{name}_p{rank}_ms"].runs > 0
    for part in PARTS:
        assert named[f"{part}_processor_ms_per_audio_second"].unit == "ms"
    assert len(named) == 1 + 3 * 3 + len(PARTS)


@pytest.fixture
def idle_server():
    """One whose device costs nothing, in a thread."""
    settings = config.ServerConfig(port=0, streams=2)
    state = running.make_state(settings, auth.Keys([]), idle_device.load)
    server = running.Server(state)
    listening = server.bind()
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    state.engine.wait_ready(120)
    while not server.started:
        time.sleep(0.01)
    yield f"ws://127.0.0.1:{listening.getsockname()[1]}/v1/stream"
    server.should_exit = True
    thread.join(30)


def test_a_server_that_runs_is_tried(idle_server, tmp_path):
    """Every stream speaks to its end; late ones do not break it off."""
    tracks = serve.write_tracks(tmp_path, serve.load_clips(""), 2.0)
    trial = serve.try_streams(Address(idle_server), tracks, 2, 2.0, patient=True)
    outcome = trial.outcome
    assert not outcome["failed"] and not outcome["gave_up"], outcome["error"]
    assert outcome["chunk_seconds"] == 0.64
    assert len(outcome["pacing"]) == 2 * 40 and len(outcome["finals"]) >= 2
    # No event comes before its audio: the clients pace by the clock.
    assert min(*outcome["partials"], *outcome["finals"], *outcome["pacing"]) > -0.001
    assert set(trial.processor) == set(PARTS[:3])
    check_rows(serve.describe(2, trial, 1), 2)


@pytest.mark.long
def test_the_bench_finds_its_number():
    """With servers of its own."""
    settings = serve.Settings(device="none", streams=2, seconds=2.0)
    check_rows(serve.run(False, 2, settings), 2)


@pytest.mark.parametrize(
    "wrong", [{}, {"device": "none", "url": "ws://a/v1/stream"}, {"device": "tpu"}]
)
def test_one_thing_is_served(wrong):
    with pytest.raises(ValueError, match="Give one of --model"):
        serve.Settings(**wrong)


def test_addresses_and_folders_are_checked(tmp_path):
    with pytest.raises(ValueError, match="expected ws://HOST:PORT"):
        Address("http://localhost:8000")
    with pytest.raises(ValueError, match="no files there"):
        serve.load_clips(str(tmp_path))


def test_the_idle_device_writes_as_much_as_people_say():
    """Texts grow with the audio, whatever rows share a call."""
    loaded = idle_device.load()
    config = StreamConfig()
    listener = Listener(loaded.recogniser, streams=3, config=config)
    speech = np.concatenate(serve.load_clips("")[:6])
    sessions = [listener.open() for _ in range(2)]
    told = {session: [] for session in sessions}
    for session in sessions:
        session.feed(speech)
        session.close()
    for session, event in listener.drain():
        told[session].append(event)
    one, other = (told[session] for session in sessions)
    assert one == other
    partials = [event for event in one if isinstance(event, Partial)]
    finals = [event for event in one if isinstance(event, Final)]
    assert partials and finals and all(final.text for final in finals)
    for before, after in itertools.pairwise(partials):
        if before.utterance == after.utterance:
            assert after.text.startswith(before.text[: before.stable])
            assert len(after.text) > len(before.text)
