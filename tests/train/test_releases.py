"""Releases: never seen half, lost ones passed over, decisions repeated on resume."""

import dataclasses
import json
import multiprocessing
import threading

import jax
import numpy as np
import pytest

from nim4_jax.train.releases import divergence as watching
from nim4_jax.train.releases import store
from nim4_jax.train.releases.divergence import Watcher
from nim4_jax.train.releases.store import Release
from nim4_jax.weights import snapshot

META = {"stage": "stage1", "text": "好"}


def make_params(value: float, size: int = 4):
    """An encoder all of whose numbers are the same."""
    kernel = np.full((size, size), value, np.float32)
    return {"encoder": {"kernel": kernel, "bias": np.full(size, value, np.float32)}}


def get_value(params) -> float:
    """The number of `make_params`; all must be it."""
    values = {float(x) for leaf in jax.tree.leaves(params) for x in np.ravel(leaf)}
    assert len(values) == 1
    return values.pop()


def publish(folder, step: int, final: bool = False, size: int = 4) -> Release:
    """Publish the encoder whose numbers are the step."""
    params = make_params(step, size)
    facts = {"cka": 0.9, "final": final, "meta": META}
    return store.publish(str(folder), params, step=step, **facts)


def make_release(step: int, final: bool = False) -> Release:
    """An entry of an index without its file."""
    return Release(f"encoder-{step}", step, 0.5, "0" * 64, final)


def test_what_was_published_is_read_back(tmp_path):
    """Entries by step, parameters to the bit, facts in the header."""
    folder = tmp_path / "deep" / "releases"
    assert store.read_index(str(folder)) == ()
    first, last = publish(folder, 500), publish(folder, 900, final=True)
    assert store.read_index(str(folder)) == (first, last)
    assert (first.step, first.cka, first.final) == (500, 0.9, False)
    assert last.final and first.checksum != last.checksum
    loaded = store.load(str(folder), first)
    jax.tree.map(np.testing.assert_array_equal, loaded, make_params(500))
    assert snapshot.read(str(folder / first.name))[1] == META
    names = {path.name for path in folder.iterdir()}
    assert names == {first.name, last.name, store.INDEX}


def test_an_object_store_works_alike(object_store):
    """gs:// through epath."""
    folder = "gs://bucket/runs/releases"
    assert store.read_index(folder) == ()
    first = publish(folder, 1)
    assert store.read_index(folder) == (first,)
    assert get_value(store.load(folder, first)) == 1
    last = publish(folder, 2, final=True)
    assert store.read_index(folder) == (first, last)
    object_store.rm(f"{folder}/{first.name}")
    with pytest.raises(ValueError, match="deleted or is out of reach"):
        store.load(folder, first)


def read_until_final(folder: str) -> int:
    """Poll as a follower does; whatever is listed must be whole. Number of looks."""
    looks, seen = 0, ()
    while not (seen and seen[-1].final):
        now = store.read_index(folder)
        assert now[: len(seen)] == seen
        for release in now[len(seen) :]:
            assert get_value(store.load(folder, release)) == release.step
        looks, seen = looks + 1, now
    return looks


def publish_many(folder: str, count: int) -> None:
    """Encoders large enough that a write is not over at once."""
    for step in range(1, count + 1):
        publish(folder, step, final=step == count, size=500)


def test_a_polling_reader_never_sees_half(tmp_path):
    """Another thread publishes 20 releases meanwhile."""
    writer = threading.Thread(target=publish_many, args=(str(tmp_path), 20))
    writer.start()
    assert read_until_final(str(tmp_path)) > 1
    writer.join()
    assert len(store.read_index(str(tmp_path))) == 20


def test_another_process_that_is_killed_leaves_nothing_half(tmp_path):
    """SIGKILL at any time: all that is listed is whole, and publishing goes on."""
    folder = str(tmp_path)
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=publish_many, args=(folder, 10**6))
    process.start()
    store.wait_first(folder, limit_seconds=60, poll_seconds=0.05)
    process.kill()
    process.join()
    listed = store.read_index(folder)
    for release in listed:
        store.load(folder, release)
    last = publish(folder, 10**6 + 1, final=True)
    assert store.read_index(folder) == (*listed, last)
    assert not list(tmp_path.glob("incoming*"))


