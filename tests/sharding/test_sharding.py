"""Laws 3 and 4 on the data axis: any number of shards trains the same model."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nim4_jax import sharding
from nim4_jax.models.asr import Asr
from nim4_jax.train import state as train_state
from nim4_jax.train.losses import CrCtc
from nim4_jax.train.step import make_train_step

STEPS = 3


def train(tiny, shards: int):
    """Parameters and losses after three steps on a mesh of that many data devices.

    Plain gradient descent: Adam would blow the round-off of parameters that have no
    effect (a shift of all keys, say) up to whole steps.
    """
    recipe, tx = tiny.make_recipe(CrCtc()), optax.sgd(0.1)
    params = jax.tree.map(jnp.asarray, tiny.make_params(recipe))
    state = train_state.init_state(params, recipe, tx)
    losses = []
    with jax.set_mesh(sharding.make_mesh((shards, 1, 1))):
        state = sharding.replicate(state)
        step = jax.jit(make_train_step(Asr(tiny.CONFIG), recipe, tx), donate_argnums=0)
        for seed in range(STEPS):
            batch = sharding.put_batch(tiny.make_batch(seed, rows=4))
            assert len(batch.audio.values.sharding.device_set) == shards
            assert batch.audio.values.addressable_shards[0].data.shape[0] == 4 // shards
            state, metrics = step(state, batch)
            losses.append(float(metrics["loss"]))
        return jax.device_get(state.params), losses


def test_data_shards_do_not_change_training(tiny):
    """1, 2 and 4 devices: the same losses and parameters to 1e-5."""
    expected, expected_losses = train(tiny, 1)
    for shards in (2, 4):
        params, losses = train(tiny, shards)
        np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
        jax.tree.map(
            lambda got, want: np.testing.assert_allclose(
                got, want, atol=1e-5, rtol=1e-5
            ),
            params,
            expected,
        )


def test_rows_must_divide(tiny):
    """The error names both numbers and what to set."""
    message = r"6 rows.*4 local data shards.*multiple of 4"
    mesh = jax.set_mesh(sharding.make_mesh((4, 1, 1)))
    with mesh, pytest.raises(ValueError, match=message):
        sharding.put_batch(tiny.make_batch(0, rows=6))


@pytest.mark.parametrize("shape", [(16, 1, 1), (0, 1, 1)])
def test_a_mesh_needs_its_devices(shape):
    """The error names the wanted shape and how many devices there are."""
    with pytest.raises(ValueError, match=rf"'data': {shape[0]}.*there are 8"):
        sharding.make_mesh(shape)


def test_without_a_mesh_everything_is_on_one_device(tiny):
    """Tests and notebooks need no mesh."""
    batch = sharding.put_batch(tiny.make_batch(0))
    assert batch.audio.values.sharding.device_set == {jax.devices()[0]}
