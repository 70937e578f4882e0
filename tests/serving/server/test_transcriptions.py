"""OpenAI's transcriptions by OpenAI's own client, unmodified."""

import contextlib
import socket
import threading
import time
import urllib.error
import urllib.request

import numpy as np
import openai
import pytest

from nim4_jax.data.audio import reading
from nim4_jax.decode import longform, transcripts
from nim4_jax.decode.hotwords import NameFinder
from nim4_jax.retrieval.hotwords import VersionedRetriever
from nim4_jax.serving import recognisers

RATE = 16_000
KEY = "k" * 24


@pytest.fixture(scope="module")
def client(server):
    """OpenAI's own, unmodified."""
    url = f"http://{server.address}/v1"
    return openai.OpenAI(api_key="none", base_url=url, max_retries=0, timeout=120)


def test_openai_transcribes_a_file_in_every_form(clients, client, model_files, talk):
    samples = reading.to_float32(talk(0, 1))
    loaded = recognisers.load(model_files[0])
    decoded = reading.decode(clients.write_file(samples).getvalue())
    (expected,) = longform.transcribe_recordings(
        loaded,
        [transcripts.Recording("file", audio=decoded)],
        longform.Options(batch=1),
    )

    def ask(**fields):
        fields = {"model": "whisper-1", "temperature": 0.2, **fields}
        return client.audio.transcriptions.create(
            file=clients.write_file(samples), **fields
        )

    assert ask().text == expected.text
    assert ask().usage.seconds == int(np.ceil(len(samples) / RATE))
    assert ask(response_format="text") == expected.text + "\n"
    for form in ("srt", "vtt"):
        assert ask(response_format=form) == transcripts.render(expected, form)
    found = ask(
        response_format="verbose_json",
        timestamp_granularities=["word", "segment"],
        chunking_strategy={"type": "server_vad", "silence_duration_ms": 400},
    )
    assert found.text == expected.text
    assert [segment.text for segment in found.segments] == [
        passage.text for passage in expected.passages
    ]
    words = [word.text for passage in expected.passages for word in passage.words]
    assert [word.word for word in found.words] == words


def test_openai_streams_a_file(clients, client, talk):
    """The deltas joined are the text; tokens have their log probabilities."""
    file = clients.write_file(reading.to_float32(talk(0, 1, 2)), "FLAC")
    options = {"model": "nim4-asr", "include": ["logprobs"], "stream": True}
    made = client.audio.transcriptions.create(file=file, keywords=["perth"], **options)
    events = list(made)
    deltas = [e.delta for e in events if e.type == "transcript.text.delta"]
    (done,) = [e for e in events if e.type == "transcript.text.done"]
    assert len(deltas) > 1 and "".join(deltas) == done.text
    assert len(done.logprobs) == done.usage.output_tokens
    assert all(own.logprob <= 0 for own in done.logprobs)


def test_lists_and_many_keywords_are_looked_for(
    clients, client, server, share, many, model_files, talk
):
    """As `nim4 transcribe` does with these names."""
    samples = reading.to_float32(talk(0, 1))
    version = share(server, "places", "perth", "anna", "turn on")
    keywords, split = many
    hints, own = split(reserve=False)
    retriever = VersionedRetriever(lambda: (version.served, own))
    (expected,) = longform.transcribe_recordings(
        recognisers.load(model_files[0]),
        [transcripts.Recording("file", audio=samples)],
        longform.Options(batch=1, hints=hints, names=NameFinder(retriever)),
    )
    found = client.audio.transcriptions.create(
        model="nim4-asr",
        file=clients.write_file(samples),
        keywords=list(keywords),
        extra_body={"hotwords": ["places"]},
    )
    assert found.text == expected.text


