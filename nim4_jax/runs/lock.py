"""A lock file that keeps two processes from training in one workdir.

The lock is the kernel's (`flock`), so that of a process that died, in whatever way, is
gone with it. Of several hosts, host 0 holds it. Nothing can be locked in an object
store, nor on file systems that know no locks: there everybody may train.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from absl import logging

from nim4_jax.train.multihost import consensus

FILE = "train.lock"
"""In WORKDIR, while it is trained in: who does, since when."""


@contextlib.contextmanager
def held(workdir: str) -> Iterator[None]:
    """Inside, no other process trains in the folder, which is made.

    All hosts call it.

    Raises:
        ValueError: another process does; names it.
        OSError: the folder cannot be made or written to.
    """
    if "://" in os.fspath(workdir):
        yield
        return
    path = Path(workdir, FILE)
    descriptors: list[int] = []
    consensus.lead(lambda: descriptors.extend(_take(path)))
    try:
        yield
    finally:
        for descriptor in descriptors:
            # While it is locked, so that nobody's file but ours is removed.
            path.unlink(missing_ok=True)
            os.close(descriptor)


def _take(path: Path) -> list[int]:
    """The open and locked file; nothing where there are no locks."""
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            who = os.read(descriptor, 200).decode(errors="replace").strip()
            os.close(descriptor)
            raise ValueError(
                f"{who or 'another process'} trains in {path.parent}; wait until it "
                "has ended, end it, or choose another --workdir."
            ) from None
        except OSError as error:
            os.close(descriptor)
            logging.info("%s cannot be locked (%s)", path, error.strerror)
            return []
        if _is_at(path, descriptor):
            break
        os.close(descriptor)  # who held it has just removed it
    now = datetime.datetime.now().isoformat(" ", "seconds")
    text = f"process {os.getpid()} on {socket.gethostname()}, since {now},\n"
    os.ftruncate(descriptor, 0)
    os.write(descriptor, text.encode())
    return [descriptor]


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether the open file is still the one of that name."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False
