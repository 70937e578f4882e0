"""Settings of malloc for programs that run on CPU; imports no JAX."""

from __future__ import annotations

import ctypes
import glob
import os
import platform

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8  # malloc.h
_ACCELERATORS = ("/dev/nvidia[0-9]*", "/dev/kfd", "/dev/accel*", "/dev/vfio/[0-9]*")


def keep() -> None:
    """Freed memory stays with the process, on hosts without accelerators under glibc.

    XLA asks for the memory of a program at each call, and glibc gives large blocks back
    to the system when they are freed: the system then hands out, page by page, zeros
    that nobody reads. Of nano's training step that was a sixth.

    To be called before there are threads, those that imports start among them: a thread
    may have an arena of its own, or come by that of one that has ended, and there large
    blocks always come from the system.
    """
    if platform.libc_ver()[0] != "glibc" or not _runs_on_cpu():
        return
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(_ARENA_MAX, 1)
    mallopt(_MMAP_MAX, 0)
    mallopt(_TRIM_THRESHOLD, -1)


def _runs_on_cpu() -> bool:
    """What JAX will choose, told without starting it."""
    wanted = os.environ.get("JAX_PLATFORMS", "")
    if wanted:
        return wanted.split(",")[0] == "cpu"
    return not any(glob.glob(pattern) for pattern in _ACCELERATORS)
