"""Memory that is freed is used again."""

import os
import platform
import subprocess
import sys

import pytest

from nim4_jax.process import memory

FAULTS = """
import resource
import sys

from nim4_jax.process import memory

if "keep" in sys.argv:
    memory.keep()

import jax
import jax.numpy as jnp


@jax.jit
def multiply(matrix):
    return jnp.abs(matrix) @ matrix[0]


def run(calls):
    for _ in range(calls):
        multiply(matrix).block_until_ready()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


matrix = jnp.ones((1 << 12, 1 << 13))
# A call asks for memory before the last one's is back: a few blocks, not one.
print(-(run(30) - run(20)) // 20)
"""


def count_faults(*arguments: str) -> int:
    """Pages that the system hands out to each call of a program that takes 128 MiB."""
    command = [sys.executable, "-c", FAULTS, *arguments]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc gives back")
def test_freed_memory_is_used_again():
    """Few pages are handed out twice; without the call, each one is."""
    pages = 1 << 27 >> 12
    assert count_faults("keep") < pages // 8 < pages // 2 < count_faults()


@pytest.mark.parametrize("platforms", ["cuda", "tpu", "cuda,cpu"])
def test_hosts_of_accelerators_are_left_alone(platforms, monkeypatch):
    """Their threads are many, and their programs' memory is elsewhere."""
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    monkeypatch.setattr(memory.ctypes, "CDLL", None)
    memory.keep()
