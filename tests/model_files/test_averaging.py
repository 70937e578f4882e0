"""nim4 average: the mean of models, part by part."""

import dataclasses

import numpy as np
import pytest

from nim4_jax.model_files import averaging, loading, packing
from nim4_jax.models import quantisation
from nim4_jax.serving import recognisers
from nim4_jax.train import optim
from nim4_jax.train.checkpoints import checkpoint
from nim4_jax.train.checkpoints.checkpoint import Checkpoints
from nim4_jax.weights import snapshot


@pytest.fixture
def pair(model_files, tmp_path):
    """The tiny model, and another one of which all numbers are 1 more, without LLM."""
    params, meta = snapshot.read(model_files[0])
    other = {
        path: np.asarray(leaf, np.float32) + 1
        for path, leaf in optim.flatten(params).items()
        if not path.startswith("llm/")
    }
    path = str(tmp_path / "other.safetensors")
    snapshot.write(path, optim.unflatten(other), meta)
    return model_files[0], path, params


def test_a_part_is_the_mean_of_those_that_have_it(pair, tmp_path):
    """Weights count by their shares; the LLM, which only one has, stays as it is."""
    one, other, params = pair
    out = str(tmp_path / "mean.safetensors")
    averaging.run([one, other], [3.0, 1.0], out, "float32")
    mean, meta = snapshot.read(out)
    got, old = optim.flatten(mean), optim.flatten(params)
    assert got.keys() == old.keys()
    for path, leaf in old.items():
        moved = 0.0 if path.startswith("llm/") else 0.25
        np.testing.assert_allclose(got[path], np.float32(leaf) + moved, atol=1e-6)
    assert meta["tokenizer"] == "nano"
    assert recognisers.load(out).recogniser.writes


def test_one_model_alone_stays_to_the_bit(pair, tmp_path):
    one, _, params = pair
    out = str(tmp_path / "same.safetensors")
    averaging.run([one, one, one], [], out, "float32")
    for path, leaf in optim.flatten(snapshot.read(out)[0]).items():
        np.testing.assert_array_equal(leaf, optim.flatten(params)[path])


def test_int8_models_are_averaged_as_what_they_stand_for(pair, tmp_path):
    one, _, _ = pair
    rounded, out = (str(tmp_path / f"{name}.safetensors") for name in ("int8", "mean"))
    packing.run(one, rounded, "int8", [])
    averaging.run([rounded, rounded], [], out, "float32")
    expected = quantisation.dequantise(snapshot.read(rounded)[0])
    mean, meta = snapshot.read(out)
    assert meta["model"]["policy"]["weights"] == "float"
    for path, leaf in optim.flatten(expected).items():
        np.testing.assert_allclose(optim.flatten(mean)[path], leaf, rtol=1e-6)
    assert loading.build_model_config(meta["model"]).policy.weights == "float"


@pytest.mark.parametrize(
    ("weights", "out", "message"),
    [
        ([1.0], "m.safetensors", "2 positive numbers"),
        ([1.0, -1.0], "m.safetensors", "2 positive numbers"),
        ([1.0, float("inf")], "m.safetensors", "2 positive numbers"),
        ([], "m.bin", "safetensors"),
    ],
)
def test_what_cannot_be_averaged_is_named(pair, tmp_path, weights, out, message):
    with pytest.raises(ValueError, match=message):
        averaging.run(list(pair[:2]), weights, str(tmp_path / out))
    assert not (tmp_path / out).exists()


def test_other_shapes_are_named(pair, tmp_path):
    one, other, params = pair
    params["ctc_head"]["output"]["kernel"] = np.zeros((3, 3), np.float32)
    _, meta = snapshot.read(other)
    snapshot.write(other, params, meta)
    with pytest.raises(ValueError, match="ctc_head/output/kernel is not the same"):
        averaging.run([one, other], [], str(tmp_path / "m.safetensors"))


def test_a_step_of_a_run_is_named_by_its_number(tiny, tmp_path):
    """WORKDIR@STEP, and what is said where there is none."""
    recipe = tiny.make_recipe(tiny.PLAIN_CTC)
    _, state = tiny.make_state(recipe)
    checkpoints = Checkpoints(str(tmp_path), 1)
    for step in (1, 2):
        moved = {
            path: leaf + step for path, leaf in optim.flatten(state.params).items()
        }
        now = dataclasses.replace(
            state, step=np.int32(step), params=optim.unflatten(moved)
        )
        checkpoints.save(now, tiny.make_data(), {"phonemes": ""})
    checkpoints.close()
    first, second, last = (
        optim.flatten(checkpoint.load_params(f"{tmp_path}{number}")[0])
        for number in ("@1", "@2", "")
    )
    for path, leaf in first.items():
        np.testing.assert_allclose(second[path], leaf + 1, rtol=1e-6)
        np.testing.assert_array_equal(second[path], last[path])
    with pytest.raises(ValueError, match="of step 7; the last one is of step 2"):
        checkpoint.load_params(f"{tmp_path}@7")