def test_openai_lists_the_model(client):
    assert [model.id for model in client.models.list()] == ["nim4-asr"]
    assert client.models.retrieve("nim4-asr").object == "model"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-9")


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"model": "gpt-9"}, 404, "model"),
        ({"language": "de"}, 400, "language"),
        ({"response_format": "diarized_json"}, 400, "response_format"),
        ({"temperature": 7}, 400, "temperature"),
        ({"include": ["everything"]}, 400, "include"),
        ({"timestamp_granularities": ["minute"]}, 400, "timestamp_granularities"),
        ({"chunking_strategy": {"type": "x"}}, 400, "chunking_strategy"),
        ({"keywords": ["a" * 257]}, 400, "keywords"),
        ({"keywords": ["anna"] * 1001}, 400, "keywords"),
        ({"known_speaker_names": ["anna"]}, 400, "known_speaker_names"),
        ({"extra_body": {"colour": "red"}}, 400, "colour"),
        ({"extra_body": {"hotwords": "nobody"}}, 404, "hotwords"),
        ({"file": ("a.wav", b"")}, 400, "file"),
        ({"file": ("../../etc/passwd", b"rubbish" * 99)}, 400, "file"),
    ],
)
def test_a_wrong_field_is_named(clients, client, talk, fields, status, param):
    given = {
        "model": "nim4-asr",
        "file": clients.write_file(reading.to_float32(talk(0))),
    }
    with pytest.raises(openai.APIStatusError) as told:
        client.audio.transcriptions.create(**{**given, **fields})
    assert (told.value.status_code, told.value.param) == (status, param)
    assert "/tmp" not in told.value.message and "passwd" not in told.value.message


def test_uploads_and_audio_are_bounded(clients, serve, talk):
    with serve(upload_mib=1, file_seconds=2.0) as own:
        small = openai.OpenAI(
            api_key="none", base_url=f"http://{own.address}/v1", max_retries=0
        )
        ask = small.audio.transcriptions.create
        with pytest.raises(openai.APIStatusError) as told:
            ask(model="nim4-asr", file=("a.wav", bytes(3 << 20)))
        assert told.value.status_code == 413
        # One MiB of chunks, whose length no header tells.
        pieces = iter([bytes(1 << 19)] * 4)
        head = {"content-type": "multipart/form-data; boundary=x"}
        sent = threading.Event()
        with contextlib.suppress(urllib.error.URLError, OSError):
            status, _, _ = clients.fetch(own, "/v1/audio/transcriptions", head, pieces)
            assert status in (400, 413)
            sent.set()
        long = reading.to_float32(talk(0, 1, 2))
        with pytest.raises(openai.APIStatusError) as told:
            ask(model="nim4-asr", file=clients.write_file(long, "FLAC"))
        assert told.value.status_code == 413 and told.value.code == "audio_too_long"


def test_a_decoder_that_dies_takes_one_file_with_it(clients, server, client, talk):
    """The next file has a new process."""
    (pool,) = {server.state.jobs._decoders}
    for process in pool._all:
        process._start().kill()
    file = clients.write_file(reading.to_float32(talk(0)))
    assert client.audio.transcriptions.create(model="nim4-asr", file=file).text


def test_an_upload_that_never_ends_is_ended(serve):
    with serve(upload_seconds=0.5) as own:
        raw = socket.create_connection(own.address.split(":"))
        raw.settimeout(20)
        raw.sendall(
            f"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: {own.address}\r\n"
            "Content-Type: multipart/form-data; boundary=x\r\n"
            "Content-Length: 1000\r\n\r\n--x\r\n".encode()
        )
        assert raw.recv(1_000).startswith(b"HTTP/1.1 408")
        raw.close()


def test_nobody_waits_for_a_client_that_has_gone(clients, server, talk):
    """Its file ends before the next call of the device."""
    raw = socket.create_connection(server.address.split(":"))
    body = clients.write_file(
        np.tile(reading.to_float32(talk(0, 1, 2, 3)), 40)
    ).getvalue()
    form = (
        b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\nnim4-asr\r\n'
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        + body
        + b"\r\n--x--\r\n"
    )
    raw.sendall(
        f"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: {server.address}\r\n"
        "Content-Type: multipart/form-data; boundary=x\r\n"
        f"Content-Length: {len(form)}\r\n\r\n".encode()
        + form
    )
    until = time.monotonic() + 60
    while not len(server.state.jobs):
        assert time.monotonic() < until
        time.sleep(0.01)
    raw.close()
    while len(server.state.jobs):
        assert time.monotonic() < until
        time.sleep(0.05)
