"""OpenAI's Realtime transcription, by OpenAI's own client, unmodified."""

import base64
import json

import numpy as np
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from nim4_jax.data.audio import reading, resample
from nim4_jax.decode.endpoint import EndpointConfig
from nim4_jax.decode.live.events import Final
from nim4_jax.decode.live.listener import Listener
from nim4_jax.retrieval.hotwords import VersionedRetriever
from nim4_jax.serving import recognisers
from nim4_jax.serving.server.dialects import g711, realtime_session
from nim4_jax.serving.server.dialects.realtime_session import Session
from nim4_jax.serving.server.errors import ServeError

PREFIX = "conversation.item.input_audio_transcription"
BOUNDARIES = EndpointConfig(end_silence=0.5)  # what OpenAI's defaults are here


@pytest.fixture(scope="module")
def alone(model_files, sizes):
    """Texts of a listener alone, of audio at the client's rate."""
    recogniser = recognisers.load(model_files[0]).recogniser

    def hear(samples, rate=24_000, **options):
        resampler = resample.StreamResampler(rate)
        listener = Listener(recogniser, config=sizes[0])
        session = listener.open(**{"boundaries": BOUNDARIES, **options})
        for begin in range(0, len(samples), rate):  # as StreamResampler's law has it
            session.feed(resampler.feed(samples[begin : begin + rate]))
        session.feed(resampler.finish())
        session.close()
        return [e.text for _, e in listener.drain() if isinstance(e, Final)]

    return hear


@pytest.fixture
def dial(server):
    """Opens a connection of OpenAI's client."""
    client = openai.OpenAI(api_key="none", base_url=f"http://{server.address}/v1")
    return lambda: client.realtime.connect(extra_query={"intent": "transcription"})


def to_rate(samples, rate):
    floats = reading.resample(reading.to_float32(samples), 16_000, rate)
    return reading.to_int16(floats)


def append(connection, data, size=9_601):
    for begin in range(0, len(data), size):
        audio = base64.b64encode(data[begin : begin + size]).decode()
        connection.input_audio_buffer.append(audio=audio)


def set_input(connection, **own):
    connection.session.update(
        session={"type": "transcription", "audio": {"input": own}}
    )


def read_until(connection, kind, count=1):
    """Events up to so many of a kind."""
    told = []
    while count:
        told.append(connection.recv())
        count -= told[-1].type == kind
    return told


def pick(told, kind):
    return [event for event in told if event.type == kind]


def test_utterances_come_by_themselves(dial, alone, talk):
    """Events in OpenAI's order; deltas joined are the text."""
    samples = to_rate(talk(0, 1), 24_000)
    expected = alone(samples)
    with dial() as connection:
        assert connection.recv().type == "session.created"
        set_input(connection, transcription={"model": "gpt-4o-transcribe"})
        updated = connection.recv()
        assert updated.type == "session.updated"
        assert updated.session.audio.input.turn_detection.type == "server_vad"
        append(connection, samples.tobytes())
        told = read_until(connection, f"{PREFIX}.completed", len(expected))
    completed = pick(told, f"{PREFIX}.completed")
    assert [event.transcript for event in completed] == expected
    items = [event.item_id for event in completed]
    committed = pick(told, "input_audio_buffer.committed")
    assert [event.item_id for event in committed] == items
    assert [event.previous_item_id for event in committed] == [None, *items[:-1]]
    for item, text in zip(items, expected):
        own = [event for event in told if getattr(event, "item_id", "") == item]
        kinds = [event.type for event in own if event.type != f"{PREFIX}.delta"]
        assert kinds == [
            "input_audio_buffer.speech_started",
            "input_audio_buffer.speech_stopped",
            "input_audio_buffer.committed",
            f"{PREFIX}.completed",
        ]
        joined = "".join(event.delta for event in pick(own, f"{PREFIX}.delta"))
        # The second pass may take back what partials had called stable.
        assert joined == text or not text.startswith(joined)


