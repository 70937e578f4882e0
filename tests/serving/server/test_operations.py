"""Who may call, and what operators see."""

import asyncio
import json

import pytest
from websockets.exceptions import InvalidStatus

from nim4_jax.serving.server import door
from nim4_jax.serving.server.auth import Keys, Tenant

RATE = 16_000
KEY = "k" * 24


def test_no_route_is_without_a_key(clients, serve):
    """In headers, in a subprotocol, in the query; the log has none of them."""
    with serve(keys=f"acme:{KEY}") as own:
        routes = [route.path for route in own.config.app._app.routes]
        assert {"/metrics", "/v1/models", "/v1/stream"} <= {*routes}
        for path in (*routes, "/nowhere", "/openapi.json"):
            status, _, body = clients.fetch(own, path)
            if path in door.OPEN:
                assert status == 200
            else:
                assert status == 401, path
                assert json.loads(body)["error"]["code"] == "invalid_api_key"
        for wrong in ("", "x" * 24, KEY[:-1]):
            headers = {"Authorization": f"Bearer {wrong}"}
            assert clients.fetch(own, "/v1/models", headers)[0] == 401
        for headers in ({"Authorization": f"Bearer {KEY}"}, {"X-API-Key": KEY}):
            assert clients.fetch(own, "/v1/models", headers)[0] == 200
        with pytest.raises(InvalidStatus) as refusal, clients.open_stream(own):
            pass
        assert refusal.value.response.status_code == 401
        with clients.open_stream(own, f"?token={KEY}") as websocket:
            assert json.loads(websocket.recv())["event"] == "ready"
        offered = ["nim4", f"nim4-key.{KEY}"]
        with clients.open_stream(own, subprotocols=offered) as websocket:
            assert websocket.subprotocol == "nim4"


def test_pages_of_other_sites_are_refused(clients, serve):
    """Also those whose name was made to point here."""
    with serve(origins=("https://friend.example",)) as own:
        here = f"http://{own.address}"
        for origin, status in (
            ("https://evil.example", 403),
            ("null", 403),
            (here, 200),
            ("https://friend.example", 200),
        ):
            assert clients.fetch(own, "/v1/models", {"Origin": origin})[0] == status
        assert clients.fetch(own, "/v1/models", {"Host": "evil.example"})[0] == 403
        with (
            pytest.raises(InvalidStatus),
            clients.open_stream(own, origin="https://evil.example"),
        ):
            pass


def test_metrics_and_health_tell_what_happened(clients, server, talk):
    clients.talk_to(server, talk(0).tobytes())
    assert clients.fetch(server, "/health/live")[0] == 200
    assert clients.fetch(server, "/health/ready")[0] == 200
    text = clients.fetch(server, "/metrics")[2].decode()
    values = dict(
        line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")
    )
    assert float(values["nim4_ready"]) == 1 and float(values["nim4_streams"]) == 0
    assert float(values["nim4_chunks_total"]) > 0
    assert float(values["nim4_final_seconds_count"]) >= 0
    for part in ("network", "host", "device"):
        assert float(values[f'nim4_processor_seconds_total{{part="{part}"}}']) > 0
    asked = (
        clients.fetch(server, "/nowhere/1")[0],
        clients.fetch(server, "/nowhere/2")[0],
    )
    assert asked == (404, 404)
    assert "/nowhere" not in clients.fetch(server, "/metrics")[2].decode()


@pytest.mark.parametrize(
    ("extensions", "status", "kinds"),
    [
        ({"websocket.http.response": {}}, 401, ["websocket.http.response.start"]),
        ({}, 401, ["websocket.close"]),
        (None, 401, ["websocket.close"]),
    ],
)
def test_a_websocket_is_refused_as_its_server_can(serve, extensions, status, kinds):
    """ASGI servers without answers to a handshake are asked to close it."""
    sent = []

    async def receive():
        return {"type": "websocket.connect"}

    async def send(message):
        sent.append(message)

    scope = {"type": "websocket", "path": "/v1/stream", "headers": []}
    scope |= {"query_string": b"", "extensions": extensions}
    with serve(keys=f"acme:{KEY}") as own:
        asyncio.run(own.config.app(scope, receive, send))
    assert [message["type"] for message in sent][:1] == kinds
    assert sent[0].get("status", status) == status
    assert sent[0].get("reason", "invalid_api_key") == "invalid_api_key"


def test_a_tenant_has_its_own_limits(clients, serve):
    tenant = Tenant(name="acme", keys=(KEY,), streams=1, requests_a_minute=3)
    with serve(keys=f"other:{KEY[::-1]}x") as own:
        own.state.keys = Keys([tenant])
        with clients.open_stream(own, f"?token={KEY}"):
            with (
                pytest.raises(InvalidStatus) as refusal,
                clients.open_stream(own, f"?token={KEY}"),
            ):
                pass
            assert refusal.value.response.status_code == 429
            codes = set()
            for _ in range(3):
                with (
                    pytest.raises(InvalidStatus) as refusal,
                    clients.open_stream(own, f"?token={KEY}"),
                ):
                    pass
                assert refusal.value.response.status_code == 429
                codes.add(json.loads(refusal.value.response.body)["error"]["code"])
            assert codes == {"too_many_streams", "rate_limit_exceeded"}
