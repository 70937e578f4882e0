"""Checkpoints: what was saved comes back, and what does not fit is named."""

import time

import grain
import grain.checkpoint
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from nim4_jax.data.pipeline import text_pipeline
from nim4_jax.data.pipeline.text_pipeline import TextConfig
from nim4_jax.model_files import loading
from nim4_jax.train import state as train_state
from nim4_jax.train.checkpoints import checkpoint
from nim4_jax.train.checkpoints.checkpoint import Checkpoints
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


def test_only_whole_checkpoints_count_in_an_object_store(object_store):
    """There are no renames: a step has its last name while it is written."""
    for step, name in ((3, "commit_success.txt"), (4, "state/manifest.ocdbt")):
        object_store.pipe(f"gs://bucket/run/checkpoints/{step}/meta/metadata", b"{}")
        object_store.pipe(f"gs://bucket/run/checkpoints/{step}/{name}", b"")
    assert checkpoint.latest_step("gs://bucket/run") == 3


def test_what_a_killed_run_left_is_gone_once_the_folder_is_open(tmp_path):
    """Not some time later: the process may end before it saves anything."""
    half = tmp_path / "checkpoints" / "9.orbax-checkpoint-tmp-1"
    half.mkdir(parents=True)
    for number in range(1000):
        (half / str(number)).touch()
    checkpoints = Checkpoints(str(tmp_path), every=1)
    assert not half.exists()
    checkpoints.close()


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


def test_the_newest_stay_and_some_for_ever(tiny, tmp_path):
    """Two newest, and every third; also where a run was resumed in between."""
    data = tiny.make_data()
    for steps in (range(1, 6), range(6, 9)):
        checkpoints = Checkpoints(str(tmp_path), every=1, keep=2, keep_every=3)
        for step in steps:
            checkpoints.save(make_state(step), data, {})
        checkpoints.close()
    kept = {int(path.name) for path in (tmp_path / "checkpoints").iterdir()}
    assert kept == {3, 6, 7, 8}


@pytest.mark.parametrize("numbers", [(0, 1, 0), (1, 0, 0), (1, 1, -1)])
def test_numbers_that_cannot_work_are_named(tmp_path, numbers):
    with pytest.raises(ValueError, match=r"checkpoint_every=.*give 1 or more"):
        Checkpoints(str(tmp_path), *numbers)


def test_what_a_save_costs_is_counted(tiny, tmp_path):
    """Seconds in which the loop stands; a step that is saved already costs none."""
    checkpoints, data = Checkpoints(str(tmp_path), every=1), tiny.make_data()
    assert checkpoints.stalled == 0.0
    checkpoints.save(make_state(1), data, {})
    first = checkpoints.stalled
    checkpoints.wait()
    second = checkpoints.stalled
    checkpoints.save(make_state(1), data, {})
    assert 0.0 < first < second == checkpoints.stalled
    checkpoints.close()


MESHES = [(1, 1, 1), (8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 4, 2)]


def place(state: TrainState, mesh_shape: tuple[int, ...]) -> TrainState:
    """Shapes of a state with matrices cut over two mesh axes, and the rest whole."""
    mesh = jax.make_mesh(
        mesh_shape,
        ("data", "fsdp", "tensor"),
        devices=jax.devices()[: int(np.prod(mesh_shape))],
    )

    def annotate(leaf):
        spec = PartitionSpec("fsdp", "tensor") if leaf.ndim == 2 else PartitionSpec()
        sharding = NamedSharding(mesh, spec)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(annotate, jax.eval_shape(lambda: state))


@pytest.mark.parametrize("before", MESHES)
def test_any_mesh_restores_what_any_other_saved(tiny, tmp_path, before):
    """The same bits, lying as they were asked for."""
    draws = jax.random.normal(jax.random.key(0), (2, 16, 8))
    params = {"a": {"kernel": draws[0], "bias": jnp.arange(7.0)}}
    state = TrainState(jnp.asarray(5, jnp.int32), params, ({"a/kernel": draws[1]},))
    checkpoints, data = Checkpoints(str(tmp_path), every=1), tiny.make_data()
    shardings = jax.tree.map(lambda leaf: leaf.sharding, place(state, before))
    checkpoints.save(jax.device_put(state, shardings), data, {})
    for after in MESHES:
        wanted = place(state, after)
        restored = checkpoints.restore(wanted, data)
        jax.tree.map(np.testing.assert_array_equal, restored, state)
        for got, asked in zip(jax.tree.leaves(restored), jax.tree.leaves(wanted)):
            assert got.sharding == asked.sharding
    checkpoints.close()


def open_share(rank: int, hosts: int):
    """One host's rows of the warm-up's texts."""
    config = TextConfig(
        sources=("grammar:commands",),
        tokenizer=loading.find_tokenizer("nano"),
        batch_size=4,
        max_phonemes=(44,),
        window=2,
    )
    return text_pipeline.make_text_iterator(config, rank=rank, hosts=hosts)


@pytest.mark.parametrize(("saved_by", "read_by"), [(1, 2), (2, 1), (2, 4)])
def test_any_number_of_hosts_goes_on_with_the_same_examples(
    tmp_path, saved_by, read_by
):
    """Law 3 over a restart: host 0's position serves them all."""
    shares = [open_share(rank, saved_by) for rank in range(saved_by)]
    for _ in range(3):
        batches = [next(share)["index"] for share in shares]
    checkpoints = Checkpoints(str(tmp_path), every=1)
    checkpoints.save(make_state(3), shares[0], {})
    expected = np.concatenate([next(share)["index"] for share in shares])
    assert not np.array_equal(expected, np.concatenate(batches))
    got = []
    for rank in range(read_by):
        share = open_share(rank, read_by)
        checkpoints.restore(jax.eval_shape(make_state, 3), share)
        got.append(next(share)["index"])
    checkpoints.close()
    np.testing.assert_array_equal(np.concatenate(got), expected)


def test_checkpoints_of_earlier_versions_are_restored(tiny, tmp_path):
    """Each host wrote a position of its own; there were no checksums."""
    data = tiny.make_data()
    next(data)
    with ocp.CheckpointManager(tmp_path / "checkpoints") as manager:
        manager.save(
            1,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(make_state(1)),
                data=grain.checkpoint.CheckpointSave(data),
                meta=ocp.args.JsonSave({"of": "old"}),
            ),
        )
    expected = next(data)
    checkpoints = Checkpoints(str(tmp_path), every=1)
    restored = checkpoints.restore(jax.eval_shape(make_state, 1), data)
    jax.tree.map(np.testing.assert_array_equal, restored, make_state(1))
    jax.tree.map(np.testing.assert_array_equal, next(data), expected)
    assert checkpoints.read_meta() == {"of": "old"}
    checkpoints.close()