@pytest.mark.parametrize("kind", ["audio/pcmu", "audio/pcma"])
def test_without_vad_an_item_is_what_was_committed(dial, alone, talk, kind):
    """Two commits, two items; telephone audio; nothing is said before a commit."""
    table = g711.TABLES[kind].astype(np.int32)
    wanted = to_rate(talk(0), 8_000).astype(np.int32)
    order = np.argsort(table, kind="stable")
    data = order[np.searchsorted(table[order], wanted).clip(0, 255)].astype(np.uint8)
    assert np.abs(table[data] - wanted).max() < 1_100
    endless = EndpointConfig(end_silence=1e6)
    expected = alone(table[data].astype(np.int16), 8_000, boundaries=endless)
    with dial() as connection:
        set_input(connection, format={"type": kind}, turn_detection=None)
        for _ in range(2):
            append(connection, data.tobytes(), 4_000)
            connection.input_audio_buffer.commit()
        told = read_until(connection, f"{PREFIX}.completed", 2)
    completed = pick(told, f"{PREFIX}.completed")
    assert ["".join(event.transcript.split()) for event in completed] == [
        "".join("".join(expected).split())
    ] * 2
    assert len({event.item_id for event in completed}) == 2
    assert not pick(told, "input_audio_buffer.speech_started")


