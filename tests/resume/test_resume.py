"""Law 2: a run that was killed and started again ends with the very same bits."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import soundfile

from nim4_jax.train import checkpoint
from nim4_jax.train.metrics import read_metrics

ROOT = Path(__file__).parents[2]
STEPS, EVERY = 40, 7
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
        "JAX_COMPILATION_CACHE_DIR": cache,
        "XLA_FLAGS": "--xla_backend_optimization_level=0",  # compiles in half the time
    }
    with (workdir.parent / f"{workdir.name}.log").open("ab") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log)


def finish(process: subprocess.Popen, workdir: Path) -> None:
    """Wait for a run that should end well."""
    code = process.wait(timeout=300)
    log = (workdir.parent / f"{workdir.name}.log").read_text(errors="replace")
    assert code == 0, log[-3_000:]


def kill_after_step(process: subprocess.Popen, workdir: Path, step: int) -> None:
    """SIGKILL once a complete checkpoint lies behind and `step` was reported."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        reported = [row["step"] for row in read_metrics(str(workdir))]
        if max(reported, default=0) > step and checkpoint.latest_step(str(workdir)):
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def hash_leaves(workdir: Path) -> dict[str, str]:
    """Path → SHA-256 of every leaf of the last checkpoint's state."""
    step = checkpoint.latest_step(str(workdir))
    assert step == STEPS
    with ocp.PyTreeCheckpointer() as reader:
        state = reader.restore(workdir.absolute() / "checkpoints" / str(step) / "state")
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


@pytest.mark.filterwarnings("ignore:Sharding info not provided")
def test_killed_and_restarted_equals_uninterrupted(
    manifest, tmp_path, compilation_cache
):
    """SHA-256 of parameters, optimizer slots and step; and the losses on the way."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    first = start(manifest, broken, compilation_cache)
    kill_after_step(first, broken, EVERY + 2)
    stopped = checkpoint.latest_step(str(broken))
    assert stopped is not None and EVERY <= stopped < STEPS
    finish(start(manifest, broken, compilation_cache), broken)
    finish(start(manifest, whole, compilation_cache), whole)
    expected, got = hash_leaves(whole), hash_leaves(broken)
    assert len(expected) > 80
    assert any("params" in path for path in expected)
    assert any("opt_state" in path for path in expected)
    assert got == expected
    assert read_losses(broken) == read_losses(whole)
    assert [step for step, _ in read_losses(whole)] == list(range(1, STEPS + 1))
    log = (tmp_path / "broken.log").read_text(errors="replace")
    assert f"resumed at step {stopped}" in log
