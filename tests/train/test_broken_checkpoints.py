"""Broken checkpoints are named and never used unasked; a full disk breaks none."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nim4_jax.train.checkpoints import checkpoint
from nim4_jax.train.checkpoints.checkpoint import Checkpoints
from nim4_jax.train.state import TrainState

SHAPE = (64, 64)

# What Orbax leaves behind where one of many reads fails.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)


def make_state(step: int) -> TrainState:
    """A state that hangs on the step; random bits, which no storage compresses."""
    draws = jax.random.bits(jax.random.key(step), (3, *SHAPE))
    params = {"a": {"kernel": draws[0]}, "b": {"kernel": draws[1]}}
    return TrainState(jnp.asarray(step, jnp.int32), params, ({"a/kernel": draws[2]},))


def make_data():
    """Counts steps."""
    return iter(grain.MapDataset.range(100).to_iter_dataset(grain.ReadOptions(0, 0)))


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """A run with three checkpoints."""
    workdir = tmp_path_factory.mktemp("written")
    checkpoints, data = Checkpoints(str(workdir), every=1, keep=3), make_data()
    for step in (1, 2, 3):
        next(data)
        checkpoints.save(make_state(step), data, {"of": step})
    checkpoints.close()
    return workdir


@pytest.fixture
def workdir(written, tmp_path) -> Path:
    """A copy of it, to be broken."""
    return Path(shutil.copytree(written, tmp_path / "run"))


def restore(workdir: Path, fallback: bool = False):
    """(state, next batch, facts)."""
    checkpoints, data = Checkpoints(str(workdir), 1, fallback=fallback), make_data()
    try:
        shapes = checkpoints.param_shapes()
        wanted = dataclasses.replace(jax.eval_shape(make_state, 3), params=shapes)
        state = checkpoints.restore(wanted, data)
        return state, next(data), checkpoints.read_meta()
    finally:
        checkpoints.close()


def find_file(workdir: Path, leaf: np.ndarray, step: int = 3) -> tuple[Path, int]:
    """The file that holds a leaf of a step, and where its bytes begin."""
    wanted = np.asarray(leaf).tobytes()[-16:]
    for path in (workdir / "checkpoints" / str(step) / "state").rglob("*"):
        if path.is_file() and wanted in path.read_bytes():
            return path, path.read_bytes().index(wanted)
    raise AssertionError("no file holds the leaf; is it compressed?")


def flip(workdir: Path, step: int = 3) -> None:
    """One bit of params/b/kernel; the storage format does not notice."""
    path, place = find_file(workdir, make_state(step).params["b"]["kernel"], step)
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)


def truncate(workdir: Path) -> None:
    """All arrays are in one file, and this loses the end of it."""
    path, _ = find_file(workdir, make_state(3).params["b"]["kernel"])
    path.write_bytes(path.read_bytes()[:40])


def lose(*parts: str):
    """Delete a file of the last checkpoint."""
    return lambda workdir: Path(workdir, "checkpoints", "3", *parts).unlink()


def scribble(*parts: str, text: str = '{"of": '):
    """Cut a JSON file of the last checkpoint short, or put other JSON there."""
    return lambda w: Path(w, "checkpoints", "3", *parts).write_text(text)


BREAKS = {
    "bit": (flip, r"the bits of params/b/kernel are not those that were saved"),
    "file": (truncate, r"(?s)params/\w/kernel, .*cannot be read"),
    "shapes": (lose("state", "_METADATA"), r"the list of its arrays \(state\)"),
    "manifest": (lose("state", "manifest.ocdbt"), r"Metadata at .opt_state.0.a/kernel"),
    "data": (lose("data", "metadata"), r"the file .*3/data/metadata cannot be read"),
    "meta": (scribble("meta", "metadata"), r"the file .*3/meta/metadata cannot"),
    "sums": (scribble("checksums", "metadata"), r"3/checksums/metadata cannot be read"),
    "list": (scribble("meta", "metadata", text="[1]"), r"it holds list, expected an"),
    "number": (
        scribble("checksums", "metadata", text="1.5"),
        r"it holds float, expect",
    ),
    "words": (
        scribble("checksums", "metadata", text='{"params/a": "1"}'),
        r"'params/a' is '1', expected int",
    ),
    "brackets": (
        scribble("meta", "metadata", text="[" * 100_000),
        r"3/meta/metadata cannot be read",
    ),
}


@pytest.mark.parametrize("kind", BREAKS)
def test_what_is_broken_is_named_and_skipped_only_if_told_to(workdir, kind):
    """Says which checkpoints can be read; with the flag goes on from the newest."""
    damage, message = BREAKS[kind]
    damage(workdir)
    with pytest.raises(ValueError, match=message) as error:
        restore(workdir)
    assert "/checkpoints/3" in str(error.value)
    assert "can be read: 1, 2. " in str(error.value)
    assert "--restore_fallback" in str(error.value)
    assert checkpoint.latest_step(str(workdir)) == 3  # nothing was moved
    state, batch, meta = restore(workdir, fallback=True)
    jax.tree.map(np.testing.assert_array_equal, state, make_state(2))
    assert (batch, meta) == (2, {"of": 2})
    assert (workdir / "checkpoints" / "3.broken").is_dir()


def test_a_place_in_the_data_that_says_nothing_is_named(workdir):
    """JSON, but not what the iterator had written."""
    Path(workdir, "checkpoints", "3", "data", "metadata").write_text('{"of": 1}')
    with pytest.raises(ValueError, match=r"checkpoints/3/data tells is damaged"):
        restore(workdir)


def test_a_step_set_aside_is_saved_again(workdir):
    """And set aside a second time, beside the first."""
    for name in ("3.broken", "3.broken-2"):
        flip(workdir)
        restore(workdir, fallback=True)
        assert (workdir / "checkpoints" / name).is_dir()
        checkpoints = Checkpoints(str(workdir), 1, keep=3)
        checkpoints.save(make_state(3), make_data(), {"of": "again"})
        checkpoints.close()
        state, _, meta = restore(workdir)
        jax.tree.map(np.testing.assert_array_equal, state, make_state(3))
        assert meta == {"of": "again"}


def test_nothing_is_set_aside_where_nothing_can_be_read(workdir):
    """Else the next run would begin anew, or at an older step once that is mended."""
    for step in (1, 2, 3):
        flip(workdir, step)
    for fallback in (False, True):
        with pytest.raises(ValueError, match=r"No older checkpoint can be read"):
            restore(workdir, fallback)
    assert checkpoint.latest_step(str(workdir)) == 3


def test_a_state_of_another_shape_is_not_taken_for_broken(workdir):
    """A wrong config must not cost a checkpoint its place."""
    checkpoints = Checkpoints(str(workdir), 1, fallback=True)
    wanted = jax.eval_shape(make_state, 3)
    wanted.params["a"]["kernel"] = jax.ShapeDtypeStruct((2, 2), jnp.float32)
    with pytest.raises(ValueError, match=r"another model: params/a/kernel: \(64, 64\)"):
        checkpoints.restore(wanted, make_data())
    checkpoints.close()
    assert checkpoint.latest_step(str(workdir)) == 3


def test_a_model_is_not_loaded_from_broken_files(workdir):
    """The next stage and evaluation read parameters by another way."""
    flip(workdir)
    with pytest.raises(ValueError, match=r"checkpoints/3: the bits of params/b/kernel"):
        checkpoint.load_params(str(workdir))


FILL = """
import resource, shutil, sys
from pathlib import Path
import importlib.util
spec = importlib.util.spec_from_file_location("tests", sys.argv[1])
tests = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tests)
from nim4_jax.process import errors
from nim4_jax.train.checkpoints.checkpoint import Checkpoints

