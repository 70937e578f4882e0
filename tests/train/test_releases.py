"""Releases: never seen half, lost ones passed over, decisions repeated on resume."""

import dataclasses
import itertools
import json
import multiprocessing
import threading

import fsspec
import jax
import numpy as np
import pytest
from absl import logging
from etils.epath import backend
from hypothesis import given
from hypothesis import strategies as st

from nim4_jax.train import releases
from nim4_jax.train.releases import Follower, Release, Watcher
from nim4_jax.weights import snapshot

META = {"stage": "stage1", "text": "好"}
FOLLOWER = Follower(min_steps=10, last_steps=25, every=5)


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
    return releases.publish(str(folder), params, step=step, **facts)


def make_release(step: int, final: bool = False) -> Release:
    """An entry of an index without its file."""
    return Release(f"encoder-{step}", step, 0.5, "0" * 64, final)


@pytest.fixture
def log(monkeypatch) -> list[str]:
    """What is logged, in order."""
    lines: list[str] = []

    def note(message, *args):
        lines.append(message % args)

    monkeypatch.setattr(logging, "info", note)
    monkeypatch.setattr(logging, "warning", note)
    return lines


def test_what_was_published_is_read_back(tmp_path):
    """Entries by step, parameters to the bit, facts in the header."""
    folder = tmp_path / "deep" / "releases"
    assert releases.read_index(str(folder)) == ()
    first, last = publish(folder, 500), publish(folder, 900, final=True)
    assert releases.read_index(str(folder)) == (first, last)
    assert (first.step, first.cka, first.final) == (500, 0.9, False)
    assert last.final and first.checksum != last.checksum
    loaded = releases.load(str(folder), first)
    jax.tree.map(np.testing.assert_array_equal, loaded, make_params(500))
    assert snapshot.read(str(folder / first.name))[1] == META
    names = {path.name for path in folder.iterdir()}
    assert names == {first.name, last.name, releases.INDEX}


def test_an_object_store_works_alike(monkeypatch):
    """gs:// through epath, on a store that has neither folders nor renames."""
    memory = fsspec.filesystem("memory", skip_instance_cache=True)

    def choose(_, path):
        remote = str(path).startswith("gs://")
        return memory if remote else fsspec.filesystem("file")

    monkeypatch.setattr(backend._FileSystemSpecBackend, "fs", choose)
    folder = "gs://bucket/runs/releases"
    assert releases.read_index(folder) == ()
    first = publish(folder, 1)
    assert releases.read_index(folder) == (first,)
    assert get_value(releases.load(folder, first)) == 1
    last = publish(folder, 2, final=True)
    assert releases.read_index(folder) == (first, last)
    memory.rm(f"{folder}/{first.name}")
    with pytest.raises(ValueError, match="deleted or is out of reach"):
        releases.load(folder, first)


def read_until_final(folder: str) -> int:
    """Poll as a follower does; whatever is listed must be whole. Number of looks."""
    looks, seen = 0, ()
    while not (seen and seen[-1].final):
        now = releases.read_index(folder)
        assert now[: len(seen)] == seen
        for release in now[len(seen) :]:
            assert get_value(releases.load(folder, release)) == release.step
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
    assert len(releases.read_index(str(tmp_path))) == 20


def test_another_process_that_is_killed_leaves_nothing_half(tmp_path):
    """SIGKILL at any time: all that is listed is whole, and publishing goes on."""
    folder = str(tmp_path)
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=publish_many, args=(folder, 10**6))
    process.start()
    releases.wait_first(folder, limit_seconds=60, poll_seconds=0.05)
    process.kill()
    process.join()
    listed = releases.read_index(folder)
    for release in listed:
        releases.load(folder, release)
    last = publish(folder, 10**6 + 1, final=True)
    assert releases.read_index(folder) == (*listed, last)
    assert not list(tmp_path.glob("incoming*"))


@pytest.mark.parametrize("torn", ["index.json.tmp", "incoming.safetensors.tmp"])
def test_a_crash_between_the_two_writes_changes_nothing(tmp_path, torn):
    """The snapshot is there and the index is not: the same call mends it."""
    first = publish(tmp_path, 1)
    index = (tmp_path / releases.INDEX).read_bytes()
    second = publish(tmp_path, 2)
    (tmp_path / releases.INDEX).write_bytes(index)
    (tmp_path / torn).write_bytes(b'{"format": 1, "rel')
    assert releases.read_index(str(tmp_path)) == (first,)
    assert publish(tmp_path, 2) == second
    assert releases.read_index(str(tmp_path)) == (first, second)
    assert not (tmp_path / torn).exists()


