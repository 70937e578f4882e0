"""Lists of names that clients keep on the server."""

import concurrent.futures
import contextlib
import errno
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from nim4_jax import whole_file
from nim4_jax.retrieval import names
from nim4_jax.serving import hotword_build
from nim4_jax.serving.server import hotword_builder, hotword_lists
from nim4_jax.serving.server.auth import Keys, Tenant
from nim4_jax.serving.server.hotword_builder import Job
from nim4_jax.serving.server.hotword_store import HotwordStore
from nim4_jax.serving.server.metrics import Metrics
from nim4_jax.serving.server.worker_process import WorkerProcess

NAMES = ["perth", "turn on", "anna"]
KEY, OTHER = "k" * 24, "o" * 24
PLACES = "/v1/hotwords/places"


class _NoEngine:
    """Lists need none."""

    failure, loaded, ready, streams = None, None, True, ()

    def __init__(self):
        self.metrics = Metrics()

    def start(self):
        """There is nothing to start."""

    stop = start


class _SharedWorker(WorkerProcess):
    """One that goes on behind the end of a server: it takes seconds to start."""

    def close(self):
        """Not yet."""


@pytest.fixture(scope="module")
def start(start_server):
    """Starts a server without a model, which builds lists in one process; a context."""
    shared = _SharedWorker(hotword_builder.__name__, ("8192",), 300.0)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(hotword_lists, "WorkerProcess", lambda *_: shared)
        yield lambda **settings: start_server(
            _NoEngine(), **{"hotword_builders": 1, **settings}
        )
    WorkerProcess.close(shared)


@pytest.fixture(scope="module")
def kept(start):
    with start() as started:
        yield started


def read(clients, server, path=PLACES, **headers):
    """Names of a list, by their weights."""
    told = clients.ask(server, "GET", f"{path}/names", **headers)[2]
    return {own["text"]: own["weight"] for own in told["data"]}


def test_a_list_is_made_changed_and_removed(clients, kept):
    """Each step is a version; what is sent is what is there."""
    status, etag, told = clients.ask(kept, "PUT", PLACES, {"names": NAMES})
    assert (status, told["version"], told["id"]) == (201, 1, "places")
    assert etag == f'"{told["etag"]}"' and told["statistics"]["names"] == 3
    assert read(clients, kept) == dict.fromkeys(NAMES, 1.0)
    add = [{"text": "NIO House", "weight": 2}, "anna"]
    status, etag, told = clients.ask(
        kept, "PATCH", PLACES, {"add": add, "remove": ["perth", "x"]}, if_match=etag
    )
    assert (status, told["version"]) == (200, 2)
    assert read(clients, kept) == {"turn on": 1.0, "anna": 1.0, "NIO House": 2.0}
    change = told["change"]
    assert (change["added"], change["removed"], change["unknown"]) == (2, 1, 1)
    assert clients.ask(kept, "GET", PLACES) == (200, etag, told)
    assert clients.ask(kept, "GET", "/v1/hotwords")[2]["data"] == [told]
    lines = "蔚来中心 :2.5\n\nperth\n".encode()
    kind = "text/plain; charset=utf-8"
    status, _, told = clients.ask(kept, "PUT", PLACES, lines, kind=kind)
    assert (status, told["version"]) == (200, 3)
    assert read(clients, kept) == {"蔚来中心": 2.5, "perth": 1.0}
    assert clients.ask(kept, "DELETE", PLACES)[0] == 200
    for method in ("GET", "DELETE"):
        status, _, told = clients.ask(kept, method, PLACES)
        assert (status, told["error"]["code"]) == (404, "hotwords_not_found")


