"""SIGTERM and Ctrl-C: when they stop a run at once, and when after the step."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from nim4_jax.process.errors import EXIT_AGAIN, Interrupted
from nim4_jax.train.multihost.preemption import Preemption

ROOT = Path(__file__).parents[2]
BOTH = (signal.SIGTERM, signal.SIGINT)


@pytest.mark.parametrize("number", BOTH)
def test_outside_of_steps_a_signal_stops_at_once(number):
    """Nothing is to be saved there; handlers are as before afterwards."""
    before = signal.getsignal(number)
    with Preemption() as stop:
        assert not stop.requested()
        with pytest.raises(Interrupted, match=f"{number.name} was received"):
            signal.raise_signal(number)
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("number", BOTH)
def test_between_steps_it_is_asked_for(number):
    """The steps go on until they ask; who never asks is stopped at the end."""
    with Preemption() as stop, pytest.raises(Interrupted), stop.deferred():
        signal.raise_signal(number)
        assert stop.requested()
        signal.raise_signal(signal.SIGTERM)  # schedulers may repeat themselves
        assert stop.requested()


def test_a_signal_ends_a_wait():
    """A follower sleeps between two looks for a release, up to a day in all."""
    with Preemption() as stop, stop.deferred():
        began = time.monotonic()
        stop.sleep(0.3)
        assert time.monotonic() - began >= 0.3
    with Preemption() as stop, pytest.raises(Interrupted), stop.deferred():
        sender = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM))
        sender.start()
        stop.sleep(86_400)


def test_in_other_threads_nobody_listens():
    """Python lets only the main thread handle signals; elsewhere nothing breaks."""
    seen = []

    def run():
        with Preemption() as stop:
            seen.append(stop.requested())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [False]


SECOND = """
import signal
from nim4_jax.train.multihost.preemption import Preemption
with Preemption() as stop, stop.deferred():
    signal.raise_signal(signal.SIGINT)
    print("once", flush=True)
    signal.raise_signal(signal.SIGINT)
    print("twice", flush=True)
"""


def test_the_second_ctrl_c_ends_the_process():
    """As a process that Ctrl-C has killed, which shells understand."""
    done = subprocess.run([sys.executable, "-c", SECOND], capture_output=True)
    assert (done.returncode, done.stdout) == (-signal.SIGINT, b"once\n")
    assert b"SIGINT: the step is finished and saved" in done.stderr


def test_a_follower_that_waits_can_be_stopped(tmp_path):
    """The command says what to do, without a traceback, and with its own exit code."""
    command = [
        sys.executable,
        str(ROOT / "launch" / "train.py"),
        f"--config={ROOT / 'configs' / 'stage2.py'}:nano",
        f"--workdir={tmp_path / 'run'}",
        f"--config.follow.folder={tmp_path / 'releases'}",
    ]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    process = subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "no encoder release in" in line:
            break
    process.send_signal(signal.SIGTERM)
    _, rest = process.communicate(timeout=60)
    assert process.returncode == EXIT_AGAIN
    assert rest == "stopped: SIGTERM was received; run the same command again\n"