def test_publishing_again_changes_nothing(tmp_path):
    """A resumed run comes by the same steps with the same bits."""
    listed = [publish(tmp_path, step, final=step == 3) for step in (1, 2, 3)]
    index = (tmp_path / releases.INDEX).read_bytes()
    assert [publish(tmp_path, step) for step in (1, 2)] == listed[:2]
    assert (tmp_path / releases.INDEX).read_bytes() == index


def test_a_run_that_became_another_takes_its_future_back(tmp_path):
    """Other bits at step 2: 2 and 3 of before are no longer listed, but still there."""
    first, old, later = (publish(tmp_path, step) for step in (1, 2, 3))
    new = releases.publish(
        str(tmp_path), make_params(-2.0), step=2, cka=None, final=False, meta=META
    )
    assert releases.read_index(str(tmp_path)) == (first, new)
    for release in (old, later):
        assert get_value(releases.load(str(tmp_path), release)) == release.step


def test_a_longer_run_clears_the_final_mark(tmp_path):
    """Only the last release of an index is final."""
    publish(tmp_path, 1, final=True)
    publish(tmp_path, 2)
    publish(tmp_path, 3, final=True)
    marks = [release.final for release in releases.read_index(str(tmp_path))]
    assert marks == [False, False, True]


def test_lost_releases_are_named(tmp_path):
    """One flipped byte, a cut, another's file under the name, none."""
    release = publish(tmp_path, 1)
    path = tmp_path / release.name
    whole = path.read_bytes()
    for content in (whole[:-1] + bytes([whole[-1] ^ 1]), whole[:-7], b""):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"{release.name} is corrupt: .*expected"):
            releases.load(str(tmp_path), release)
    path.unlink()
    with pytest.raises(ValueError, match=rf"{release.name} was deleted or is out"):
        releases.load(str(tmp_path), release)


def make_index(*entries: tuple[int, bool]) -> str:
    """An index of (step, final)."""
    listed = [dataclasses.asdict(make_release(*entry)) for entry in entries]
    return json.dumps({"format": 1, "releases": listed})


FOREIGN = ("", "{", "[]", '{"format": 2, "releases": []}', '{"format": 1}')
MIXED = [((2, False), (1, False)), ((1, False), (1, False)), ((1, True), (2, False))]


@pytest.mark.parametrize("content", [*FOREIGN, *(make_index(*e) for e in MIXED)])
def test_a_foreign_index_is_an_error_with_the_cure(tmp_path, content):
    """Also steps that do not rise; the writer leaves it as it is."""
    path = tmp_path / releases.INDEX
    path.write_text(content)
    with pytest.raises(ValueError, match=r"is no index of encoder releases .*folder"):
        releases.read_index(str(tmp_path))
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

    got = releases.wait_first(str(tmp_path / "later"), 100.0, 20.0, sleep)
    assert (got.step, pauses) == (7, [20.0] * 3)
    assert len(log) == 3 and log[2].endswith("later yet: waited 40 s")
    assert releases.wait_first(str(tmp_path / "later"), 0.0, 20.0, sleep) == got
    assert len(pauses) == 3


def test_waiting_has_an_end(tmp_path):
    """The error names the folder, the time and the cure."""
    pauses = []
    with pytest.raises(TimeoutError, match=r"none after 50 s; start stage 1"):
        releases.wait_first(str(tmp_path / "none"), 50.0, 20.0, pauses.append)
    assert pauses == [20.0, 20.0, 10.0]
    with pytest.raises(ValueError, match="more than 0 seconds"):
        releases.wait_first(str(tmp_path), 50.0, 0.0, pauses.append)


def run_stage1(folder, similarity, state=None, first=1, steps=60, stop=60):
    """Watch from `first` to `stop`; CKA of encoders a, b is similarity(a, b)."""
    watcher = Watcher(from_step=20, every=10)
    state = state or watcher.start()
    for step in range(first, stop + 1):
        facts = {"step": step, "last": step == steps, "meta": META}
        facts["compare"] = lambda old, new=step: similarity(int(get_value(old)), new)
        params, state = make_params(step), json.loads(json.dumps(state))
        state = releases.watch(str(folder), watcher, state, params, **facts)
    return state


def drift(old: int, new: int) -> float:
    """Fifteen steps apart, encoders are others; 60 is much like any."""
    return 0.99 if new - old < 15 or new == 60 else 0.9


def test_releases_come_where_the_encoder_has_become_another(tmp_path):
    """Reference at 20; 30 is like it, 40 is not; 50 is like 40; 60 is the last."""
    run_stage1(tmp_path, drift)
    listed = releases.read_index(str(tmp_path))
    facts = [(release.step, release.cka, release.final) for release in listed]
    assert facts == [(40, 0.9, False), (60, 0.99, True)]