def test_two_writers_do_not_lose_each_others_changes(clients, kept):
    """By `If-Match`; and without it each change is whole, one after the other."""
    path = "/v1/hotwords/both"
    _, first, _ = clients.ask(kept, "PUT", path, {"names": []}, if_none_match="*")
    assert clients.ask(kept, "PUT", path, {"names": []}, if_none_match="*")[0] == 412
    _, second, _ = clients.ask(kept, "PATCH", path, {"add": ["anna"]}, if_match=first)
    for method, body in (
        ("PUT", {"names": ["perth"]}),
        ("PATCH", {"remove": ["anna"]}),
        ("DELETE", None),
    ):
        status, _, told = clients.ask(kept, method, path, body, if_match=first)
        assert (status, told["error"]["code"]) == (412, "version_mismatch")
        assert told["error"]["param"] == "If-Match"
    words = ["harbour bridge", "winter garden", "silver castle", "golden river"]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        done = pool.map(
            lambda word: clients.ask(kept, "PATCH", path, {"add": [word]}), words
        )
        versions = {told["version"] for _, _, told in done}
    assert versions == {3, 4, 5, 6}
    assert read(clients, kept, path) == dict.fromkeys(["anna", *words], 1.0)
    # A list that was removed and made again is another one.
    assert clients.ask(kept, "DELETE", path, if_match="*")[0] == 200
    clients.ask(kept, "PUT", path, {"names": []})
    clients.ask(kept, "PATCH", path, {"add": ["perth"]})
    assert clients.ask(kept, "DELETE", path, if_match=second)[0] == 412
    assert clients.ask(kept, "DELETE", "/v1/hotwords/none", if_match="*")[0] == 412


def test_a_tenant_sees_its_own_lists_only(clients, start, tmp_path):
    """Those of the settings are everybody's, and nobody can change them."""
    file = tmp_path / "names.txt"
    file.write_text("opera house\n")
    tenants = Tenant(name="acme", keys=(KEY,)), Tenant(name="../x", keys=(OTHER,))
    with start(keys=f"x:{KEY}", hotwords={"firm": str(file)}) as own:
        own.state.keys = Keys(tenants)
        one, other = ({"X-API-Key": key} for key in (KEY, OTHER))
        clients.ask(own, "PUT", PLACES, {"names": ["anna"]}, **one)
        clients.ask(own, "PUT", "/v1/hotwords/secret", {"names": ["anna"]}, **one)
        assert clients.ask(own, "GET", PLACES, **other)[0] == 404
        status, _, told = clients.ask(own, "PUT", PLACES, {"names": NAMES}, **other)
        assert (status, told["version"]) == (201, 1)
        assert read(clients, own, **one) == {"anna": 1.0}
        assert read(clients, own, **other) == dict.fromkeys(NAMES, 1.0)
        for method, path in (
            ("GET", "/v1/hotwords/secret"),
            ("GET", "/v1/hotwords/secret/names"),
            ("DELETE", "/v1/hotwords/secret"),
        ):
            assert clients.ask(own, method, path, **other)[0] == 404
        listed = clients.ask(own, "GET", "/v1/hotwords", **other)[2]["data"]
        assert [(one["id"], one["shared"]) for one in listed] == [
            ("places", False),
            ("firm", True),
        ]
        for method, body in (("DELETE", None), ("PATCH", {"add": ["anna"]})):
            told = clients.ask(own, method, "/v1/hotwords/firm", body, **one)
            assert (told[0], told[2]["error"]["code"]) == (403, "hotwords_read_only")
        assert clients.ask(own, "DELETE", PLACES, **other)[0] == 200
        assert read(clients, own, **one) == {"anna": 1.0}
        store = own.state.lists.store
        folders = [store.find_folder(one.name, "places") for one in tenants]
        assert folders[0].parents[1] == folders[1].parents[1]


