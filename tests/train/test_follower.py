"""Followers take releases in turn, and a resumed one decides as it did."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nim4_jax.train import follower as following
from nim4_jax.train import releases
from nim4_jax.train.follower import Follower
from nim4_jax.train.releases import Release

FOLLOWER = Follower(min_steps=10, last_steps=25, every=5)


def publish(folder, step: int, final: bool = False) -> Release:
    """Publish the encoder whose numbers are the step."""
    params = {"encoder": {"bias": np.full(4, step, np.float32)}}
    facts = {"cka": 0.9, "final": final, "meta": {}}
    return releases.publish(str(folder), params, step=step, **facts)


def make_release(step: int, final: bool = False) -> Release:
    """An entry of an index without its file."""
    return Release(f"encoder-{step}", step, 0.5, "0" * 64, final)


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
        state, params = following.follow(str(folder), follower, before, step)
        assert json.loads(json.dumps(state)) == state
        assert (params is not None) == (state["history"] != before["history"])
        now = following.present(state)
        assert now is not None and (
            params is None or np.all(params["encoder"]["bias"] == now.step)
        )
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
        following.follow(str(tmp_path), FOLLOWER, FOLLOWER.start(), 0)
    (tmp_path / publish(tmp_path, 1).name).unlink()
    with pytest.raises(ValueError, match=r"none of the 1 encoder releases"):
        following.follow(str(tmp_path), FOLLOWER, FOLLOWER.start(), 0)


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
