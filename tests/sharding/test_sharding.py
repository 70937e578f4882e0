"""The mesh itself: its shape, its rows, and what it refuses."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from nim4_jax import sharding
from nim4_jax.train import placement


def test_rows_must_divide(tiny):
    """The error names both numbers and what to set."""
    message = r"6 rows.*4 data shards.*multiple of 4"
    mesh = jax.set_mesh(sharding.make_mesh((2, 2, 1)))
    with mesh, pytest.raises(ValueError, match=message):
        sharding.put_batch(tiny.make_batch(0, rows=6))


def test_rows_lie_on_data_and_fsdp(tiny):
    """Each of 2 × 2 shards holds its quarter, on both devices of the tensor axis."""
    batch = tiny.make_batch(0, rows=8)
    with jax.set_mesh(sharding.make_mesh((2, 2, 2))):
        audio = sharding.put_batch(batch).audio.values
    parts = {shard.device.id: shard for shard in audio.addressable_shards}
    assert len(parts) == 8
    for number, shard in parts.items():
        rows = slice(2 * (number // 2), 2 * (number // 2) + 2)
        np.testing.assert_array_equal(shard.data, batch.audio.values[rows])


@pytest.mark.parametrize("shape", [(16, 1, 1), (3, 3, 1), (-1, 3, 1)])
def test_a_mesh_needs_its_devices(shape):
    """The error names the wanted shape, the devices, and sizes that would do."""
    wanted = rf"'data': {shape[0]}.* 8.*\[1, 2, 4, 8\]"
    with pytest.raises(ValueError, match=wanted):
        sharding.make_mesh(shape)


@pytest.mark.parametrize("shape", [(0, 1, 1), (8, 1), (-2, 1, 1)])
def test_a_mesh_has_three_sizes(shape):
    """Each at least 1, or the rest."""
    with pytest.raises(ValueError, match=r"size ≥ 1 for each of .*'tensor'"):
        sharding.make_mesh(shape)


def test_one_axis_takes_the_rest():
    """−1 is what the others leave, and cannot be asked for twice."""
    assert dict(sharding.make_mesh((-1, 2, 2)).shape)["data"] == 2
    assert sharding.fill_shape((1, -1, 1), 16) == (1, 16, 1)
    assert sharding.fill_shape((2, 1, 1), 8) == (2, 1, 1)
    with pytest.raises(ValueError, match="only one axis can take the rest"):
        sharding.make_mesh((-1, -1, 1))


def test_slices_hold_equal_parts_of_the_data_axis():
    """A data axis of 3 cannot lie on 2 slices."""
    with pytest.raises(ValueError, match=r"size 3.*2 slices.*multiple of 2"):
        sharding.make_mesh((3, 2, 1), slices=2)


def test_a_mesh_must_divide_the_model(tiny):
    """The error names the mesh axis, a parameter, and the sizes that would do."""
    axes = placement.find_axes(tiny.CONFIG)
    params = tiny.make_params(tiny.make_recipe(tiny.PLAIN_TRANSCRIBE))
    with pytest.raises(ValueError) as caught:
        placement.to_shardings(sharding.make_mesh((1, 1, 2)), params, axes)
    message = str(caught.value)
    assert "'tensor' has size 2" in message and "sizes that would do: [1]" in message
    assert "llm/layers/attention" in message
    fitting = sharding.make_mesh((2, 4, 1))
    placed = placement.to_shardings(fitting, params, axes)
    assert placed["llm"]["embedding"]["table"].spec == PartitionSpec("tensor", "fsdp")


def test_an_unknown_axis_is_named():
    """The error lists the table."""
    with pytest.raises(ValueError, match=r"\['depth'\].*'embed'"):
        sharding.to_spec(("embed", "depth"))


def test_slots_lie_as_their_parameters_do(tiny):
    """Every array of the optimizer with a parameter's shape has its placement."""
    config = dataclasses.replace(
        tiny.CONFIG, llm=dataclasses.replace(tiny.CONFIG.llm, num_kv_heads=2)
    )
    recipe = tiny.make_recipe(tiny.PLAIN_TRANSCRIBE)
    _, state = tiny.make_state(recipe, config)
    mesh = sharding.make_mesh((2, 2, 2))
    placed = placement.to_shardings(mesh, state, placement.find_axes(config))
    params = placement.optim.flatten(placed.params)
    cut = [path for path, leaf in params.items() if any(leaf.spec)]
    assert len(cut) > 20
    slots = placed.opt_state[1]
    for path in params:
        assert slots.mu[path].spec == slots.nu[path].spec == params[path].spec
    assert placed.step.spec == slots.count.spec == PartitionSpec()


def test_without_a_mesh_everything_is_on_one_device(tiny):
    """Tests and notebooks need no mesh."""
    batch = sharding.put_batch(tiny.make_batch(0))
    assert batch.audio.values.sharding.device_set == {jax.devices()[0]}
