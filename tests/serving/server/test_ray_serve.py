"""The server on Ray Serve, on this machine."""

import json
import socket

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from nim4_jax.eval.speed import idle_device
from nim4_jax.serving.server import auth, ray_serve

KEY = "k" * 24


def test_arguments_are_settings_and_replicas():
    """All as texts, as the command line has them; what is unknown is named."""
    given = {"model": "m", "streams": "3", "chunk_ms": "640,320", "max_replicas": "4"}
    replicas, settings = ray_serve.read_arguments(given)
    assert (replicas.min_replicas, replicas.max_replicas) == (1, 4)
    assert settings.streams == 3 and settings.chunk_ms == (640, 320)
    with pytest.raises(ValueError, match="no setting 'stream'"):
        ray_serve.read_arguments({"stream": 3})


def test_a_replica_needs_keys(monkeypatch):
    """Proxies may be reached by others."""
    monkeypatch.delenv("NIM4_SERVE_KEYS", raising=False)
    assert not auth.read_keys("")
    with pytest.raises(ValueError, match="no API keys"):
        ray_serve.make_app(ray_serve.read_arguments({"model": "m"})[1])


@pytest.fixture
def address():
    """Of a proxy before a replica, whose device costs nothing to compile."""
    ray = pytest.importorskip("ray", reason="needs the extra ray-serve")
    serve = pytest.importorskip("ray.serve", reason="needs the extra ray-serve")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {"NIM4_SERVE_KEYS": f"acme:{KEY}", "JAX_PLATFORMS": "cpu"}
    ray.init(num_cpus=2, include_dashboard=False, runtime_env={"env_vars": environment})
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        given = ray_serve.read_arguments({"streams": 1, "num_cpus": 1})
        serve.run(ray_serve.deploy(*given, idle_device.load), name="nim4")
        yield f"127.0.0.1:{port}"
    finally:
        serve.shutdown()
        ray.shutdown()


def hear(address, data):
    """Finals of a stream."""
    with connect(f"ws://{address}/v1/stream?token={KEY}") as websocket:
        for begin in range(0, len(data), 3_200):
            websocket.send(data[begin : begin + 3_200])
        websocket.send('{"type": "end"}')
        told = [json.loads(message) for message in websocket]
    assert told[-1]["event"] == "done"
    return [event["text"] for event in told if event["event"] == "final"]


@pytest.mark.long
def test_a_replica_serves_streams_and_refuses_others(clients, address, talk):
    """Through Ray's proxy: health, keys, a stream twice, and a full replica."""
    data = talk(0, 1).tobytes()
    first = hear(address, data)
    assert first and hear(address, data) == first

    class Proxy:
        pass

    proxy = Proxy()
    proxy.address = address
    assert clients.fetch(proxy, "/health/ready")[0] == 200
    assert clients.fetch(proxy, "/v1/models")[0] == 401
    headers = {"Authorization": f"Bearer {KEY}"}
    assert clients.fetch(proxy, "/v1/models", headers)[0] == 200
    url = f"ws://{address}/v1/stream"
    refused = InvalidStatus, ConnectionClosed
    with pytest.raises(refused), connect(url) as websocket:
        websocket.recv(30)
    with connect(f"{url}?token={KEY}") as websocket:
        assert json.loads(websocket.recv(30))["event"] == "ready"
        with pytest.raises(refused), connect(f"{url}?token={KEY}") as second:
            second.recv(30)