LONG = "a" * 257
WRONG = [
    ("PUT", b"{", {}, 400, "invalid_json", "body"),
    ("PUT", b"[]", {}, 400, "invalid_value", "body"),
    ("PUT", b"\xff", {}, 400, "invalid_json", "body"),
    ("PUT", {}, {}, 400, "missing_required_parameter", "names"),
    ("PUT", {"names": "anna"}, {}, 400, "invalid_value", "names"),
    ("PUT", {"names": ["anna", 1]}, {}, 400, "invalid_value", "names.1"),
    ("PUT", {"names": ["anna", LONG]}, {}, 400, "invalid_value", "names.1"),
    ("PUT", {"names": ["\x00\u200b"]}, {}, 400, "invalid_value", "names.0"),
    ("PUT", b'{"names": ["\\ud800"]}', {}, 400, "invalid_json", "body"),
    ("PUT", {"names": [{"text": "a", "weight": 0}]}, {}, 400, "invalid_value", None),
    ("PUT", {"names": [{"text": "a", "x": 0}]}, {}, 400, None, None),
    (
        "PUT",
        {"names": [{"text": "a", "pronunciation": "QQ"}]},
        {},
        400,
        "invalid_value",
        "names.0",
    ),
    ("PUT", {"names": [], "colour": 1}, {}, 400, "unknown_parameter", "colour"),
    ("PUT", b"anna", {"kind": "audio/wav"}, 415, None, "Content-Type"),
    ("PUT", b"\xff\xfe\xfa", {"kind": "text/plain"}, 400, "invalid_value", "names"),
    ("PUT", LONG.encode(), {"kind": "text/plain"}, 400, "invalid_value", "names.0"),
    (
        "PUT",
        b"text,tenant\nanna,other",
        {"kind": "text/csv"},
        400,
        "invalid_value",
        "names.0",
    ),
    (
        "PUT",
        b"text,colour\nanna,red",
        {"kind": "text/csv"},
        400,
        "invalid_value",
        "names",
    ),
    ("PATCH", {"add": [LONG]}, {}, 400, "invalid_value", "add.0"),
    ("PATCH", {"remove": [{}]}, {}, 400, "invalid_value", "remove.0"),
    ("PATCH", {"add": ["a"], "remove": ["a"]}, {}, 400, "invalid_value", "remove"),
    ("PATCH", b"anna", {"kind": "text/plain"}, 415, None, "Content-Type"),
]


def test_every_wrong_body_is_named_and_changes_nothing(clients, kept):
    path = "/v1/hotwords/wrong"
    before = clients.ask(kept, "PUT", path, {"names": NAMES})[1:]
    for method, body, options, status, code, param in WRONG:
        told = clients.ask(kept, method, path, body, **options)
        error = told[2]["error"]
        assert told[0] == status, (body, told)
        assert code in (None, error["code"]), (body, told)
        assert param in (None, error["param"]), (body, told)
        assert "/tmp" not in json.dumps(told[2]) and "nim4-lists" not in str(told)
    assert clients.ask(kept, "GET", path)[1:] == before
    for name in ("Places", "-x", "a" * 65, "%2e%2e", "a%20b", "%00"):
        status, _, told = clients.ask(kept, "PUT", f"/v1/hotwords/{name}", {})
        assert status in (400, 404, 405) and told["error"]["code"]
    for query in ("?start=-1", "?limit=0", "?limit=1001", "?start=x", "?colour=1"):
        status, _, told = clients.ask(kept, "GET", f"{path}/names{query}")
        assert (status, told["error"]["param"]) == (400, query[1:].split("=")[0])
    page = clients.ask(kept, "GET", f"{path}/names?start=1&limit=1")[2]
    assert len(page["data"]) == 1 and page["next"] == 2
    assert not list(kept.state.lists.store.uploads.iterdir())


def test_a_tenants_limits_are_held_before_anything_is_built(clients, start):
    tenant = Tenant(name="acme", keys=(KEY,), lists=1, names_a_list=3, list_mib=1)
    head = {"X-API-Key": KEY}
    with start(keys=f"x:{KEY}") as own:
        own.state.keys = Keys([tenant])
        assert clients.ask(own, "PUT", PLACES, {"names": NAMES}, **head)[0] == 201
        path = "/v1/hotwords/other"
        told = clients.ask(own, "PUT", path, {"names": []}, **head)
        assert (told[0], told[2]["error"]["code"]) == (403, "too_many_lists")
        more = ["winter garden"]
        for method, body in (
            ("PUT", {"names": NAMES + more}),
            ("PATCH", {"add": more}),
        ):
            told = clients.ask(own, method, PLACES, body, **head)
            assert (told[0], told[2]["error"]["code"]) == (413, "too_many_names")
        whole = bytes(1 << 20) + b"x"
        pieces = iter([whole[: 1 << 19]] * 4)  # whose length no header tells
        for body in (whole, pieces):
            kind = {**head, "Content-Type": "text/plain"}
            with contextlib.suppress(OSError):  # it does not read on
                status, _, text = clients.fetch(own, PLACES, kind, body, "PUT")
                assert status == 413
                assert json.loads(text)["error"]["param"] == "names"
        assert read(clients, own, **head) == dict.fromkeys(NAMES, 1.0)


