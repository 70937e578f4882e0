"""The plain WebSocket as clients meet it."""

import asyncio
import concurrent.futures
import contextlib
import json
import socket
import struct
import threading
import time
from urllib.parse import urlencode

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from nim4_jax.data.audio import reading, resample
from nim4_jax.retrieval.hotwords import VersionedRetriever
from nim4_jax.serving.server.dialects import conversation

RATE = 16_000
KEY = "k" * 24


@pytest.mark.parametrize("packet", [7, 333, 3_200, 400_000])
def test_packets_of_any_size_give_the_text_of_the_listener_alone(
    clients, server, alone, talk, packet
):
    """Halves of samples too."""
    samples = talk(0) if packet == 7 else talk(0, 1)
    told, code = clients.talk_to(server, samples.tobytes(), packet=packet)
    assert code == 1000
    assert clients.strip(clients.pick(told, "final")) == alone(
        reading.to_float32(samples)
    )
    assert told[0]["event"] == "ready" and told[-1]["event"] == "done"
    assert told[-1]["seconds"] == pytest.approx(len(samples) / RATE, abs=1e-3)
    assert not clients.pick(told, "error")


def test_streams_together_are_each_alone(clients, server, alone, sizes, talk):
    """Four clients, two lengths of chunks, hints, a rate of its own."""
    recordings = [talk(0, 1), talk(1), talk(2, 3), talk(3)]
    queries = ["", "?chunk_ms=320", "?hints=perth,anna", "?chunk_ms=320&hints=anna"]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        together = list(
            pool.map(
                lambda given: clients.talk_to(server, given[0].tobytes(), given[1]),
                zip(recordings, queries),
            )
        )
    for number, (told, code) in enumerate(together):
        hints = [(), (), ("perth", "anna"), ("anna",)][number]
        samples = reading.to_float32(recordings[number])
        expected = alone(samples, sizes[number % 2], hints=hints)
        assert (clients.strip(clients.pick(told, "final")), code) == (expected, 1000)


@pytest.mark.parametrize("rate", [4_000, 8_000, 44_100, 192_000])
def test_audio_of_any_rate_is_resampled_as_files_are(
    clients, server, alone, talk, rate
):
    samples = reading.to_float32(talk(1))
    other = reading.to_int16(reading.resample(samples, RATE, rate))
    told, _ = clients.talk_to(server, other.tobytes(), f"?rate={rate}", packet=5_001)
    resampler = resample.StreamResampler(rate)
    expected = np.concatenate([resampler.feed(other), resampler.finish()])
    assert clients.strip(clients.pick(told, "final")) == alone(expected)


def test_settings_come_in_the_first_message(clients, server, talk, alone):
    with clients.open_stream(server) as websocket:
        asked = {"rate": 16000, "hints": ["perth"], "chunk_ms": 160, "language": "en"}
        websocket.send(json.dumps({**asked, "endpointing": {"silence_ms": 600}}))
        websocket.send(talk(0).tobytes())
        websocket.send('{"type": "end"}')
        told, _ = clients.read(websocket)
    (configured,) = clients.pick(told, "configured")
    assert configured["chunk_ms"] == 160 and configured["hints"] == ["perth"]
    samples = reading.to_float32(talk(0))
    finals = clients.strip(clients.pick(told, "final"))
    assert [final["hotwords"] for final in finals] == [["perth"]] * len(finals)
    assert len(finals) == len(alone(samples, hints=("perth",)))


def test_lists_of_the_server_are_looked_for(clients, server, share, many, alone, talk):
    """So are hints that have no room; the stream hears as a listener with them does.

    Each utterance asks anew what there is.
    """
    lists = share(server, "places", "perth", "anna"), share(server, "verbs", "turn on")
    (keywords, split), moments = many, []
    hints, own = split(reserve=True)

    def look():
        moments.append((lists[0].served, lists[1].served, own))
        return moments[-1]

    retriever = VersionedRetriever(look)
    samples = talk(0, 1)
    expected = alone(reading.to_float32(samples), hints=hints, retriever=retriever)
    assert len(moments) == 1 + len(expected)
    asked = {"hotwords": "places,verbs", "hints": ",".join(keywords)}
    told, _ = clients.talk_to(server, samples.tobytes(), f"?{urlencode(asked)}")
    assert told[0]["hotwords"] == ["places", "verbs"]
    assert clients.strip(clients.pick(told, "final")) == expected
    with pytest.raises(InvalidStatus) as refusal:
        clients.open_stream(server, "?hotwords=places,nobody")
    assert refusal.value.response.status_code == 404


WRONG = [
    ("{", "invalid_json", None),
    ("[]", "invalid_json", None),
    ("[" * 20_000, "invalid_json", None),
    ('{"type": "dance"}', "unknown_type", "type"),
    ('{"rate": 3999}', "invalid_value", "rate"),
    ('{"rate": 192001}', "invalid_value", "rate"),
    ('{"rate": "fast"}', "invalid_value", "rate"),
    ('{"hints": "perth"}', "invalid_value", "hints"),
    ('{"hints": [1]}', "invalid_value", "hints"),
    (json.dumps({"hints": ["a" * 257]}), "invalid_value", "hints"),
    (json.dumps({"hints": ["a"] * 1001}), "invalid_value", "hints"),
    ('{"chunk_ms": 17}', "invalid_value", "chunk_ms"),
    ('{"language": "de"}', "unsupported_language", "language"),
    ('{"hotwords": "nobody"}', "hotwords_not_found", "hotwords"),
    ('{"hotwords": ["a", 1]}', "invalid_value", "hotwords"),
    ('{"hotwords": "a,b,c,d,e,f,g,h,i"}', "invalid_value", "hotwords"),
    ('{"endpointing": {"silence_ms": 1}}', "invalid_value", "endpointing"),
    ('{"endpointing": "maybe"}', "invalid_value", "endpointing"),
    ('{"colour": 1}', "unknown_field", "colour"),
    ('{"type": "update", "rate": 8000}', "invalid_value", "rate"),
]


