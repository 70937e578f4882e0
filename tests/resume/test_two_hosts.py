"""Two processes as two hosts: they stop at one step, and name the one that hangs."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from nim4_jax.process.errors import EXIT_AGAIN, EXIT_HUNG
from nim4_jax.train.checkpoints import checkpoint
from nim4_jax.train.metrics import read_metrics

SCRIPT = Path(__file__).with_name("two_hosts.py")
ROWS = 8


def start(workdir: Path, count: int, steps: int, minutes: float = 2.0):
    """`count` processes of one run with four devices in all."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    processes = []
    for rank in range(count):
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "DEVICES": str(4 // count),
            "NIM4_COORDINATOR": f"localhost:{port}",
            "NIM4_PROCESSES": str(count),
            "NIM4_PROCESS": str(rank),
        }
        command = [sys.executable, str(SCRIPT), str(workdir), str(steps), str(minutes)]
        log = (workdir / f"log{rank}").open("w")
        processes.append(
            subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        )
        log.close()
    return processes


def read_logs(workdir: Path) -> list[str]:
    """What each host said in the last run."""
    return [path.read_text() for path in sorted(workdir.glob("log*"))]


def wait_for_step(processes, workdir: Path, step: int) -> None:
    """Until it was reported."""
    deadline = time.monotonic() + 120
    while max((row["step"] for row in read_metrics(str(workdir))), default=0) < step:
        alive = all(process.poll() is None for process in processes)
        assert alive and time.monotonic() < deadline, read_logs(workdir)
        time.sleep(0.05)


def find_sum(step: int) -> float:
    """What the parameters are after so many steps: all rows of all batches."""
    return float(np.arange(ROWS * step).sum())


def assert_whole(workdir: Path, step: int) -> None:
    """Every global batch was heard once, by whomever."""
    assert checkpoint.latest_step(str(workdir)) == step
    params, _ = checkpoint.load_params(str(workdir))
    assert params["a"]["kernel"].tolist() == [[find_sum(step)] * 3] * ROWS
    still = np.arange(3.0 * ROWS).reshape(ROWS, 3)  # frozen: written by both, once
    assert params["b"]["kernel"].tolist() == still.tolist()
    assert len(list((workdir / "checkpoints" / "frozen").iterdir())) == 1


def assert_named(both, workdir: Path, stopped: int) -> None:
    """A host is stopped; the other one says who, and where, and exits."""
    time.sleep(1.5)  # some heartbeats, of which there are two a second
    both[stopped].send_signal(signal.SIGSTOP)
    try:
        assert both[1 - stopped].wait(timeout=90) == EXIT_HUNG, read_logs(workdir)
    finally:
        for process in both:
            process.kill()
            process.wait()
    log = read_logs(workdir)[1 - stopped]
    name = f"{socket.gethostname()}, process {both[stopped].pid}"
    assert "nothing has happened for 0.1 minutes in step" in log
    if stopped == 0:
        assert f"host 0 ({name}), the coordinator, does not answer" in log
    else:
        assert f"host 1 ({name}) is silent for" in log and "it was in step" in log


def test_two_hosts_stop_together_go_on_as_one_and_miss_each_other(tmp_path):
    """SIGTERM to one; then one host goes on where two were, and two where one was."""
    both = start(tmp_path, 2, 100_000)
    wait_for_step(both, tmp_path, 12)
    both[1].send_signal(signal.SIGTERM)
    codes = [process.wait(timeout=90) for process in both]
    assert codes == [EXIT_AGAIN] * 2, read_logs(tmp_path)
    saved = checkpoint.latest_step(str(tmp_path))
    assert saved is not None and saved >= 12
    for log in read_logs(tmp_path):
        assert f"step {saved} of 100000 is saved; run the same command again" in log
    assert_whole(tmp_path, saved)
    (alone,) = start(tmp_path, 1, saved + 15)
    assert alone.wait(timeout=120) == 0, read_logs(tmp_path)
    assert_whole(tmp_path, saved + 15)
    both = start(tmp_path, 2, 100_000, minutes=0.1)
    wait_for_step(both, tmp_path, saved + 35)
    assert_named(both, tmp_path, 1)
    later = checkpoint.latest_step(str(tmp_path))
    assert later is not None and later > saved + 15
    assert_whole(tmp_path, later)


@pytest.mark.long
def test_a_coordinator_that_hangs_is_named(tmp_path):
    """Nobody can ask it who is missing: it is."""
    both = start(tmp_path, 2, 100_000, minutes=0.1)
    wait_for_step(both, tmp_path, 12)
    assert_named(both, tmp_path, 0)