def test_a_restart_has_the_lists_and_a_damaged_one_stops_no_other(
    clients, start, tmp_path, caplog
):
    """It is named in the log, and may be sent again."""
    folder = str(tmp_path / "lists")
    with start(hotwords_dir=folder) as own:
        for name in ("good", "torn", "cut"):
            path = f"/v1/hotwords/{name}"
            clients.ask(own, "PUT", path, {"names": NAMES})
        before = clients.ask(own, "GET", "/v1/hotwords/good")
        with pytest.raises(ValueError, match="belongs to a server that runs"):
            HotwordStore(folder)
    place = tmp_path / "lists" / "anyone"
    array = next((place / "torn").rglob("chance.npy"))
    whole = array.read_bytes()
    array.write_bytes(whole[:-1] + bytes([whole[-1] ^ 0x55]))
    (place / "cut" / "list.json").write_text('{"format": 1')
    # What a process that was killed leaves behind.
    (place / "good" / "2-dead").mkdir()
    (place / "never" / "1-dead").mkdir(parents=True)
    with caplog.at_level(logging.ERROR), start(hotwords_dir=folder) as own:
        listed = clients.ask(own, "GET", "/v1/hotwords")[2]["data"]
        assert [one["id"] for one in listed] == ["good"]
        assert clients.ask(own, "GET", "/v1/hotwords/good") == before
        assert read(clients, own, "/v1/hotwords/good") == dict.fromkeys(NAMES, 1.0)
        told = clients.ask(own, "PUT", "/v1/hotwords/torn", {"names": ["anna"]})
        assert told[0] == 201
    told = [record.getMessage() for record in caplog.records]
    damaged = [json.loads(line) for line in told if "damaged_hotword_list" in line]
    assert [one["damaged_hotword_list"] for one in damaged] == ["cut", "torn"]
    assert len(list((place / "good").iterdir())) == 2
    assert not (place / "never").exists()