def test_a_stream_lives_through_every_wrong_message(clients, server, talk, alone):
    """Each is answered by its code and field; the text is that of a clean stream."""
    samples = talk(0)
    with clients.open_stream(server) as websocket:
        for message, _, _ in WRONG:
            websocket.send(message)
        websocket.send(samples.tobytes())
        websocket.send('{"rate": 8000}')
        websocket.send('{"type": "end"}')
        websocket.send(b"1234")
        told, code = clients.read(websocket)
    errors = [
        (m["error"]["code"], m["error"]["param"]) for m in clients.pick(told, "error")
    ]
    late = {("stream_has_begun", None), ("stream_has_ended", None)}
    assert errors[: len(WRONG)] == [wrong[1:] for wrong in WRONG]
    assert set(errors[len(WRONG) :]) <= late
    assert clients.strip(clients.pick(told, "final")) == alone(
        reading.to_float32(samples)
    )
    assert code == 1000


def test_rubbish_without_end_is_ended(clients, server):
    with clients.open_stream(server) as websocket:
        with contextlib.suppress(ConnectionClosed):
            for _ in range(200):
                websocket.send("rubbish")
        told, code = clients.read(websocket)
    assert code == 1008 and 50 <= len(clients.pick(told, "error")) <= 53
    clients.await_idle(server)


@pytest.mark.parametrize(
    ("query", "param"),
    [("?rate=1", "rate"), ("?colour=1", "colour"), ("?chunk_ms=5", "chunk_ms")],
)
def test_a_wrong_query_is_refused_before_the_upgrade(clients, server, query, param):
    with pytest.raises(InvalidStatus) as refusal, clients.open_stream(server, query):
        pass
    assert refusal.value.response.status_code == 400
    assert json.loads(refusal.value.response.body)["error"]["param"] == param


def test_one_stream_too_many_is_refused_before_the_upgrade(clients, server):
    with contextlib.ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(clients.open_stream(server))
        with pytest.raises(InvalidStatus) as refusal, clients.open_stream(server):
            pass
        response = refusal.value.response
        assert response.status_code == 503 and int(response.headers["retry-after"])
        assert json.loads(response.body)["error"]["code"] == "no_free_stream"
    clients.await_idle(server)


def test_a_client_that_breaks_off_leaves_nothing_behind(clients, server, talk, alone):
    """RST in the midst of speech; the others hear nothing of it."""
    samples = talk(2)
    with clients.open_stream(server) as honest:
        websocket = clients.open_stream(server)
        websocket.send(talk(0, 1)[: 2 * RATE].tobytes())
        raw = websocket.socket
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raw.close()
        honest.send(samples.tobytes())
        honest.send('{"type": "end"}')
        told, _ = clients.read(honest)
    assert clients.strip(clients.pick(told, "final")) == alone(
        reading.to_float32(samples)
    )
    clients.await_idle(server)


def test_a_client_that_never_reads_is_dropped(clients, serve, talk, alone, monkeypatch):
    """Its events are bounded; its place comes back; the others go on."""
    monkeypatch.setattr(conversation, "MOST_ERRORS", 10**9)
    with serve(send_seconds=0.5) as own:
        raw = socket.create_connection(own.address.split(":"))
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        raw.sendall(
            f"GET /v1/stream HTTP/1.1\r\nHost: {own.address}\r\nUpgrade: websocket\r\n"
            "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode()
        )
        # Each wrong message is answered with more than it has: the answers pile up.
        message = json.dumps({"rate": 1}).encode()
        masked = bytes([0x81, 0x80 | len(message), 0, 0, 0, 0]) + message
        own.state.config = own.state.config.model_copy(update={"unsent_events": 8})
        raw.settimeout(0.5)
        with contextlib.suppress(OSError):
            for _ in range(200_000):
                raw.sendall(masked)
        clients.await_idle(own)
        raw.close()
        told, code = clients.talk_to(own, talk(1).tobytes())
        assert clients.strip(clients.pick(told, "final")) == alone(
            reading.to_float32(talk(1))
        )
        assert code == 1000


def test_sigterm_gives_finals_and_refuses_new_streams(clients, serve, talk, alone):
    """As the signal's handler does it: unready, finals, 1001."""
    samples = talk(0, pause=0.3)
    with (
        serve() as own,
        clients.open_stream(own) as websocket,
        clients.open_stream(own) as silent,
    ):
        websocket.send(samples.tobytes())
        while not own.state.engine.streams or (
            own.state.engine.streams[-1].seconds < len(samples) / RATE
        ):
            time.sleep(0.02)
        own.handle_exit(15, None)
        told, code = clients.read(websocket)
        assert code == 1001
        assert clients.strip(clients.pick(told, "final")) == alone(
            reading.to_float32(samples)
        )
        assert clients.read(silent)[1] == 1001
        until = time.monotonic() + 20
        while not own.should_exit:
            assert time.monotonic() < until
            time.sleep(0.02)


def test_asyncio_has_no_task_left(clients, server):
    """Once all clients have gone, nothing of them is."""
    clients.await_idle(server)
    loop, count = server._loop, []
    done = threading.Event()

    def look():
        count.append(len(asyncio.all_tasks(loop)))
        done.set()

    loop.call_soon_threadsafe(look)
    assert done.wait(10) and count[0] <= 4
