"""Wyoming, with the client that Home Assistant uses and with what no client sends."""

import asyncio
import json
import socket

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nim4_jax.serving.server import running, wyoming_events
from nim4_jax.serving.server.config import ServerConfig
from nim4_jax.serving.server.wyoming_events import ProtocolError, WyomingEvent

RATE = 16_000
FORMAT = {"rate": RATE, "width": 2, "channels": 1}


@pytest.fixture(scope="module")
def wyoming_server(serve):
    with serve(wyoming_port=0) as started:
        yield started


def connect(server):
    return socket.create_connection(server.wyoming.getsockname(), timeout=30)


def encode(kind, data=None, payload=b""):
    header = {"type": kind, "data": data or {}, "payload_length": len(payload)}
    return json.dumps(header).encode() + b"\n" + payload


def read_all(connection):
    """Events until the server closes the connection."""
    file, told = connection.makefile("rb"), []
    while line := file.readline():
        header = json.loads(line)
        data = json.loads(file.read(header.get("data_length", 0)) or b"{}")
        told.append((header["type"], data))
    return told


def say(samples, packet=1_280, **form):
    """From audio-start to audio-stop."""
    form = {**FORMAT, **form}
    step = packet * form["channels"]
    parts = [samples[begin : begin + step] for begin in range(0, len(samples), step)]
    chunks = [encode("audio-chunk", form, part.tobytes()) for part in parts]
    return b"".join([encode("audio-start", form), *chunks, encode("audio-stop")])


def transcribe(server, data, *before):
    """What a connection says until its transcript is whole."""
    with connect(server) as connection:
        connection.sendall(b"".join([*before, data]))
        file, told = connection.makefile("rb"), []
        while not told or told[-1][0] not in ("transcript-stop", "error"):
            header = json.loads(file.readline())
            content = file.read(header.get("data_length", 0)) or b"{}"
            told.append((header["type"], json.loads(content)))
        return told


def find_text(told):
    return next(data["text"] for kind, data in told if kind == "transcript")


@pytest.fixture(scope="module")
def plain(clients, wyoming_server, talk):
    """What the plain WebSocket says of the same audio without endpointing."""
    told, _ = clients.talk_to(
        wyoming_server, talk(0, 1).tobytes(), "?endpointing=false"
    )
    return clients.pick(told, "partial", "final")


@pytest.fixture(scope="module")
def expected(plain):
    """The text of its final."""
    (final,) = (event for event in plain if event["event"] == "final")
    assert final["text"]
    return final["text"]


def test_home_assistants_client_gets_its_transcript(wyoming_server, talk, expected):
    """Describe, names as hints, audio, pieces that are only appended, transcript."""
    package = pytest.importorskip("wyoming")
    from wyoming import asr, audio, client, info

    async def talk_to():
        host, port = wyoming_server.wyoming.getsockname()
        told = []
        async with client.AsyncTcpClient(host, port) as connection:
            await connection.write_event(info.Describe().event())
            described = info.Info.from_event(await connection.read_event())
            asked = asr.Transcribe(language="en-GB", transcript_names=[])
            await connection.write_event(asked.event())
            start = audio.AudioStart(RATE, 2, 1)
            await connection.write_event(start.event())
            data = talk(0, 1).tobytes()
            for begin in range(0, len(data), 2_048):
                chunk = audio.AudioChunk(RATE, 2, 1, data[begin : begin + 2_048])
                await connection.write_event(chunk.event())
            await connection.write_event(audio.AudioStop().event())
            while not told or not asr.TranscriptStop.is_type(told[-1].type):
                told.append(await connection.read_event())
        return described, told

    assert package
    described, told = asyncio.run(talk_to())
    (program,) = described.asr
    assert program.installed and program.supports_transcript_streaming
    assert program.models[0].languages == ["en", "zh"]
    assert asr.TranscriptStart.is_type(told[0].type)
    (transcript,) = [event for event in told if asr.Transcript.is_type(event.type)]
    assert asr.Transcript.from_event(transcript).text == expected
    assert [event.type for event in told[-2:]] == ["transcript", "transcript-stop"]


