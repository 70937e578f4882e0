"""Checkpoints: what was saved comes back, and what does not fit is named."""

import time

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nim4_jax.train import checkpoint
from nim4_jax.train import state as train_state
from nim4_jax.train.checkpoint import Checkpoints
from nim4_jax.train.state import TrainState


def make_state(step: int) -> TrainState:
    """A small state whose arrays depend on the step."""
    params = {"a": {"kernel": jnp.arange(6.0).reshape(2, 3) + step}}
    slots = ({"a/kernel": jnp.full((2, 3), 0.5 * step)},)
    return TrainState(jnp.asarray(step, jnp.int32), params, slots)


@jax.jit
def overwrite(state: TrainState) -> TrainState:
    """Other values in what may be the same memory."""
    return jax.tree.map(lambda leaf: leaf * 0 - 1, state)


def test_saved_state_survives_the_donation_of_its_buffers(tiny, tmp_path):
    """The next step may reuse the memory while Orbax is still writing."""
    checkpoints = Checkpoints(str(tmp_path), every=1, keep=3)
    data = tiny.make_data()
    run = jax.jit(overwrite, donate_argnums=0)
    for step in (1, 2, 3):
        next(data)
        state = make_state(step)
        checkpoints.save(state, data, {"stage": "test"})
        run(state)
    expected = next(data)
    restored = checkpoints.restore(jax.eval_shape(make_state, 3), data)
    jax.tree.map(np.testing.assert_array_equal, restored, make_state(3))
    jax.tree.map(np.testing.assert_array_equal, next(data), expected)
    checkpoints.close()


class SlowIterator(grain.DatasetIterator):
    """Counts; looking up where it stands takes a while."""

    def __init__(self):
        super().__init__()
        self.place = 0

    def __next__(self):
        self.place += 1
        return self.place

    def get_state(self):
        time.sleep(0.2)
        return {"place": self.place}

    def set_state(self, state):
        self.place = state["place"]


def test_the_iterator_is_saved_where_it_stood(tmp_path):
    """Orbax saves in the background; the loop asks for the next batch at once."""
    checkpoints, data = Checkpoints(str(tmp_path), every=1), SlowIterator()
    next(data)
    checkpoints.save(make_state(1), data, {})
    next(data)
    checkpoints.restore(jax.eval_shape(make_state, 1), data)
    checkpoints.close()
    assert next(data) == 2


def test_only_whole_checkpoints_count(tiny, tmp_path):
    """A folder that was being written when the run died is not the latest step."""
    checkpoints = Checkpoints(str(tmp_path), every=1)
    checkpoints.save(make_state(4), tiny.make_data(), {"stage": "test"})
    checkpoints.close()
    (tmp_path / "checkpoints" / "9.orbax-checkpoint-tmp-1").mkdir()
    assert checkpoint.latest_step(str(tmp_path)) == 4
    params, meta = checkpoint.load_params(str(tmp_path))
    assert meta == {"stage": "test"}
    jax.tree.map(np.testing.assert_array_equal, params, make_state(4).params)


def test_an_empty_folder_is_an_error_with_the_cure(tmp_path):
    """Names the folder and what would do."""
    assert checkpoint.latest_step(str(tmp_path / "none")) is None
    with pytest.raises(
        ValueError, match=r"holds no complete checkpoint.*\.safetensors"
    ):
        checkpoint.load_params(str(tmp_path))


def test_parameters_of_another_size_are_refused():
    """Path, both shapes and the origin are in the error."""
    fresh = {"llm": {"table": jnp.zeros((8, 4)), "scale": jnp.zeros(4)}}
    given = {"llm": {"table": jnp.zeros((8, 6)), "scale": jnp.zeros(6)}}
    with pytest.raises(
        ValueError,
        match=r"runs/old .*llm/scale: \(6,\), expected \(4,\); llm/table: \(8, 6\)",
    ):
        train_state.adopt(fresh, given, "runs/old")


def test_given_parameters_win_and_extras_stay():
    """Same path: the given value; only fresh: named; only given: kept."""
    fresh = {"a": {"k": jnp.zeros(2)}, "b": {"k": jnp.zeros(1)}}
    given = {"a": {"k": np.ones(2, np.float64)}, "c": {"k": np.full(3, 2.0)}}
    params, left = train_state.adopt(fresh, given, "runs/old")
    assert left == ["b/k"]
    assert params["a"]["k"].dtype == jnp.float32
    assert {name: part["k"].tolist() for name, part in params.items()} == {
        "a": [1.0, 1.0],
        "b": [0.0],
        "c": [2.0, 2.0, 2.0],
    }