@pytest.mark.parametrize("saved", [5, 20, 25, 40, 45, 59])
def test_stage1_killed_and_resumed_publishes_the_same(tmp_path, saved):
    """It ran on past its checkpoint, even to the end; the index is the same file."""
    run_stage1(tmp_path / "whole", drift)
    state = run_stage1(tmp_path / "parts", drift, stop=saved)
    for _ in range(2):
        run_stage1(tmp_path / "parts", drift, state, first=saved)
    whole, parts = (tmp_path / name / releases.INDEX for name in ("whole", "parts"))
    assert whole.read_bytes() == parts.read_bytes()


def test_a_short_run_publishes_its_end(tmp_path):
    """Over before the first reference; what was decided is not decided again."""
    state = run_stage1(tmp_path, drift, steps=7, stop=7)
    (only,) = releases.read_index(str(tmp_path))
    assert (only.step, only.cka, only.final) == (7, None, True)
    assert run_stage1(tmp_path, pytest.fail, state, 7, steps=7, stop=7) == state


def test_a_lost_reference_is_taken_anew(tmp_path, log):
    """The live encoder of step 40 becomes the reference, and nothing is published."""
    state = run_stage1(tmp_path, drift, stop=35)
    (tmp_path / state["reference"]["name"]).unlink()
    state = run_stage1(tmp_path, drift, state, first=36, stop=50)
    assert any("cannot be used" in line and "deleted" in line for line in log)
    assert releases.read_index(str(tmp_path)) == ()
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
    "kind, name, value",
    [(Watcher, "every", 0), (Watcher, "threshold", 1.5), (Follower, "min_steps", 0)],
)
def test_settings_that_cannot_work_are_refused(kind, name, value):
    """They are shown with what was expected."""
    good = {field.name: 1 for field in dataclasses.fields(kind)}
    with pytest.raises(ValueError, match=rf"{name}={value}.* cannot .*: expected"):
        kind(**{**good, name: value})


def run_stage3(folder, events=None, state=None, first=0, follower=FOLLOWER):
    """Follow until finished; state, encoder in use at each step, step reached.

    events: step → what happens there.
    """
    state, used = state or follower.start(), {}
    for step in range(first, 200):
        (events or {}).get(step, lambda: None)()
        if follower.is_finished(state, step):
            return state, used, step
        before = state
        state, params = releases.follow(str(folder), follower, before, step)
        assert json.loads(json.dumps(state)) == state
        assert (params is not None) == (state["history"] != before["history"])
        now = releases.present(state)
        assert now is not None and (params is None or get_value(params) == now.step)
        used[step] = now.step
    return state, used, 200


def list_swaps(state) -> list[tuple[int, int]]:
    """(step of the follower, step of the encoder) of its history."""
    return [(s["step"], s["release"]["step"]) for s in state["history"]]


def test_encoders_are_swapped_in_turn(tmp_path):
    """Each has its least number of steps, the final one its last segment."""
    events = {
        0: lambda: publish(tmp_path, 100),
        3: lambda: publish(tmp_path, 200),  # taken at 10: 100 had its ten steps
        21: lambda: publish(tmp_path, 300),  # taken at 25, the next multiple of five
        26: lambda: publish(tmp_path, 400),
        27: lambda: publish(tmp_path, 500, final=True),
    }
    state, used, end = run_stage3(tmp_path, events)
    assert list_swaps(state) == [(0, 100), (10, 200), (25, 300), (35, 400), (45, 500)]
    assert (end, used[44], used[45], state["last_from"]) == (70, 400, 500, 45)


def test_a_late_follower_may_pass_over_encoders(tmp_path):
    """In turn by default; only the newest if asked."""
    for step in (100, 200, 300):
        publish(tmp_path, step, final=step == 300)
    state, _, end = run_stage3(tmp_path)
    assert (list_swaps(state), end) == ([(0, 100), (10, 200), (20, 300)], 45)
    newest = dataclasses.replace(FOLLOWER, newest=True)
    state, _, end = run_stage3(tmp_path, follower=newest)
    assert (list_swaps(state), end) == ([(0, 300)], 25)


@pytest.mark.parametrize("newest", [False, True])
def test_lost_releases_are_passed_over(tmp_path, log, newest):
    """200 was deleted and 300 is corrupt: 100 stays, and the log says so."""
    first, second, third = (publish(tmp_path, step) for step in (100, 200, 300))
    (tmp_path / second.name).unlink()
    (tmp_path / third.name).write_bytes(b"torn")
    state = FOLLOWER.take(FOLLOWER.start(), first, step=0)
    follower = dataclasses.replace(FOLLOWER, newest=newest)
    events = {17: lambda: publish(tmp_path, 400, final=True)}
    state, used, end = run_stage3(tmp_path, events, state, 1, follower=follower)
    assert (list_swaps(state), used[19], end) == ([(0, 100), (20, 400)], 100, 45)
    said = "\n".join(log)
    assert f"{second.name} was deleted" in said and f"{third.name} is corrupt" in said
    assert "step 10 goes on with encoder release encoder-000000100" in said