@pytest.mark.parametrize("torn", ["index.json.tmp", "incoming.safetensors.tmp"])
def test_a_crash_between_the_two_writes_changes_nothing(tmp_path, torn):
    """The snapshot is there and the index is not: the same call mends it."""
    first = publish(tmp_path, 1)
    index = (tmp_path / store.INDEX).read_bytes()
    second = publish(tmp_path, 2)
    (tmp_path / store.INDEX).write_bytes(index)
    (tmp_path / torn).write_bytes(b'{"format": 1, "rel')
    assert store.read_index(str(tmp_path)) == (first,)
    assert publish(tmp_path, 2) == second
    assert store.read_index(str(tmp_path)) == (first, second)
    assert not (tmp_path / torn).exists()


def test_publishing_again_changes_nothing(tmp_path):
    """A resumed run comes by the same steps with the same bits."""
    listed = [publish(tmp_path, step, final=step == 3) for step in (1, 2, 3)]
    index = (tmp_path / store.INDEX).read_bytes()
    assert [publish(tmp_path, step) for step in (1, 2)] == listed[:2]
    assert (tmp_path / store.INDEX).read_bytes() == index


def test_a_run_that_became_another_takes_its_future_back(tmp_path):
    """Other bits at step 2: 2 and 3 of before are no longer listed, but still there."""
    first, old, later = (publish(tmp_path, step) for step in (1, 2, 3))
    new = store.publish(
        str(tmp_path), make_params(-2.0), step=2, cka=None, final=False, meta=META
    )
    assert store.read_index(str(tmp_path)) == (first, new)
    for release in (old, later):
        assert get_value(store.load(str(tmp_path), release)) == release.step


def test_a_longer_run_clears_the_final_mark(tmp_path):
    """Only the last release of an index is final."""
    publish(tmp_path, 1, final=True)
    publish(tmp_path, 2)
    publish(tmp_path, 3, final=True)
    marks = [release.final for release in store.read_index(str(tmp_path))]
    assert marks == [False, False, True]


def test_lost_releases_are_named(tmp_path):
    """One flipped byte, a cut, another's file under the name, none."""
    release = publish(tmp_path, 1)
    path = tmp_path / release.name
    whole = path.read_bytes()
    for content in (whole[:-1] + bytes([whole[-1] ^ 1]), whole[:-7], b""):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"{release.name} is corrupt: .*expected"):
            store.load(str(tmp_path), release)
    path.unlink()
    with pytest.raises(ValueError, match=rf"{release.name} was deleted or is out"):
        store.load(str(tmp_path), release)


def make_index(*entries: tuple[int, bool]) -> str:
    """An index of (step, final)."""
    listed = [dataclasses.asdict(make_release(*entry)) for entry in entries]
    return json.dumps({"format": 1, "releases": listed})


FOREIGN = ("", "{", "[]", '{"format": 2, "releases": []}', '{"format": 1}')
MIXED = [((2, False), (1, False)), ((1, False), (1, False)), ((1, True), (2, False))]


@pytest.mark.parametrize("content", [*FOREIGN, *(make_index(*e) for e in MIXED)])
def test_a_foreign_index_is_an_error_with_the_cure(tmp_path, content):
    """Also steps that do not rise; the writer leaves it as it is."""
    path = tmp_path / store.INDEX
    path.write_text(content)
    with pytest.raises(ValueError, match=r"is no index of encoder releases .*folder"):
        store.read_index(str(tmp_path))
    with pytest.raises(ValueError, match="is no index of encoder releases"):
        publish(tmp_path, 1)
    assert path.read_text() == content


def test_a_follower_may_be_there_first(tmp_path, log):
    """It polls, says how long it has waited, and gets the first release."""
    pauses = []

    def sleep(seconds):
        pauses.append(seconds)
        if len(pauses) == 3:
            publish(tmp_path / "later", 7)
            publish(tmp_path / "later", 8)

    got = store.wait_first(str(tmp_path / "later"), 100.0, 20.0, sleep)
    assert (got.step, pauses) == (7, [20.0] * 3)
    assert len(log) == 3 and log[2].endswith("later yet: waited 40 s")
    assert store.wait_first(str(tmp_path / "later"), 0.0, 20.0, sleep) == got
    assert len(pauses) == 3


def test_waiting_has_an_end(tmp_path):
    """The error names the folder, the time and the cure."""
    pauses = []
    with pytest.raises(TimeoutError, match=r"none after 50 s; start stage 1"):
        store.wait_first(str(tmp_path / "none"), 50.0, 20.0, pauses.append)
    assert pauses == [20.0, 20.0, 10.0]
    with pytest.raises(ValueError, match="more than 0 seconds"):
        store.wait_first(str(tmp_path), 50.0, 0.0, pauses.append)


