"""Frozen parameters: written once, linked to by every step, never lost in between."""

import dataclasses
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from nim4_jax.train import optim
from nim4_jax.train import state as train_state
from nim4_jax.train.checkpoints import checkpoint, frozen
from nim4_jax.train.checkpoints.checkpoint import Checkpoints
from nim4_jax.train.checkpoints.stored_step import StoredStep
from nim4_jax.train.state import TrainState

# What Orbax leaves behind where one of many reads fails.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)

RULES = {
    "stage2": (("adaptor/.*", 1.0), (".*", None)),
    "stage6": (("(reference|cmvn|encoder|ctc_head)/.*", None), (".*", 1.0)),
}
SMALL = (("adaptor/.*", 1.0), (".*", None))
BITS = jax.random.bits(jax.random.key(0), (3, 48, 48))


class Counter:
    """A data iterator."""

    def get_state(self):
        return {}

    def set_state(self, state):
        del state

    def start_prefetch(self):
        pass


def make_state(step: int, encoder: int = 0) -> TrainState:
    """Of a frozen encoder and LLM, and an adaptor that hangs on the step."""
    params = {
        "adaptor": {"kernel": BITS[0] + jnp.uint32(step)},
        "encoder": {"stack": {"kernel": BITS[1] + jnp.uint32(encoder)}},
        "llm": {"table": BITS[2], "scale": jnp.arange(3.0)},
    }
    slots = ({"adaptor/kernel": jnp.full((48, 48), step)},)
    return TrainState(jnp.asarray(step, jnp.int32), params, slots)


def save(workdir: Path, states, **options) -> None:
    """A run that saves these states."""
    checkpoints = Checkpoints(str(workdir), 1, rules=SMALL, **options)
    for state in states:
        checkpoints.save(state, Counter(), {"of": int(state.step)})
    checkpoints.close()


def restore(workdir: Path, fallback: bool = False) -> TrainState:
    """As a run that is started again does."""
    checkpoints = Checkpoints(str(workdir), 1, fallback=fallback, rules=SMALL)
    try:
        shapes = checkpoints.param_shapes()
        wanted = dataclasses.replace(jax.eval_shape(make_state, 3), params=shapes)
        return checkpoints.restore(wanted, Counter())
    finally:
        checkpoints.close()


def read_step(workdir: Path, step: int) -> TrainState:
    """One of several steps."""
    stored = StoredStep((workdir / "checkpoints" / str(step)).absolute())
    return stored.read_state(jax.eval_shape(make_state, step))


def find_pieces(workdir: Path, step: int) -> dict[str, Path]:
    """Part → folder, as a step's link says."""
    link = frozen.read_link(workdir / "checkpoints" / str(step))
    return {name: workdir / "checkpoints" / "frozen" / link[name] for name in link}