def test_what_was_cleared_is_never_heard_of(dial, alone, talk):
    """Cleared in the midst of speech; what comes then is as on a new connection."""
    first, second = (to_rate(talk(n), 24_000) for n in (0, 1))
    with dial() as connection:
        set_input(connection, turn_detection={"threshold": 0.5})
        append(connection, first[: len(first) // 2].tobytes())
        connection.input_audio_buffer.clear()
        append(connection, second.tobytes())
        told = read_until(connection, f"{PREFIX}.completed")
    cleared = next(
        n for n, e in enumerate(told) if e.type == "input_audio_buffer.cleared"
    )
    (text,) = [e.transcript for e in told[cleared:] if e.type.endswith("completed")]
    assert text == alone(second)[0]
    assert not [e for e in told[:cleared] if e.type.endswith("completed")]


def test_lists_and_many_keywords_are_looked_for(dial, server, share, many, alone, talk):
    """The session hears as a listener does that has them."""
    version = share(server, "places", "perth", "anna", "turn on")
    keywords, split = many
    hints, own = split(reserve=True)
    samples = to_rate(talk(0), 24_000)
    retriever = VersionedRetriever(lambda: (version.served, own))
    expected = alone(samples, hints=hints, retriever=retriever)
    asked = {"hotwords": ["places"], "keywords": list(keywords)}
    with dial() as connection:
        assert connection.recv().type == "session.created"
        set_input(connection, transcription=asked)
        assert connection.recv().type == "session.updated"
        append(connection, samples.tobytes())
        told = read_until(connection, f"{PREFIX}.completed", len(expected))
    texts = [event.transcript for event in pick(told, f"{PREFIX}.completed")]
    assert texts == expected


def test_a_session_lives_through_every_wrong_event(server, clients, alone, talk):
    """Each is answered with its code, its field and the client's own id."""
    update = {"type": "session.update"}
    transcription = {"transcription": {"language": "de"}}
    wrong = [
        ("{", "invalid_json", None),
        ({"type": "dance"}, "unknown_event", "type"),
        ({"type": "input_audio_buffer.append", "audio": "§"}, "invalid_audio", "audio"),
        ({"type": "input_audio_buffer.append"}, "invalid_audio", "audio"),
        (
            {"type": "input_audio_buffer.commit"},
            "input_audio_buffer_commit_empty",
            None,
        ),
        (update, "invalid_value", "session"),
        ({**update, "session": {"type": "realtime"}}, "invalid_value", "session.type"),
        ({**update, "session": {"colour": 1}}, "unknown_parameter", "session.colour"),
        (
            {**update, "session": {"audio": {"input": transcription}}},
            "unsupported_language",
            "session.audio.input.transcription.language",
        ),
        (
            {
                **update,
                "session": {
                    "audio": {"input": {"transcription": {"hotwords": "nobody"}}}
                },
            },
            "hotwords_not_found",
            "session.audio.input.transcription.hotwords",
        ),
    ]
    samples = to_rate(talk(1), 24_000)
    with connect(f"ws://{server.address}/v1/realtime?model=nim4-asr") as websocket:
        assert json.loads(websocket.recv(60))["type"] == "session.created"
        for number, (event, code, param) in enumerate(wrong):
            if isinstance(event, dict):
                event = json.dumps({**event, "event_id": f"e{number}"})
            websocket.send(event)
            told = json.loads(websocket.recv(60))
            assert told["type"] == "error"
            assert (told["error"]["code"], told["error"]["param"]) == (code, param)
            assert told["error"]["event_id"] == (f"e{number}" if number else None)
        websocket.send(b"\0\0")
        assert json.loads(websocket.recv(60))["error"]["code"] == "invalid_event"
        audio = base64.b64encode(samples.tobytes()).decode()
        websocket.send(
            json.dumps({"type": "input_audio_buffer.append", "audio": audio})
        )
        while (told := json.loads(websocket.recv(60)))["type"] != f"{PREFIX}.completed":
            assert told["type"] != "error"
        assert told["transcript"] == alone(samples)[0]
    for query in ("?intent=conversation", "?model=gpt-9"):
        with pytest.raises(InvalidStatus):
            connect(f"ws://{server.address}/v1/realtime{query}")
    clients.await_idle(server)


VALUES = st.sampled_from(
    [
        {"audio": {"input": {"turn_detection": None}}},
        {"audio": {"input": {"turn_detection": {"type": "server_vad"}}}},
        {"audio": {"input": {"turn_detection": {"silence_duration_ms": 700}}}},
        {"audio": {"input": {"transcription": {"keywords": ["anna"]}}}},
        {"audio": {"input": {"transcription": {"language": "en"}}}},
        {"audio": {"input": {"format": {"type": "audio/pcmu"}}}},
        {"include": ["nim4.partial"]},
    ]
)


@given(st.lists(VALUES, max_size=6))
def test_what_an_update_does_not_name_stays(updates):
    """The last value that each field was given, in any order of updates."""
    session, expected = Session.model_validate({}), {}
    for given_values in updates:
        session = realtime_session.update(session, given_values)
        for key, value in given_values.get("audio", {}).get("input", {}).items():
            before = expected.get(key) or {}
            expected[key] = None if value is None else {**before, **value}
        if "include" in given_values:
            assert session.include == ("nim4.partial",)
    own = session.heard.model_dump(mode="json")
    for key, value in expected.items():
        if value is None:
            assert own[key] is None
        else:
            assert {k: own[key][k] for k in value} == value


def test_an_update_that_is_wrong_changes_nothing():
    session = realtime_session.update(Session.model_validate({}), {"include": []})
    with pytest.raises(ServeError) as told:
        realtime_session.update(session, {"audio": {"input": {"format": {"rate": 1}}}})
    assert told.value.param == "session.audio.input.format.rate"
    assert session.heard.format.rate is None


def test_telephone_codes_are_those_of_the_standard():
    """Ends, middles and signs of both laws, by G.711's tables."""
    mu, a = (g711.TABLES[kind] for kind in ("audio/pcmu", "audio/pcma"))
    assert mu[[0x00, 0x80, 0x7F, 0xFF, 0x0F]].tolist() == [-32124, 32124, 0, 0, -16764]
    assert a[[0x2A, 0xAA, 0x55, 0xD5, 0x80]].tolist() == [-32256, 32256, -8, 8, 5504]
    assert (np.sort(mu) == np.sort(-mu)).all() and (np.sort(a) == np.sort(-a)).all()