def test_a_folder_of_other_things_is_refused_untouched(tmp_path):
    """What counts for nothing in a folder of lists is removed: not in any other."""
    kept = tmp_path / "photos" / "2026" / "a.jpg"
    kept.parent.mkdir(parents=True)
    kept.write_text("dear to somebody")
    with pytest.raises(ValueError, match="holds other things"):
        HotwordStore(str(tmp_path))
    assert kept.read_text() == "dear to somebody"
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_a_full_disk_leaves_the_old_list(clients, kept, monkeypatch, tmp_path):
    """Whether it is full when a worker writes, or at the last moment."""
    path = "/v1/hotwords/full"
    before = clients.ask(kept, "PUT", path, {"names": NAMES})[1:]

    def fail(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device", "/secret")

    with monkeypatch.context() as patched:
        patched.setattr(whole_file, "write_text", fail)
        for method, body in (("PUT", {"names": ["x y z"]}), ("PATCH", {"add": ["b"]})):
            status, _, told = clients.ask(kept, method, path, body)
            assert (status, told["error"]["code"]) == (507, "no_space")
            assert "secret" not in str(told)
    assert clients.ask(kept, "GET", path)[1:] == before
    folder = kept.state.lists.store.find_folder("anyone", "full")
    assert len(list(folder.iterdir())) == 2
    source = tmp_path / "names.txt"
    source.write_text("perth\n")
    job = Job(source=str(source), form="txt", folder=str(tmp_path), out="1-a", most=10)
    with monkeypatch.context() as patched:
        patched.setattr(np, "save", fail)
        told = hotword_builder.answer(job.model_dump_json())
    assert told["error"]["status"] == 507 and "secret" not in str(told)
    assert not (tmp_path / "1-a").exists()


def test_nothing_is_read_or_built_in_the_servers_own_process(
    clients, kept, monkeypatch
):
    """Neither its event loop nor the device's thread waits for a list."""

    def refuse(*_, **__):
        raise AssertionError("in the server")

    monkeypatch.setattr(hotword_build, "pronounce_new", refuse)
    monkeypatch.setattr(names, "read_names", refuse)
    monkeypatch.setattr(hotword_builder, "work", refuse)
    path = "/v1/hotwords/apart"
    assert clients.ask(kept, "PUT", path, b"anna", kind="text/plain")[0] == 201
    assert clients.ask(kept, "PATCH", path, {"add": ["perth"]})[0] == 200


def test_a_worker_that_is_killed_costs_one_request(clients, start_server, monkeypatch):
    """The next one has a new process."""
    monkeypatch.setattr(hotword_lists, "WorkerProcess", WorkerProcess)
    with start_server(_NoEngine(), hotword_builders=1) as own:
        (process,) = own.state.lists._builders
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            asked = pool.submit(clients.ask, own, "PUT", PLACES, {"names": NAMES})
            until = time.monotonic() + 60
            while process._process is None:
                assert time.monotonic() < until
                time.sleep(0.01)
            os.kill(process._process.pid, signal.SIGKILL)
            status, _, told = asked.result()
        assert (status, told["error"]["code"]) == (503, "build_broken_off")
        assert clients.ask(own, "GET", PLACES)[0] == 404
        assert process._start().poll() is None


def test_the_examples_of_the_documentation_work(clients, start, tmp_path):
    """But for the one that sends a recording."""
    text = (Path(__file__).parents[3] / "docs" / "serving.md").read_text()
    section = text.split("## Hotword lists")[1].split("\n## ")[0]
    lines = [line.split("    #")[0].strip() for line in section.splitlines()]
    commands = [
        line for line in lines if line.startswith("curl") and " -F " not in line
    ]
    assert len(commands) == 6
    (tmp_path / "names.txt").write_text("anna\nNIO House :2.5\n")
    with start() as own:
        etag = ""
        for command in commands:
            command = command.replace("localhost:8000", own.address)
            command = re.sub(r'"1-\w+"', f'"{etag}"', command)
            made = subprocess.run(
                f"{command} -s -S -f", shell=True, cwd=tmp_path, capture_output=True
            )
            assert made.returncode == 0, (command, made.stderr)
            told = json.loads(made.stdout)
            etag = etag or told["etag"]


WRITER = """
import sys
from pathlib import Path
from nim4_jax.retrieval.chance import PhonemeBigrams
from nim4_jax.serving import hotword_build
hotword_build.learn_background = PhonemeBigrams.flat
from nim4_jax.serving.server import hotword_builder as builder
from nim4_jax.serving.server.hotword_messages import Stored
from nim4_jax.serving.server.hotword_store import HotwordStore
store, source = HotwordStore(sys.argv[1]), Path(sys.argv[1], "names.txt")
folder = store.find_folder("t", "a")
for version in range(1, 10**6):
    source.write_text("winter garden\\n" * 1 + f"castle {'a' * (version % 90)}\\n")
    job = builder.Job(source=str(source), form="txt", folder=str(folder),
                      out=store.draw_place(version), most=9)
    made = builder.work(job)
    store.commit(Stored(tenant="t", name="a", key="k", version=version, created=0,
                        updated=0, made=made))
    print(version, flush=True)
"""


def test_a_kill_in_the_midst_of_writing_leaves_the_old_list_or_the_new(tmp_path):
    """The version that was told last, or the one after it, whole."""
    folder = str(tmp_path / "lists")
    for number in range(2):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, folder], stdout=subprocess.PIPE, text=True
        )
        told = int(process.stdout.readline())
        time.sleep(0.03 * number)
        process.kill()
        told = int(([str(told), *process.stdout.read().split()])[-1])
        store = HotwordStore(folder)
        ((stored, (base,)),) = store.load()
        store.close()
        assert stored.version in (told, told + 1)
        texts = {base.name(own).text for own in range(len(base))}
        wanted = f"castle {'a' * (stored.version % 90)}".strip()
        assert texts == {"winter garden", wanted}