def measure(folder: Path) -> int:
    """Bytes of all files below."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


assert_equal = functools.partial(jax.tree.map, np.testing.assert_array_equal)


@pytest.mark.parametrize("stage", RULES)
def test_steps_hold_what_trains_and_give_the_whole(tiny, tmp_path, stage):
    """No frozen leaf in a step; in all, one copy of each; the same bits come back."""
    recipe = tiny.make_recipe(tiny.PLAIN_TRANSCRIBE, RULES[stage])
    params = jax.tree.map(jnp.asarray, tiny.make_params(recipe))
    if stage == "stage6":
        params["reference"] = jax.tree.map(jnp.copy, {"llm": params["llm"]})
    tx = optim.make_optimizer(recipe.optimizer, recipe.rules, recipe.steps)
    state = train_state.init_state(params, recipe, tx)
    sizes = {}
    for name, rules in (("whole", ()), ("linked", recipe.rules)):
        checkpoints = Checkpoints(str(tmp_path / name), 1, rules=rules)
        for step in (1, 2):
            state = dataclasses.replace(state, step=jnp.asarray(step, jnp.int32))
            checkpoints.save(state, Counter(), {})
        assert_equal(checkpoints.restore(state, Counter()), state)
        checkpoints.close()
        assert_equal(checkpoint.load_params(str(tmp_path / name))[0], params)
        steps = [tmp_path / name / "checkpoints" / step for step in "12"]
        sizes[name] = measure(steps[0] / "state")
    trainable, still = optim.split_params(params, recipe.rules)
    described = ocp.PyTreeCheckpointHandler().metadata(steps[0] / "state").tree
    assert optim.flatten(described["params"]).keys() == trainable.keys()
    pieces = find_pieces(tmp_path / "linked", 2)
    assert pieces == find_pieces(tmp_path / "linked", 1)
    indices = [
        json.loads((piece / "index.json").read_text()) for piece in pieces.values()
    ]
    assert set().union(*indices) == set(still)
    print(stage, sizes)
    assert sizes["linked"] < sizes["whole"]


def test_another_encoder_is_another_piece_and_goes_with_its_last_step(tmp_path):
    """Only the encoder is written again; what a kept step needs stays."""
    save(tmp_path, [make_state(1), make_state(2, encoder=1)], keep=2)
    first, second = (find_pieces(tmp_path, step) for step in (1, 2))
    assert first["llm"] == second["llm"] and first["encoder"] != second["encoder"]
    written = (second["llm"] / "index.json").stat().st_mtime_ns
    for step, encoder in ((1, 0), (2, 1)):
        assert_equal(read_step(tmp_path, step), make_state(step, encoder))
    save(tmp_path, [make_state(3, encoder=1)], keep=2)
    assert not first["encoder"].exists()
    folders = {path.name for path in (tmp_path / "checkpoints" / "frozen").iterdir()}
    assert folders == {piece.name for piece in second.values()}
    assert (second["llm"] / "index.json").stat().st_mtime_ns == written
    assert_equal(restore(tmp_path), make_state(3, encoder=1))


def test_nothing_is_removed_while_a_link_cannot_be_read(tmp_path):
    """A broken step may be mended, and wants its encoder then."""
    save(tmp_path, [make_state(1), make_state(2, encoder=1)], keep=3)
    link = tmp_path / "checkpoints" / "1" / "frozen" / "metadata"
    first, content = find_pieces(tmp_path, 1), link.read_text()
    link.write_text(content[:20])
    save(tmp_path, [make_state(step, encoder=1) for step in (3,)], keep=3)
    link.write_text(content)
    assert first["encoder"].exists()
    assert_equal(read_step(tmp_path, 1), make_state(1))


def test_a_workdir_may_move(tmp_path):
    save(tmp_path / "old", [make_state(1)])
    (tmp_path / "old").rename(tmp_path / "new")
    assert_equal(restore(tmp_path / "new"), make_state(1))


def test_steps_of_before_are_read_and_the_next_one_is_linked(tmp_path):
    """A run that wrote everything into each step goes on."""
    checkpoints = Checkpoints(str(tmp_path), 1)
    checkpoints.save(make_state(1), Counter(), {})
    checkpoints.close()
    step = tmp_path / "checkpoints" / "1"
    shutil.rmtree(step / "frozen")  # they had no such item
    items = json.loads((step / "_CHECKPOINT_METADATA").read_text())
    del items["item_handlers"]["frozen"]
    (step / "_CHECKPOINT_METADATA").write_text(json.dumps(items))
    assert_equal(restore(tmp_path), make_state(1))
    save(tmp_path, [make_state(2)])
    assert_equal(restore(tmp_path), make_state(2))
    assert_equal(read_step(tmp_path, 1), make_state(1))


def lose(piece: Path) -> None:
    """All of it."""
    shutil.rmtree(piece)


def scribble(piece: Path) -> None:
    """Another checksum in the index."""
    index = json.loads((piece / "index.json").read_text())
    index["llm/scale"]["checksum"] ^= 1
    (piece / "index.json").write_text(json.dumps(index))


def flip(piece: Path) -> None:
    """One bit of the table."""
    wanted = np.asarray(BITS[2]).tobytes()[-16:]
    for path in (piece / "arrays").rglob("*"):
        if path.is_file() and wanted in (content := path.read_bytes()):
            place = content.index(wanted)
            flipped = bytes([content[place] ^ 4])
            path.write_bytes(content[:place] + flipped + content[place + 1 :])
            return
    raise AssertionError("no file holds the leaf; is it compressed?")


def truncate(piece: Path) -> None:
    """The end of every data file."""
    for path in (piece / "arrays").rglob("d/*"):
        path.write_bytes(path.read_bytes()[:40])


DAMAGES = {
    "lost": (
        lose,
        r"/checkpoints/2 needs the frozen parameters in .*, which is missing",
    ),
    "index": (scribble, r"has another index.json than its name says"),
    "bit": (flip, r"/checkpoints/2: its .*: the bits of llm/table are not those"),
    "file": (truncate, r"/checkpoints/2: its .*: llm/\w+, llm/\w+ cannot be read"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_piece_is_named_and_costs_no_step(tmp_path, kind):
    """What is expected where, and how to mend it; put back, the newest step is read."""
    save(tmp_path, [make_state(1), make_state(2)])
    shutil.copytree(tmp_path, tmp_path / "copy")
    piece = find_pieces(tmp_path, 2)["llm"]
    damage, message = DAMAGES[kind]
    damage(piece)
    for fallback in (False, True):
        with pytest.raises(ValueError, match=message) as error:
            restore(tmp_path, fallback)
        assert str(piece) in str(error.value)
        assert "Put that folder back from a copy of this workdir" in str(error.value)
    with pytest.raises(ValueError, match=message):
        checkpoint.load_params(str(tmp_path))
    shutil.rmtree(piece, ignore_errors=True)
    shutil.copytree(find_pieces(tmp_path / "copy", 2)["llm"], piece)
    assert_equal(restore(tmp_path), make_state(2))


@pytest.mark.parametrize("text", ["1.5", "[]", '{"encoder": 1}'])
def test_a_link_of_other_json_is_named(tmp_path, text):
    """It says of each part which piece is meant."""
    save(tmp_path, [make_state(1)])
    link = tmp_path / "checkpoints" / "1" / "frozen" / "metadata"
    link.write_text(text)
    with pytest.raises(
        ValueError, match=r"1/frozen/metadata cannot be read .*expected"
    ):
        checkpoint.load_params(str(tmp_path))


def test_a_lost_link_is_no_step_of_before(tmp_path):
    """Else what trains would be taken for the whole model."""
    save(tmp_path, [make_state(1)])
    shutil.rmtree(tmp_path / "checkpoints" / "1" / "frozen")
    with pytest.raises(ValueError, match=r"the file .*/1/frozen/metadata cannot be"):
        checkpoint.load_params(str(tmp_path))
    with pytest.raises(ValueError, match=r"the file .*/1/frozen/metadata cannot be"):
        restore(tmp_path)
    assert list((tmp_path / "checkpoints" / "frozen").iterdir())


def test_a_broken_step_of_another_encoder_falls_back(tmp_path):
    """The piece that is lost is not the older step's."""
    save(tmp_path, [make_state(1), make_state(2, encoder=1)])
    lose(find_pieces(tmp_path, 2)["encoder"])
    with pytest.raises(ValueError, match=r"Checkpoints that can be read: 1\. "):
        restore(tmp_path)
    assert_equal(restore(tmp_path, fallback=True), make_state(1))


