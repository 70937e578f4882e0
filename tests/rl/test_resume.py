"""Law 2 for rollouts: killed between sampling and learning, a run ends the same.

And it compiles nothing again: both of its programs are in the compilation cache.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np

from nim4_jax.train.metrics import read_metrics

SCRIPT = Path(__file__).with_name("killed_run.py")
KILLED_IN_STEP = 6
"""Its checkpoint is of step 3."""
PROGRAMS = ("jit_train_step", "jit_write_samples")


def run(folder: Path, cache: Path, *arguments: str) -> subprocess.CompletedProcess:
    """The script in a process of its own."""
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "XLA_FLAGS": "--xla_backend_optimization_level=0",  # compiles in half the time
    }
    command = [sys.executable, str(SCRIPT), str(folder), *arguments]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=300
    )


def list_programs(cache: Path) -> list[str]:
    """Files of the programs that a step consists of."""
    files = (path.name for path in cache.iterdir() if path.name.endswith("-cache"))
    return sorted(name for name in files if name.startswith(PROGRAMS))


def test_a_run_killed_in_a_rollout_ends_with_the_same_bits(tmp_path):
    """Parameters, and the metrics of every step on the way."""
    broken, whole, cache = (tmp_path / name for name in ("broken", "whole", "cache"))
    killed = run(broken, cache, str(KILLED_IN_STEP))
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2_000:]
    assert not (broken / "last.npz").exists()
    compiled = list_programs(cache)
    assert [name.split("-")[0] for name in compiled] == list(PROGRAMS)
    for folder, first in ((broken, 3), (whole, 0)):
        done = run(folder, cache)
        assert done.returncode == 0, done.stderr[-2_000:]
        assert f"from step {first}\n" in done.stdout
    assert list_programs(cache) == compiled
    got, expected = np.load(broken / "last.npz"), np.load(whole / "last.npz")
    assert len(expected.files) > 40 and got.files == expected.files
    for name in expected.files:
        np.testing.assert_array_equal(got[name], expected[name], err_msg=name)
    rows = [
        {
            row["step"]: (row["train/loss"], row["train/reward"], row["train/length"])
            for row in read_metrics(str(folder))
            if "train/loss" in row
        }
        for folder in (broken, whole)
    ]
    assert rows[0] == rows[1] and len(rows[1]) == 8
