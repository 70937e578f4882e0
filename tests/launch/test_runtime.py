"""What launchers ask of the process."""

import platform
import subprocess
import sys

import jax.numpy as jnp
import pytest

from nim4_jax.launch import runtime

FAULTS = """
import resource
import sys

import jax
import jax.numpy as jnp

from nim4_jax.launch import runtime

if "keep" in sys.argv:
    runtime.keep_memory()


@jax.jit
def multiply(matrix):
    return jnp.abs(matrix) @ matrix[0]


def run():
    multiply(matrix).block_until_ready()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


matrix = jnp.ones((1 << 12, 1 << 13))
for _ in range(3):
    run()
print(sorted(run() - run() for _ in range(5))[2])
"""


def count_faults(*arguments: str) -> int:
    """Pages that the system hands out for a call of a program that takes 128 MiB."""
    command = [sys.executable, "-c", FAULTS, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return -int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc gives back")
def test_freed_memory_is_used_again():
    """No page is handed out twice; without the call, each one is."""
    assert count_faults("keep") < 100 < (1 << 27 >> 12) // 2 < count_faults()


def test_a_device_that_is_full_is_no_traceback(capsys):
    """The words of XLA, which asked for 512 TiB, and what needs less."""

    def ask(_):
        jnp.zeros((1 << 47,)).block_until_ready()

    with pytest.raises(SystemExit) as ended:
        runtime.guard(ask)([])
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ") and told.count("\n") == 1
    assert "Out of memory" in told and "config.micro_batches" in told


def test_a_mistake_of_ours_is_a_traceback():
    """Nobody but us can mend it."""

    def fail(_):
        raise KeyError("ours")

    with pytest.raises(KeyError):
        runtime.guard(fail)([])
