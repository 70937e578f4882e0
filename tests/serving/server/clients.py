"""Clients of a live server: a plain WebSocket, plain HTTP."""

import io
import json
import time
import urllib.error
import urllib.request

import soundfile
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

RATE = 16_000


def open_stream(server, query="", **options):
    return connect(f"ws://{server.address}/v1/stream{query}", **options)


def read(websocket):
    """Messages until the connection ends, and its code."""
    told = []
    try:
        while True:
            told.append(json.loads(websocket.recv(60)))
    except ConnectionClosed:
        return told, websocket.close_code


def talk_to(server, data, query="", packet=3_200):
    """What a stream says of PCM that is sent in packets."""
    with open_stream(server, query) as websocket:
        for begin in range(0, len(data), packet):
            websocket.send(data[begin : begin + packet])
        websocket.send('{"type": "end"}')
        return read(websocket)


def pick(told, *kinds):
    return [message for message in told if message["event"] in kinds]


def fetch(server, path, headers=None, data=None, method=None):
    """Status, headers and body."""
    request = urllib.request.Request(
        f"http://{server.address}{path}", data, headers or {}, method=method
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


def ask(server, method, path, body=None, kind="application/json", **headers):
    """Status, ETag and JSON of an answer; the body is JSON, or bytes of that kind."""
    data = body
    if body is not None and not isinstance(body, bytes):
        data = json.dumps(body).encode()
    given = {key.replace("_", "-"): value for key, value in headers.items()}
    if data is not None:
        given["Content-Type"] = kind
    status, told, text = fetch(server, path, given, data, method)
    return status, told.get("etag"), json.loads(text)


def write_file(samples, form="WAV", rate=RATE):
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=form)
    file.seek(0)
    file.name = f"speech.{form.lower()}"
    return file


def await_idle(server, seconds=20.0):
    """All places are free again."""
    until = time.monotonic() + seconds
    while server.state.admission.streams or server.state.engine.streams:
        assert time.monotonic() < until
        time.sleep(0.02)


def strip(finals):
    """Without scores, which differ by the order of additions."""
    kept = ("text", "start", "end", "reason", "hotwords")
    return [{key: final[key] for key in kept} for final in json_like(finals)]


def json_like(values):
    return json.loads(json.dumps(list(values)))
