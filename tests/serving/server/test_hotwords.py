"""Lists of names that clients keep on the server."""

import pytest

NAMES = ["perth", "turn on", "anna"]
KEY, OTHER = "k" * 24, "o" * 24


@pytest.fixture(scope="module")
def kept(serve, tmp_path_factory):
    """A server that keeps its lists."""
    with serve(hotwords_dir=str(tmp_path_factory.mktemp("lists"))) as started:
        yield started


def test_a_list_is_made_changed_and_removed(clients, kept):
    """Each step is a version; what is sent is what is there."""

    def read(name):
        told = clients.ask(kept, "GET", f"/v1/hotwords/{name}/names")[2]
        return {own["text"]: own["weight"] for own in told["data"]}

    status, etag, told = clients.ask(
        kept, "PUT", "/v1/hotwords/places", {"names": NAMES}
    )
    assert (status, told["version"], told["id"]) == (201, 1, "places")
    assert etag == f'"{told["etag"]}"' and told["statistics"]["names"] == 3
    assert read("places") == dict.fromkeys(NAMES, 1.0)
    status, etag, told = clients.ask(
        kept,
        "PATCH",
        "/v1/hotwords/places",
        {"add": [{"text": "NIO House", "weight": 2}, "anna"], "remove": ["perth", "x"]},
        if_match=etag,
    )
    assert (status, told["version"]) == (200, 2)
    assert read("places") == {"turn on": 1.0, "anna": 1.0, "NIO House": 2.0}
    change = told["change"]
    assert (change["added"], change["removed"], change["unknown"]) == (2, 1, 1)
    shown = clients.ask(kept, "GET", "/v1/hotwords/places")
    assert shown == (200, etag, told)
    listed = clients.ask(kept, "GET", "/v1/hotwords")[2]["data"]
    assert listed == [told]
    lines = "蔚来中心 :2.5\n\nperth\n".encode()
    status, _, told = clients.ask(
        kept, "PUT", "/v1/hotwords/places", lines, kind="text/plain; charset=utf-8"
    )
    assert (status, told["version"]) == (200, 3)
    assert read("places") == {"蔚来中心": 2.5, "perth": 1.0}
    assert clients.ask(kept, "DELETE", "/v1/hotwords/places")[0] == 200
    for method in ("GET", "DELETE"):
        status, _, told = clients.ask(kept, method, "/v1/hotwords/places")
        assert (status, told["error"]["code"]) == (404, "hotwords_not_found")