def test_a_lost_final_release_ends_the_run_on_the_old_one(tmp_path):
    """The last segment counts from where it was missed; found again, it is taken."""
    publish(tmp_path, 100)
    path = tmp_path / publish(tmp_path, 200, final=True).name
    whole = path.read_bytes()
    path.unlink()
    state, _, end = run_stage3(tmp_path)
    assert (list_swaps(state), state["last_from"], end) == ([(0, 100)], 10, 35)
    events = {18: lambda: path.write_bytes(whole)}
    state, _, end = run_stage3(tmp_path, events)
    assert (list_swaps(state), end) == ([(0, 100), (20, 200)], 45)


def test_the_encoder_in_use_may_turn_out_to_be_the_final_one(tmp_path):
    """Stage 1 ended where it had just published."""
    publish(tmp_path, 100)
    events = {12: lambda: publish(tmp_path, 100, final=True)}
    state, _, end = run_stage3(tmp_path, events)
    assert (list_swaps(state), end) == ([(0, 100)], 40)


def test_a_folder_that_vanishes_stops_nothing(tmp_path, log):
    """Index gone, then garbage, then good again."""
    publish(tmp_path, 100)
    index = tmp_path / releases.INDEX
    events = {
        1: index.unlink,
        12: lambda: index.write_text("{"),
        17: index.unlink,
        18: lambda: publish(tmp_path, 200, final=True),
    }
    state, _, _ = run_stage3(tmp_path, events)
    assert list_swaps(state) == [(0, 100), (20, 200)]
    assert sum("goes on with encoder release" in line for line in log) == 2
    assert any("is no index of encoder releases" in line for line in log)


def test_no_encoder_at_all_is_an_error_with_the_cure(tmp_path):
    """There is no old one to go on with."""
    with pytest.raises(ValueError, match=r"none of the 0 encoder releases .*wait"):
        releases.follow(str(tmp_path), FOLLOWER, FOLLOWER.start(), 0)
    (tmp_path / publish(tmp_path, 1).name).unlink()
    with pytest.raises(ValueError, match=r"none of the 1 encoder releases"):
        releases.follow(str(tmp_path), FOLLOWER, FOLLOWER.start(), 0)


@st.composite
def schedules(draw):
    """(step of the follower, release) by which an index grows; the last is final."""
    times = sorted(draw(st.lists(st.integers(1, 60), max_size=6)))
    entries = [make_release(at + 2, at == len(times) - 1) for at in range(len(times))]
    return [(0, make_release(1)), *zip(times, entries)]


FOLLOWERS = st.builds(
    Follower, st.integers(1, 15), st.integers(1, 20), st.integers(1, 8), st.booleans()
)


def simulate(follower, schedule, state, first, stop, now=0):
    """States by step where every release can be read; `now`: the index is later."""
    states = {}
    for step in range(first, stop + 1):
        if follower.is_finished(state, step):
            break
        if follower.is_due(state, step):
            index = tuple(release for at, release in schedule if at <= max(step, now))
            later = follower.rank(state, index)
            state = (
                follower.take(state, later[0], step)
                if later
                else follower.stay(state, index, step)
            )
        states[step] = state
    return states


@given(FOLLOWERS, schedules())
def test_laws_of_following(follower, schedule):
    """Least steps on each encoder, rising releases, and an end after the final one."""
    states = simulate(follower, schedule, follower.start(), 0, 400)
    state = states[max(states)]
    steps, encoders = zip(*list_swaps(state))
    assert all(b - a >= follower.min_steps for a, b in itertools.pairwise(steps))
    assert all(step % follower.every == 0 for step in steps)
    assert list(encoders) == sorted(set(encoders))
    published = {release.step: time for time, release in schedule}
    assert all(published[e] <= step for step, e in zip(steps, encoders))
    if not follower.newest:
        assert list(encoders) == list(range(1, len(encoders) + 1))
    if schedule[-1][1].final:
        assert encoders[-1] == schedule[-1][1].step
        last = state["last_from"]
        assert last == steps[-1]
        assert max(states) == last + follower.last_steps - 1


@given(FOLLOWERS, schedules(), st.integers(0, 80), st.integers(1, 30))
def test_a_resumed_follower_repeats_its_decisions(follower, schedule, killed, ahead):
    """Saved at each decision, killed anywhere, resumed when the index offers more."""
    whole = simulate(follower, schedule, follower.start(), 0, 100)
    killed = min(killed, max(whole))
    saved = killed - killed % follower.every
    state = json.loads(json.dumps(whole[saved]))
    again = simulate(follower, schedule, state, saved, killed, now=killed + ahead)
    assert again == {step: whole[step] for step in range(saved, killed + 1)}