def main(_):
    checkpoints, data = Checkpoints(sys.argv[2], 1), tests.make_data()
    checkpoints.save(tests.make_state(1), data, {"of": 1})
    checkpoints.wait()
    if sys.argv[3:] == ["fill"]:
        free = shutil.disk_usage(sys.argv[2]).free
        Path(sys.argv[2], "fill").write_bytes(b"x" * (free - 30_000))
    else:
        # Less than one array: a writer under load spreads them over several files.
        resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, resource.RLIM_INFINITY))
    checkpoints.save(tests.make_state(2), data, {"of": 2})
    checkpoints.close()

errors.guard(main)(None)
"""


def run_fill(*arguments: str) -> subprocess.CompletedProcess:
    """Save once with room, once without."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", FILL, __file__, *arguments]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=200
    )


def assert_first_is_intact(done: subprocess.CompletedProcess, workdir: Path) -> None:
    """One line, exit code 2, and step 1 as it was."""
    assert done.returncode == 2, done.stderr
    # A writer's thread of Orbax may have its own last words behind ours.
    start = "error: the checkpoint of step 2 could not be written to "
    (line,) = (x for x in done.stderr.splitlines() if x.startswith(start))
    assert f"{workdir}/checkpoints (it takes about 49 kB" in line
    assert "The checkpoint of step 1 is intact" in line
    state, _, meta = restore(workdir)
    jax.tree.map(np.testing.assert_array_equal, state, make_state(1))
    assert meta == {"of": 1}


def test_a_write_that_fails_spoils_nothing(tmp_path):
    """Files may not grow: the writer's thread gets an error, and the run ends."""
    assert_first_is_intact(run_fill(str(tmp_path)), tmp_path)


def test_a_full_disk_spoils_nothing(tmp_path):
    """A disk of 600 kB, filled up between two saves."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(disk)]
    if (
        not shutil.which("mount")
        or subprocess.run(mount, capture_output=True).returncode
    ):
        pytest.skip("only root may mount a small disk")
    try:
        done = run_fill(str(disk), "fill")
        (disk / "fill").unlink()
        assert_first_is_intact(done, disk)
        assert "No space left" in done.stderr
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_failed_save_is_noticed_at_the_next_step(workdir):
    """Not only when the next one begins: its folder cannot be made."""
    checkpoints, data = Checkpoints(str(workdir), every=1), make_data()
    for step in (1, 2, 3):
        shutil.rmtree(workdir / "checkpoints" / str(step))
    (workdir / "checkpoints").rmdir()
    (workdir / "checkpoints").write_text(json.dumps("in the way"))
    with pytest.raises(OSError, match=r"step 4 could not be written to .*Not a direct"):
        checkpoints.save(make_state(4), data, {})
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            checkpoints.check()
    checkpoints.close()  # says nothing twice