def test_packets_change_nothing_and_a_connection_serves_again(
    wyoming_server, talk, plain, expected
):
    """Pieces are what of partials is stable, and the final if it goes on from there."""
    whole = say(talk(0, 1), packet=50_000)
    with connect(wyoming_server) as connection:
        connection.sendall(whole + say(talk(0, 1), packet=333))
        connection.shutdown(socket.SHUT_WR)
        told = read_all(connection)
    texts = [data["text"] for kind, data in told if kind == "transcript"]
    assert texts == [expected, expected] and told[-1][0] == "transcript-stop"
    first = told[: told.index(("transcript-stop", {}))]
    pieces = "".join(data["text"] for kind, data in first if kind == "transcript-chunk")
    kept = ""
    for event in plain:
        text = event["text"][: event.get("stable")]
        kept = text if text.startswith(kept) else kept
    assert pieces == kept


def test_other_formats_are_heard(wyoming_server, talk):
    """Stereo at another rate; chunks without a start."""
    stereo = np.repeat(np.repeat(talk(0), 3), 2)
    told = transcribe(wyoming_server, say(stereo, rate=48_000, channels=2))
    assert told[-1][0] == "transcript-stop"
    data = say(talk(0))[len(encode("audio-start", FORMAT)) :]
    assert find_text(transcribe(wyoming_server, data)) == find_text(
        transcribe(wyoming_server, say(talk(0)))
    )
    silence = np.zeros(RATE, np.int16)
    assert find_text(transcribe(wyoming_server, say(silence))) == ""


def test_names_come_into_the_prompt(wyoming_server, talk, monkeypatch):
    """Names before terms, each once; those that have no room are looked for."""
    opened = []
    state = wyoming_server.state
    open_stream = state.engine.open

    def note(options):
        opened.append(options)
        return open_stream(options)

    monkeypatch.setattr(state.engine, "open", note)
    names, terms = ["Anna", " Perth\n"], [f"term {i}" for i in range(300)]
    asked = {"transcript_names": names, "transcript_terms": ["Anna", *terms]}
    transcribe(wyoming_server, say(talk(0)), encode("transcribe", asked))
    transcribe(wyoming_server, say(talk(0)))
    first, second = opened
    assert first.hints[0] == "Anna" and len(first.hints) < 20
    (own,) = first.retriever._find()
    assert len(first.hints) + len(own.base.database) == 302
    assert (second.hints, second.retriever) == ((), None)


