"""Rollouts: on any number of data shards, and on a mesh of their own."""

import functools

import jax
import numpy as np
import optax
import pytest

from nim4_jax import sharding
from nim4_jax.configs import stage4, stage6
from nim4_jax.decode.programs import Budget
from nim4_jax.rl.objective import PARTS, Grpo
from nim4_jax.rl.worker import RolloutWorker
from nim4_jax.runs import training
from nim4_jax.train import state as train_state
from nim4_jax.train.optim import OptimizerConfig
from nim4_jax.train.recipes import Recipe
from nim4_jax.train.step import make_train_step

SAMPLES, WANTED = 3, 7
RULES = (("(reference|cmvn)/.*", None), (".*", 1.0))


class Count:
    """Rewards the share of one token."""

    class decoder:
        end_id = 1

    def __call__(self, ids, mask, said, said_mask):
        hits = np.sum((np.asarray(ids) == WANTED) & np.asarray(mask), axis=1)
        return hits.reshape(len(said), -1).astype(np.float32)


def make_mesh(first: int, count: int):
    """A data mesh of some of the 8 devices."""
    return sharding.make_mesh(devices=jax.devices()[first : first + count])


def make_recipe(tiny, loss=None):
    budget = Budget(first=3, per_second=4.0, most=5)
    loss = loss or Grpo(tiny.PROMPT, Count(), steps=10, samples=SAMPLES, budget=budget)
    return Recipe(loss, RULES, OptimizerConfig(1e-2, 1), 10, reference=True)


def make_state(tiny, recipe, tx):
    params = jax.tree.map(jax.numpy.asarray, tiny.make_params(recipe))
    params = train_state.add_reference(params, recipe)
    return train_state.init_state(params, recipe, tx)


def train(tiny, mesh, worker=None):
    """Parameters, metrics and rollouts of two steps."""
    recipe, tx, rolled = make_recipe(tiny), optax.sgd(0.1), []
    model = tiny.Asr(tiny.CONFIG)
    worker = worker or RolloutWorker(model, recipe)
    with jax.set_mesh(mesh):
        state = sharding.replicate(make_state(tiny, recipe, tx))
        step = jax.jit(make_train_step(model, recipe, tx), donate_argnums=0)
        metrics = {}
        for seed in range(2):
            batch = worker.prepare(state, tiny.make_batch(seed))
            rolled.append(batch.rollout)
            state, metrics = step(state, sharding.put_batch(batch))
        assert jax.tree.leaves(state.params)[0].sharding.device_set == set(
            mesh.devices.flat
        )
        return jax.device_get((state.params, metrics)), rolled


close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)


def test_two_meshes_train_as_one(tiny):
    """4 + 4 devices: what is sampled, and what two updates make of it, is the same."""
    alone, _ = train(tiny, make_mesh(0, 4))
    worker = RolloutWorker(tiny.Asr(tiny.CONFIG), make_recipe(tiny), make_mesh(4, 4))
    together, rolled = train(tiny, make_mesh(0, 4), worker)
    jax.tree.map(close, together, alone)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(rolled))
    assert rolled[0].tokens.shape[:2] == (4, SAMPLES)
    single, _ = train(tiny, make_mesh(0, 1))
    jax.tree.map(close, single, alone)


def test_weights_arrive_leaf_by_leaf(tiny):
    """Equal bits on the rollout devices of what a rollout needs; old ones may go."""
    recipe = make_recipe(tiny)
    mesh = make_mesh(4, 4)
    worker = RolloutWorker(tiny.Asr(tiny.CONFIG), recipe, mesh)
    half = RolloutWorker(tiny.Asr(tiny.CONFIG), recipe, mesh, dtype="bfloat16")
    with pytest.raises(ValueError, match="no weights yet; call sync"):
        worker.write(tiny.make_batch(0), 0)
    with jax.set_mesh(make_mesh(0, 4)):
        params = sharding.replicate(make_state(tiny, recipe, optax.sgd(0.1)).params)
    expected = jax.device_get(params)
    for made in (worker, half):
        made.sync(params)
    jax.tree.map(lambda leaf: leaf.delete(), params)
    assert set(worker.params) == set(PARTS) < set(expected)
    for part in PARTS:
        jax.tree.map(np.testing.assert_array_equal, worker.params[part], expected[part])
    for made, dtype in ((worker, "float32"), (half, "bfloat16")):
        for leaf in jax.tree.leaves(made.params):
            assert leaf.sharding.device_set == set(jax.devices()[4:])
            assert leaf.dtype == dtype
    with pytest.raises(ValueError, match=r"6 rows .* 4 data shards"):
        worker.write(tiny.make_batch(0, rows=6), 0)
    with pytest.raises(ValueError, match=r"holds .'llm'. but no cmvn, encoder"):
        worker.sync({"llm": {}})


def test_only_grpo_needs_rollouts(tiny):
    """The error says which loss does."""
    recipe = make_recipe(tiny, tiny.PLAIN_CTC)
    with pytest.raises(ValueError, match=r"CrCtc needs no rollouts.*'grpo'"):
        RolloutWorker(tiny.Asr(tiny.CONFIG), recipe, make_mesh(4, 4))


def test_the_last_devices_sample():
    """The others train, in order; without rollout devices all do."""
    every = jax.devices()
    assert sharding.split_devices(2) == (every[:6], every[6:])
    assert sharding.split_devices(0) == (every, [])
    mesh = sharding.make_mesh((2, 1, 1), every[4:])
    assert list(mesh.devices.flat) == every[4:6]
    with pytest.raises(ValueError, match="wants 4 devices, there are 3"):
        sharding.make_mesh((4, 1, 1), every[:3])


@pytest.mark.parametrize("wanted", [-1, 8, 9])
def test_someone_has_to_train(wanted, tmp_path):
    """Of 8 devices at most 7 sample."""
    config = stage6.get_config("nano")
    config.rollout_devices = wanted
    with pytest.raises(ValueError, match=rf"={wanted}, .* 8 devices .* 0 .* to 7"):
        training.run(config, str(tmp_path))


def test_what_cannot_be_split_is_refused_before_the_first_batch(tmp_path):
    """A later bucket's rows, on either mesh; and a loss that samples nothing."""
    config = stage6.get_config("nano")
    config.data.sources = ("nowhere.jsonl",)  # nothing is read
    config.rollout_devices = 4
    config.data.batch_size = (16, 8, 6)
    with pytest.raises(
        ValueError, match=r"6 rows .* over the 4 .* of the rollout mesh"
    ):
        training.run(config, str(tmp_path))
    config.rollout_devices, config.mesh = 2, (4, 1, 1)
    with pytest.raises(ValueError, match=r"6 rows .* 4 .* of the training mesh"):
        training.run(config, str(tmp_path))
    config.rollout_devices = 0
    with pytest.raises(ValueError, match=r"6 rows .* 4 .* of the training mesh"):
        training.run(config, str(tmp_path))
    with config.unlocked():
        config.loss = stage4.get_config("nano").loss
    config.rollout_devices, config.mesh = 2, (1, 1, 1)
    with pytest.raises(ValueError, match=r"Transcribe needs no rollouts.*'grpo'"):
        training.run(config, str(tmp_path))
