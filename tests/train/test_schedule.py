"""Followers take releases in turn, and a resumed one decides as it did."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nim4_jax.train.releases import schedule as following
from nim4_jax.train.releases import store
from nim4_jax.train.releases.schedule import Follower
from nim4_jax.train.releases.store import Release

FOLLOWER = Follower(steps=70, every=5, min_steps=10, last_steps=25)


def publish(folder, step: int, final: bool = False) -> Release:
    """Publish the encoder whose numbers are the step."""
    params = {"encoder": {"bias": np.full(4, step, np.float32)}}
    facts = {"cka": 0.9, "final": final, "meta": {}}
    return store.publish(str(folder), params, step=step, **facts)


def make_release(step: int, final: bool = False) -> Release:
    """An entry of an index without its file."""
    return Release(f"encoder-{step}", step, 0.5, "0" * 64, final)


def run_stage3(folder, events=None, state=None, first=0, follower=FOLLOWER):
    """Follow to the end; state, and encoder in use at each step.

    events: step → what happens there.
    """
    state, used = state or follower.start(), {}
    for step in range(first, follower.steps):
        (events or {}).get(step, lambda: None)()
        before = state
        state, params = following.follow(str(folder), follower, before, step)
        assert json.loads(json.dumps(state)) == state
        assert (params is not None) == (state["history"] != before["history"])
        now = following.present(state)
        assert now is not None and (
            params is None or np.all(params["encoder"]["bias"] == now.step)
        )
        used[step] = now.step
    assert following.follow(str(folder), follower, state, follower.steps)[1] is None
    return state, used


def list_swaps(state) -> list[tuple[int, int]]:
    """(step of the follower, step of the encoder) of its history."""
    return [(s["step"], s["release"]["step"]) for s in state["history"]]


def test_encoders_are_swapped_in_turn(tmp_path):
    """Each has its least number of steps, the final one the last ones."""
    events = {
        0: lambda: publish(tmp_path, 100),
        3: lambda: publish(tmp_path, 200),  # taken at 10: 100 had its ten steps
        21: lambda: publish(tmp_path, 300),  # taken at 25, the next multiple of five
        26: lambda: publish(tmp_path, 400),
        27: lambda: publish(tmp_path, 500, final=True),
    }
    state, used = run_stage3(tmp_path, events)
    assert list_swaps(state) == [(0, 100), (10, 200), (25, 300), (35, 400), (45, 500)]
    assert (used[44], used[45], used[69]) == (400, 500, 500)


def test_the_final_encoder_has_the_last_steps(tmp_path):
    """They begin at 37; 400, taken at 30, would not have ten steps before."""
    for step in (100, 200, 300, 400):
        publish(tmp_path, step)
    follower = dataclasses.replace(FOLLOWER, steps=62)
    events = {36: lambda: publish(tmp_path, 500, final=True)}
    state, _ = run_stage3(tmp_path, events, follower=follower)
    assert list_swaps(state) == [(0, 100), (10, 200), (20, 300), (37, 500)]


def test_a_final_encoder_that_comes_early_is_taken_early(tmp_path):
    """Training goes on to its last step on it, whatever is published then."""
    publish(tmp_path, 100)
    events = {
        7: lambda: publish(tmp_path, 200, final=True),
        20: lambda: publish(tmp_path, 300, final=True),
    }
    state, _ = run_stage3(tmp_path, events)
    assert list_swaps(state) == [(0, 100), (10, 200)]


def test_a_follower_may_stay_on_the_first(tmp_path):
    """Without least steps nothing is exchanged, but for the last ones if there are."""
    for step in (100, 200, 300):
        publish(tmp_path, step, final=step == 300)
    alone = Follower(steps=70, every=5)
    assert list_swaps(run_stage3(tmp_path, follower=alone)[0]) == [(0, 100)]
    last = Follower(steps=70, every=5, last_steps=33)
    state, _ = run_stage3(tmp_path, follower=last)
    assert list_swaps(state) == [(0, 100), (37, 300)]


def test_a_late_follower_may_pass_over_encoders(tmp_path):
    """In turn by default; only the newest if asked, or if there are only last steps."""
    for step in (100, 200, 300):
        publish(tmp_path, step, final=step == 300)
    state, _ = run_stage3(tmp_path)
    assert list_swaps(state) == [(0, 100), (10, 200), (20, 300)]
    newest = dataclasses.replace(FOLLOWER, newest=True)
    assert list_swaps(run_stage3(tmp_path, follower=newest)[0]) == [(0, 300)]
    final = Follower(steps=70, every=5, last_steps=70)
    assert list_swaps(run_stage3(tmp_path, follower=final)[0]) == [(0, 300)]


@pytest.mark.parametrize("newest", [False, True])
def test_lost_releases_are_passed_over(tmp_path, log, newest):
    """200 was deleted and 300 is corrupt: 100 stays, and the log says so."""
    first, second, third = (publish(tmp_path, step) for step in (100, 200, 300))
    (tmp_path / second.name).unlink()
    (tmp_path / third.name).write_bytes(b"torn")
    state = FOLLOWER.take(FOLLOWER.start(), first, step=0)
    follower = dataclasses.replace(FOLLOWER, newest=newest)
    events = {17: lambda: publish(tmp_path, 400, final=True)}
    state, used = run_stage3(tmp_path, events, state, 1, follower=follower)
    assert (list_swaps(state), used[19]) == ([(0, 100), (20, 400)], 100)
    said = "\n".join(log)
    assert f"{second.name} was deleted" in said and f"{third.name} is corrupt" in said
    assert "step 10 goes on with encoder release encoder-000000100" in said


def test_a_lost_final_release_leaves_the_old_one(tmp_path, log):
    """Others are not taken instead; found again, it is taken."""
    publish(tmp_path, 100)
    path = tmp_path / publish(tmp_path, 200, final=True).name
    whole = path.read_bytes()
    path.unlink()
    state, _ = run_stage3(tmp_path)
    assert list_swaps(state) == [(0, 100)]
    assert "step 45 goes on with encoder release encoder-000000100" in "\n".join(log)
    events = {58: lambda: path.write_bytes(whole)}
    state, _ = run_stage3(tmp_path, events)
    assert list_swaps(state) == [(0, 100), (60, 200)]


def test_the_encoder_in_use_may_turn_out_to_be_the_final_one(tmp_path):
    """Stage 1 ended where it had just published."""
    publish(tmp_path, 100)
    events = {12: lambda: publish(tmp_path, 100, final=True)}
    state, _ = run_stage3(tmp_path, events)
    assert list_swaps(state) == [(0, 100)]


def test_a_folder_that_vanishes_stops_nothing(tmp_path, log):
    """Index gone, then garbage, then good again."""
    publish(tmp_path, 100)
    index = tmp_path / store.INDEX
    events = {
        1: index.unlink,
        12: lambda: index.write_text("{"),
        17: index.unlink,
        18: lambda: publish(tmp_path, 200, final=True),
    }
    state, _ = run_stage3(tmp_path, events)
    assert list_swaps(state) == [(0, 100), (20, 200)]
    assert sum("goes on with encoder release" in line for line in log) == 2
    assert any("is no index of encoder releases" in line for line in log)


def test_no_encoder_at_all_is_an_error_with_the_cure(tmp_path):
    """There is no old one to go on with."""
    with pytest.raises(ValueError, match=r"none of the 0 encoder releases .*wait"):
        following.follow(str(tmp_path), FOLLOWER, FOLLOWER.start(), 0)
    (tmp_path / publish(tmp_path, 1).name).unlink()
    with pytest.raises(ValueError, match=r"none of the 1 encoder releases"):
        following.follow(str(tmp_path), FOLLOWER, FOLLOWER.start(), 0)


def test_how_far_a_run_gets_without_waiting():
    """The table of `reach`."""
    open_end = dataclasses.replace(FOLLOWER, last_steps=0)
    early, final = (make_release(1),), (make_release(1), make_release(2, True))
    assert [FOLLOWER.reach(index) for index in ((), early, final)] == [-1, 44, 70]
    assert [open_end.reach(index) for index in ((), early, final)] == [-1, 70, 70]


@pytest.mark.parametrize(
    "name, value, said",
    [
        ("min_steps", -1, "expected every ≥ 1"),
        ("every", 0, "expected every ≥ 1"),
        ("last_steps", 61, "more than the 70 steps"),
    ],
)
def test_settings_that_cannot_work_are_refused(name, value, said):
    """They are shown with what was expected."""
    with pytest.raises(ValueError, match=rf"{name}={value}.* cannot follow: .*{said}"):
        dataclasses.replace(FOLLOWER, **{name: value})


@st.composite
def schedules(draw):
    """(step of the follower, release) by which an index grows; the last is final."""
    times = sorted(draw(st.lists(st.integers(1, 60), max_size=6)))
    entries = [make_release(at + 2, at == len(times) - 1) for at in range(len(times))]
    return [(0, make_release(1)), *zip(times, entries)]


@st.composite
def followers(draw):
    """Followers of at most 80 steps whose numbers can work."""
    least, last = draw(st.integers(0, 15)), draw(st.integers(0, 20))
    steps = draw(st.integers(max(least + last, 1), 80))
    return Follower(steps, draw(st.integers(1, 8)), least, last, draw(st.booleans()))


def simulate(follower, schedule, state, first, stop, now=0):
    """States by step where every release can be read; `now`: the index is later.

    Where the last steps begin, the final release is waited for.
    """
    states = {}
    for step in range(first, min(stop, follower.steps) + 1):
        if follower.is_due(state, step):
            waits = follower.is_late(step)
            index = tuple(r for at, r in schedule if waits or at <= max(step, now))
            later = follower.rank(state, index, step)
            state = (
                follower.take(state, later[0], step)
                if later
                else {**state, "decided": step}
            )
        states[step] = state
    return states


@given(followers(), schedules())
def test_laws_of_following(follower, schedule):
    """Least steps on each encoder, rising releases, and the last steps on the final."""
    states = simulate(follower, schedule, follower.start(), 0, 400)
    state = states[follower.steps]
    steps, encoders = zip(*list_swaps(state))
    assert all(b - a >= follower.min_steps for a, b in itertools.pairwise(steps))
    assert all(s % follower.every == 0 or s == follower.deadline for s in steps)
    assert list(encoders) == sorted(set(encoders))
    published = {release.step: time for time, release in schedule}
    in_time = [s < follower.deadline for s in steps]
    assert all(published[e] <= s for s, e, ok in zip(steps, encoders, in_time) if ok)
    if not follower.min_steps:
        assert len(steps) <= 1 + bool(follower.last_steps)
    final = schedule[-1][1]
    if final.final and follower.last_steps:
        assert (encoders[-1], steps[-1] <= follower.deadline) == (final.step, True)


@given(followers(), schedules(), st.integers(0, 80), st.integers(1, 30))
def test_a_resumed_follower_repeats_its_decisions(follower, schedule, killed, ahead):
    """Saved at each decision, killed anywhere, resumed when the index offers more."""
    whole = simulate(follower, schedule, follower.start(), 0, 100)
    killed = min(killed, max(whole))
    saved = max(whole[killed]["decided"], killed - killed % follower.every)
    state = json.loads(json.dumps(whole[saved]))
    again = simulate(follower, schedule, state, saved, killed, now=killed + ahead)
    assert again == {step: whole[step] for step in range(saved, killed + 1)}
