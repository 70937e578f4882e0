"""The 2.3 B model on paper: where every parameter lies, and which meshes it takes."""

import importlib.util
import json
from pathlib import Path

import jax
import pytest
from jax.sharding import AbstractMesh

from nim4_jax import sharding
from nim4_jax.configs import stage4, stage6
from nim4_jax.model_files import loading
from nim4_jax.models.asr import param_shapes
from nim4_jax.train import placement

GOLDENS = Path(__file__).parents[1] / "goldens"


@pytest.fixture(scope="module")
def config():
    return loading.build_model_config(stage4.get_config("2b3").model.to_dict())


def test_every_parameter_lies_where_it_did():
    """The table of goldens/specs_2b3.json, made by goldens/make_specs.py."""
    spec = importlib.util.spec_from_file_location("specs", GOLDENS / "make_specs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.describe() == json.loads(module.PATH.read_text(encoding="utf8"))


def test_nothing_large_is_whole_on_every_device(config):
    """All but a thousandth of the parameters are cut, by fsdp and by tensor."""
    table = json.loads((GOLDENS / "specs_2b3.json").read_text(encoding="utf8"))
    sizes = {"fsdp": 0, "tensor": 0, "whole": 0}
    for shape, spec in table.values():
        size = 1
        for length in shape:
            size *= length
        for name in {entry for entry in spec if entry} or {"whole"}:
            sizes[name] += size
    total = sum(size for size in map(_count, param_shapes(config).values()))
    assert 2.3e9 < total < 2.5e9
    assert sizes["whole"] < 1e-3 * total
    assert sizes["fsdp"] > 0.999 * total
    assert sizes["tensor"] > 0.99 * total


def _count(shape) -> int:
    size = 1
    for length in shape:
        size *= length
    return size


@pytest.mark.parametrize(
    ("sizes", "fits"),
    [((1, 16, 1), True), ((4, 64, 4), True), ((1, 1, 3), False), ((1, 1, 8), False)],
)
def test_which_meshes_the_model_takes(config, sizes, fits):
    """20 encoder heads and 8 key heads: tensor 1, 2 or 4."""
    mesh = AbstractMesh(sizes, sharding.MESH_AXES)
    axes = placement.find_axes(config)
    if fits:
        return sharding.check_divisible(mesh, param_shapes(config), axes)
    with pytest.raises(ValueError, match=r"'tensor'.*would do: \[1, 2, 4\]"):
        sharding.check_divisible(mesh, param_shapes(config), axes)


def test_the_frozen_policy_lies_as_the_one_that_learns():
    """The reference of stage 6 is no smaller than the model; it is cut as well."""
    made = stage6.get_config("nano")
    config = loading.build_model_config(made.model.to_dict())
    path = "llm/layers/mlp/down/kernel"
    leaf = jax.ShapeDtypeStruct(param_shapes(config)[path], "float32")
    tree: dict = leaf
    for name in reversed(path.split("/")):
        tree = {name: tree}
    params = {**tree, "reference": tree}
    mesh = sharding.make_mesh((2, 2, 2))
    placed = placement.to_shardings(mesh, params, placement.find_axes(config))
    specs = {leaf.spec for leaf in jax.tree.leaves(placed)}
    assert specs == {jax.sharding.PartitionSpec(None, "tensor", "fsdp")}
