"""What launchers ask of the process."""

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource
import sys

from nim4_jax.launch import runtime

if "keep" in sys.argv:
    runtime.keep_memory()


def fill():
    bytearray(b"x") * (1 << 26)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


fill()
print(fill() - fill())
"""


def count_faults(*arguments: str) -> int:
    """Pages that the system handed out for 64 MiB that were freed just before."""
    command = [sys.executable, "-c", FAULTS, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return -int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc gives back")
def test_freed_memory_is_used_again():
    """No page is handed out twice; without the call, each one is."""
    assert count_faults("keep") < 100 < (1 << 26 >> 12) // 2 < count_faults()