WRONG = {
    "http": (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", "invalid_event"),
    "no_object": (b"[]\n", "invalid_event"),
    "no_type": (b"{}\n", "invalid_event"),
    "deep": (b"[" * 60_000 + b"\n", "invalid_event"),
    "long_header": (b'{"type": "' + b"x" * 100_000, "event_too_large"),
    "long_data": (b'{"type": "ping", "data_length": 99999999}\n', "event_too_large"),
    "long_payload": (
        b'{"type": "audio-chunk", "payload_length": 9223372036854775807}\n',
        "event_too_large",
    ),
    "negative": (b'{"type": "ping", "payload_length": -1}\n', "invalid_event"),
    "no_number": (b'{"type": "ping", "data_length": 1e3}\n', "invalid_event"),
    "true": (b'{"type": "ping", "data_length": true}\n', "invalid_event"),
    "list": (b'{"type": "ping", "data": [1]}\n', "invalid_event"),
    "no_format": (encode("audio-start"), "invalid_value"),
    "slow": (encode("audio-start", {**FORMAT, "rate": 1}), "invalid_value"),
    "floats": (encode("audio-start", {**FORMAT, "width": 4}), "invalid_value"),
    "model": (encode("transcribe", {"name": "other"}), "model_not_found"),
    "language": (encode("transcribe", {"language": "fr"}), "unsupported_language"),
    "names": (encode("transcribe", {"transcript_names": "Anna"}), "invalid_value"),
    "twice": (encode("audio-start", FORMAT) * 2, "unexpected_event"),
    "half": (encode("audio-chunk", FORMAT, b"\0" * 33), "invalid_audio"),
    "changes": (
        encode("audio-start", FORMAT)
        + encode("audio-chunk", {**FORMAT, "rate": 8_000}, b"\0" * 320),
        "invalid_audio",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_ends_its_connection_alone(clients, wyoming_server, name):
    """An error that names its code, the end, and no place that stays taken."""
    data, code = WRONG[name]
    with connect(wyoming_server) as connection:
        connection.sendall(data)
        kind, told = read_all(connection)[-1]
    assert kind == "error" and told["code"] == code and told["text"]
    clients.await_idle(wyoming_server)


def test_who_breaks_off_harms_nobody(clients, wyoming_server, talk, expected):
    """At any event; unknown events, pings and stops without audio are answered."""
    data = say(talk(0, 1))
    with connect(wyoming_server) as broken:
        broken.sendall(data[: len(data) // 2])
        told = transcribe(
            wyoming_server,
            data,
            encode("select-program", {"name": "x"}, b"payload"),
            encode("audio-stop"),
            encode("ping", {"text": "here"}),
        )
    assert told[0] == ("pong", {"text": "here"})
    assert find_text(told) == expected
    clients.await_idle(wyoming_server)


def test_places_are_few_and_given_back(clients, serve, talk, expected):
    """Clients without keys have places of their own."""
    with serve(wyoming_port=0, wyoming_streams=1) as own:
        with connect(own) as first:
            first.sendall(encode("audio-start", FORMAT))
            assert first.recv(1)
            told = transcribe(own, say(talk(0)))
            assert told[-1][1]["code"] == "too_many_streams"
        clients.await_idle(own)
        assert find_text(transcribe(own, say(talk(0, 1)))) == expected


def test_who_speaks_when_the_server_stops_gets_a_transcript(serve, talk):
    """Whoever does not, is left; both see the end of their connection."""
    with (
        serve(wyoming_port=0) as own,
        connect(own) as idle,
        connect(own) as speaking,
    ):
        data = say(talk(0))
        speaking.sendall(data[: -len(encode("audio-stop"))])
        while b"transcript-start" not in speaking.recv(1 << 16, socket.MSG_PEEK):
            pass
        own._loop.call_soon_threadsafe(own._begin_drain)
        told = read_all(speaking)
        assert [kind for kind, _ in told[-2:]] == ["transcript", "transcript-stop"]
        assert read_all(idle) == []


def test_it_is_off_and_for_this_machine_unless_told_otherwise(server):
    assert server.wyoming is None
    config = ServerConfig(model="x", wyoming_port=0, wyoming_host="0.0.0.0")
    with pytest.raises(ValueError, match=r"host=0.0.0.0 can be reached by others"):
        running.run(config)


def read_bytes(data, cuts=()):
    """Events of some bytes that come in pieces."""

    async def go():
        reader = asyncio.StreamReader(limit=wyoming_events.HEADER_BYTES)
        for begin, end in zip((0, *cuts), (*cuts, len(data))):
            reader.feed_data(data[begin:end])
        reader.feed_eof()
        found = []
        while (event := await wyoming_events.read(reader)) is not None:
            found.append(event)
        return found

    return asyncio.run(go())


@given(st.binary(max_size=200))
def test_any_bytes_are_events_or_no_protocol(data):
    try:
        assert all(isinstance(event, WyomingEvent) for event in read_bytes(data))
    except ProtocolError as error:
        assert error.code in ("invalid_event", "event_too_large")


@given(
    st.text(max_size=9),
    st.dictionaries(st.text(max_size=4), st.text(max_size=9)),
    st.lists(st.integers(0, 60), max_size=4),
)
def test_events_are_read_as_they_were_written(kind, data, cuts):
    """Whatever packets they come in."""
    event = WyomingEvent(kind, data)
    content = wyoming_events.encode(event) * 2
    inside = sorted(min(cut, len(content)) for cut in cuts)
    assert read_bytes(content, inside) == [event, event]
