"""Two trainings in one workdir: the second is refused, and dead ones hold nothing."""

import os
import re
import subprocess
import sys

import pytest

from nim4_jax.configs import stage1
from nim4_jax.runs import lock, training

HOLD = """
import sys
from nim4_jax.runs import lock
with lock.held(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_who_trains_in_a_workdir_is_named(tmp_path):
    """Its id; before anything is read or compiled, for these sources do not exist."""
    config = stage1.get_config("nano")
    config.data.sources = ("nowhere.jsonl",)
    with lock.held(str(tmp_path / "run")):
        with pytest.raises(ValueError, match=rf"process {os.getpid()} on .* trains in"):
            training.run(config, str(tmp_path / "run"))
        with lock.held(str(tmp_path / "other")):
            pass
    assert not list((tmp_path / "run").iterdir())
    with lock.held(str(tmp_path / "run")):
        pass


def test_a_killed_process_holds_nothing(tmp_path):
    """Its file stays, and is taken over."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout.readline() == "held\n"
        expected = rf"process {process.pid} on .* trains in {re.escape(str(tmp_path))};"
        with pytest.raises(ValueError, match=expected), lock.held(str(tmp_path)):
            pass
        process.kill()
    assert (tmp_path / lock.FILE).exists()
    with lock.held(str(tmp_path)):
        assert f"process {os.getpid()} " in (tmp_path / lock.FILE).read_text()


def test_where_nothing_can_be_locked_everybody_trains(tmp_path, monkeypatch):
    """An object store, and a file system that refuses."""
    with lock.held("gs://bucket/run"), lock.held("gs://bucket/run"):
        pass

    def refuse(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", refuse)
    with lock.held(str(tmp_path)), lock.held(str(tmp_path)):
        pass
