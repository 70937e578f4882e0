"""Law 2: a run that was killed and started again ends with the very same bits."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import soundfile

from nim4_jax.process.errors import EXIT_AGAIN
from nim4_jax.train.checkpoints import checkpoint
from nim4_jax.train.metrics import read_metrics

ROOT = Path(__file__).parents[2]
STEPS, EVERY = 60, 7
OVERRIDES = {
    "steps": STEPS,
    "checkpoint_every": EVERY,
    "log_every": 1,
    "loss.alpha_warmup": 3,
    "optimizer.warmup_steps": 5,
    "data.batch_size": (4,),
    "data.bucket_seconds": (1.1,),
    "model.encoder.num_layers": 1,
    "model.encoder.width": 16,
    "model.encoder.num_heads": 2,
    "model.encoder.conv_kernel": 3,
}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> Path:
    """Fourteen short recordings of noise in both languages."""
    folder = tmp_path_factory.mktemp("speech")
    rng = np.random.default_rng(0)
    rows = []
    for number in range(14):
        seconds = 0.45 + 0.04 * number
        samples = 0.1 * rng.normal(size=round(16_000 * seconds))
        soundfile.write(folder / f"{number}.wav", samples, 16_000)
        text, lang = ("好", "zh") if number % 2 else ("hi", "en")
        row = {"audio": f"{number}.wav", "text": text, "lang": lang}
        rows.append(json.dumps(row | {"duration": seconds}, ensure_ascii=False))
    (folder / "train.jsonl").write_text("\n".join(rows) + "\n", encoding="utf8")
    return folder / "train.jsonl"


def start(manifest: Path, workdir: Path, cache: str) -> subprocess.Popen:
    """The command that a user would type, again and again."""
    overrides = {**OVERRIDES, "data.sources": (str(manifest),)}
    command = [
        sys.executable,
        str(ROOT / "launch" / "train.py"),
        f"--config={ROOT / 'configs' / 'stage1.py'}:nano",
        f"--workdir={workdir}",
        *[f"--config.{key}={value!r}" for key, value in overrides.items()],
    ]
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": cache,
        "XLA_FLAGS": "--xla_backend_optimization_level=0",  # compiles in half the time
    }
    with (workdir.parent / f"{workdir.name}.log").open("ab") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log)


def finish(process: subprocess.Popen, workdir: Path) -> None:
    """Wait for a run that should end well."""
    code = process.wait(timeout=400)
    assert code == 0, read_log(workdir)[-3_000:]


def wait_for(
    process: subprocess.Popen, workdir: Path, found: Callable[[], object]
) -> None:
    """Until it is found; an error if the run ends before."""
    deadline = time.monotonic() + 300
    while not found():
        assert process.poll() is None and time.monotonic() < deadline, read_log(workdir)
        time.sleep(0.002)


def find_step(workdir: Path) -> int:
    """Of the last complete checkpoint, 0 without any."""
    return checkpoint.latest_step(str(workdir)) or 0


def find_unfinished(workdir: Path) -> list[Path]:
    """Checkpoints that are being written, or were when the run was killed."""
    folders = (workdir / "checkpoints").glob("*tmp*")
    return [path for path in folders if int(path.name.split(".")[0]) > EVERY]


def count_reported(workdir: Path) -> int:
    """The last step of which metrics were written."""
    return max((row["step"] for row in read_metrics(str(workdir))), default=0)


def kill(process: subprocess.Popen) -> None:
    """SIGKILL, unless it has ended."""
    process.send_signal(signal.SIGKILL)
    assert process.wait() in (-signal.SIGKILL, 0)


def kill_while_saving(start_again: Callable[[], subprocess.Popen], workdir: Path):
    """SIGKILL when one checkpoint is complete and another one half written."""
    for _ in range(5):
        process = start_again()
        wait_for(process, workdir, lambda: find_unfinished(workdir))
        kill(process)
        if find_unfinished(workdir):  # else it was complete before the signal came
            break
    stopped = find_step(workdir)
    unfinished = int(find_unfinished(workdir)[0].name.split(".")[0])
    assert EVERY <= stopped < unfinished
    return stopped


def terminate_after_steps(process: subprocess.Popen, workdir: Path) -> int:
    """SIGTERM in the midst of steps; returns the step that was saved."""
    resumed = find_step(workdir)
    # Metrics of steps that will be done again are dropped first.
    wait_for(process, workdir, lambda: count_reported(workdir) == resumed)
    wait_for(process, workdir, lambda: count_reported(workdir) > resumed)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) == EXIT_AGAIN, read_log(workdir)
    return find_step(workdir)


def read_log(workdir: Path) -> str:
    """What the runs in a folder have said."""
    log = workdir.parent / f"{workdir.name}.log"
    return log.read_text(errors="replace")


def hash_leaves(workdir: Path) -> dict[str, str]:
    """Path → SHA-256 of every leaf of the last checkpoint's state."""
    step = checkpoint.latest_step(str(workdir))
    assert step == STEPS
    with ocp.PyTreeCheckpointer() as reader:
        state = reader.restore(workdir.absolute() / "checkpoints" / str(step) / "state")
    state["params"], _ = checkpoint.load_params(str(workdir))  # with what is frozen
    hashes = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        array = np.asarray(leaf)
        digest = hashlib.sha256(f"{array.dtype}{array.shape}".encode())
        digest.update(array.tobytes())
        hashes[jax.tree_util.keystr(path)] = digest.hexdigest()
    return hashes