def test_the_end_of_stage1_is_waited_for(tmp_path, log):
    """A broken index is no end, a release that is not final neither."""
    pauses = []

    def sleep(seconds):
        pauses.append(seconds)
        if len(pauses) == 2:
            publish(tmp_path, 7)
        if len(pauses) == 3:
            publish(tmp_path, 8, final=True)

    index = tmp_path / store.INDEX
    index.write_text("{")
    with pytest.raises(TimeoutError, match=r"no final encoder release .* after 5 s"):
        store.wait_final(str(tmp_path), 5.0, 5.0, pauses.append)
    index.unlink()
    pauses.clear()
    got = store.wait_final(str(tmp_path), 100.0, 20.0, sleep)
    assert (got.step, pauses) == (8, [20.0] * 3)
    assert "is no index of encoder releases" in log[0]
    assert log[-1].endswith("yet: waited 40 s")


def run_stage1(folder, similarity, state=None, first=1, steps=60, stop=60):
    """Watch from `first` to `stop`; CKA of encoders a, b is similarity(a, b)."""
    watcher = Watcher(from_step=20, every=10)
    shelf = watching.Shelf(str(folder), META)
    state = state or watcher.start()
    for step in range(first, stop + 1):
        facts = {"step": step, "last": step == steps}
        facts["compare"] = lambda old, new=step: similarity(int(get_value(old)), new)
        params, state = make_params(step), json.loads(json.dumps(state))
        state = watching.watch(shelf, watcher, state, params, **facts)
    return state


def drift(old: int, new: int) -> float:
    """Fifteen steps apart, encoders are others; 60 is much like any."""
    return 0.99 if new - old < 15 or new == 60 else 0.9


def test_releases_come_where_the_encoder_has_become_another(tmp_path):
    """Reference at 20; 30 is like it, 40 is not; 50 is like 40; 60 is the last."""
    run_stage1(tmp_path, drift)
    listed = store.read_index(str(tmp_path))
    facts = [(release.step, release.cka, release.final) for release in listed]
    assert facts == [(40, 0.9, False), (60, 0.99, True)]


@pytest.mark.parametrize("saved", [5, 20, 25, 40, 45, 59])
def test_stage1_killed_and_resumed_publishes_the_same(tmp_path, saved):
    """It ran on past its checkpoint, even to the end; the index is the same file."""
    run_stage1(tmp_path / "whole", drift)
    state = run_stage1(tmp_path / "parts", drift, stop=saved)
    for _ in range(2):
        run_stage1(tmp_path / "parts", drift, state, first=saved)
    whole, parts = (tmp_path / name / store.INDEX for name in ("whole", "parts"))
    assert whole.read_bytes() == parts.read_bytes()


def test_a_short_run_publishes_its_end(tmp_path):
    """Over before the first reference; what was decided is not decided again."""
    state = run_stage1(tmp_path, drift, steps=7, stop=7)
    (only,) = store.read_index(str(tmp_path))
    assert (only.step, only.cka, only.final) == (7, None, True)
    assert run_stage1(tmp_path, pytest.fail, state, 7, steps=7, stop=7) == state


def test_a_lost_reference_is_taken_anew(tmp_path, log):
    """The live encoder of step 40 becomes the reference, and nothing is published."""
    state = run_stage1(tmp_path, drift, stop=35)
    (tmp_path / state["reference"]["name"]).unlink()
    state = run_stage1(tmp_path, drift, state, first=36, stop=50)
    assert any("cannot be used" in line and "deleted" in line for line in log)
    assert store.read_index(str(tmp_path)) == ()
    assert state["reference"]["step"] == 40


def test_a_broken_comparison_is_not_hidden(tmp_path):
    """Errors of the comparison come through, and NaN is no CKA."""

    def fail(old, new):
        raise ValueError("the second encoder gives the same values")

    with pytest.raises(ValueError, match="same values"):
        run_stage1(tmp_path / "a", fail)
    with pytest.raises(ValueError, match="CKA is nan"):
        run_stage1(tmp_path / "b", lambda old, new: float("nan"))


@pytest.mark.parametrize(
    "name, value", [("every", 0), ("from_step", -1), ("threshold", 1.5)]
)
def test_settings_that_cannot_work_are_refused(name, value):
    """They are shown with what was expected."""
    good = {field.name: 1 for field in dataclasses.fields(Watcher)}
    with pytest.raises(ValueError, match=rf"{name}={value}.* cannot .*: expected"):
        Watcher(**{**good, name: value})