KILL = """
import os, signal, sys
from pathlib import Path
import importlib.util
spec = importlib.util.spec_from_file_location("tests", sys.argv[1])
tests = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tests)
from nim4_jax import whole_file
tests.save(Path(sys.argv[2]), [tests.make_state(1)])
whole_file.write_text = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
tests.save(Path(sys.argv[2]), [tests.make_state(2, encoder=1)])
"""


def test_killed_while_a_piece_is_written(tmp_path):
    """The step before is whole; what was cut off is written again, not linked to."""
    command = [sys.executable, "-c", KILL, __file__, str(tmp_path)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, env=environment, capture_output=True, timeout=200)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert checkpoint.latest_step(str(tmp_path)) == 1
    assert len(list((tmp_path / "checkpoints" / "frozen").iterdir())) == 3
    assert_equal(restore(tmp_path), make_state(1))
    names = {piece.name for piece in find_pieces(tmp_path, 1).values()}
    folder = tmp_path / "checkpoints" / "frozen"
    assert {path.name for path in folder.iterdir()} == names
    save(tmp_path, [make_state(2, encoder=1)])
    assert_equal(restore(tmp_path), make_state(2, encoder=1))
    linked = {piece.name for piece in find_pieces(tmp_path, 2).values()}
    assert {path.name for path in folder.iterdir()} == names | linked


def test_what_was_cut_off_is_written_again(tmp_path):
    """A part of the arrays under the name of the whole, and no index."""
    save(tmp_path, [make_state(1)])
    piece = find_pieces(tmp_path, 1)["encoder"]
    (piece / "index.json").unlink()
    truncate(piece)
    save(tmp_path, [make_state(2)])
    assert_equal(restore(tmp_path), make_state(2))


def test_a_piece_that_cannot_be_written_costs_no_step(tmp_path, monkeypatch):
    """No step links to what is not there; the next try writes it."""
    save(tmp_path, [make_state(1)])

    def fail(*_, **__):
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(ocp.Checkpointer, "save", fail)
        with pytest.raises(OSError, match=r"step 2 could not .* step 1 is intact"):
            save(tmp_path, [make_state(2, encoder=1)])
    assert_equal(restore(tmp_path), make_state(1))
    save(tmp_path, [make_state(2, encoder=1)])
    assert_equal(restore(tmp_path), make_state(2, encoder=1))