def read_losses(workdir: Path) -> list[tuple[int, float]]:
    """(step, loss) of every step."""
    rows = read_metrics(str(workdir))
    return [(row["step"], row["train/loss"]) for row in rows if "train/loss" in row]


@pytest.fixture(scope="module")
def whole(manifest, tmp_path_factory, compilation_cache):
    """(folder, seconds) of a run that nothing has disturbed."""
    workdir = tmp_path_factory.mktemp("undisturbed") / "whole"
    began = time.monotonic()
    finish(start(manifest, workdir, compilation_cache), workdir)
    return workdir, time.monotonic() - began


@pytest.fixture
def chance() -> random.Random:
    """Chance; its seed is printed, and NIM4_SEED repeats it."""
    seed = os.environ.get("NIM4_SEED") or random.SystemRandom().randrange(10**6)
    print(f"NIM4_SEED={seed}")
    return random.Random(int(seed))


def assert_equal(broken: Path, whole: Path) -> None:
    """SHA-256 of parameters, optimizer slots and step; and the losses on the way."""
    expected, got = hash_leaves(whole), hash_leaves(broken)
    assert len(expected) > 80
    assert any("params" in path for path in expected)
    assert any("opt_state" in path for path in expected)
    assert got == expected
    assert read_losses(broken) == read_losses(whole)
    assert [step for step, _ in read_losses(whole)] == list(range(1, STEPS + 1))
    assert not find_unfinished(broken)


pytestmark = pytest.mark.filterwarnings("ignore:Sharding info not provided")


def test_killed_and_restarted_equals_uninterrupted(
    manifest, whole, tmp_path, compilation_cache, chance
):
    """Killed while saving, asked to end between two steps, killed at any moment."""
    broken = tmp_path / "broken"

    def start_again() -> subprocess.Popen:
        return start(manifest, broken, compilation_cache)

    stopped = kill_while_saving(start_again, broken)
    saved = terminate_after_steps(start_again(), broken)
    assert f"resumed at step {stopped}" in read_log(broken)
    assert f"step {saved} of {STEPS} is saved; run the same command" in read_log(broken)
    assert saved == count_reported(broken)
    process = start_again()
    time.sleep(chance.uniform(0.0, whole[1]))
    kill(process)
    finish(start_again(), broken)
    assert f"resumed at step {saved}" in read_log(broken)
    assert_equal(broken, whole[0])


@pytest.mark.long
def test_ten_kills_in_a_row(manifest, whole, tmp_path, compilation_cache, chance):
    """At moments drawn at random, from the start of the process on."""
    broken = tmp_path / "broken"
    for number in range(10):
        left = {path.stat().st_ino for path in find_unfinished(broken)}
        process = start(manifest, broken, compilation_cache)
        end = time.monotonic() + chance.uniform(0.3, 1.0) * whole[1]
        saves = number % 3 == 2  # these end in the midst of a save, if there is one
        while time.monotonic() < end and process.poll() is None:
            inodes = {path.stat().st_ino for path in find_unfinished(broken)}
            if saves and inodes - left:
                break
            time.sleep(0.002)
        kill(process)
    finish(start(manifest, broken, compilation_cache), broken)
    assert_equal(broken, whole[0])
