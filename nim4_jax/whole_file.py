"""Atomic writing of files."""

from __future__ import annotations

import os
from pathlib import Path

from etils import epath


def encode(text: str) -> bytes:
    r"""UTF-8, with halves of surrogate pairs as JSON has them, \udce9.

    The names of files may be of any bytes: no such name must cost a result.
    """
    return text.encode("utf8", "backslashreplace")


def write_text(path: epath.PathLike, text: str) -> None:
    """Replace a file by `text`, see `encode` and `write_bytes`."""
    write_bytes(path, encode(text))


def write_bytes(path: epath.PathLike, content: bytes) -> None:
    """Replace a file by `content`, which has another name until it is whole.

    What a process that was killed has left under that name, the next one writes over;
    so a file has one writer at a time.

    Args:
        path: in a folder that is there. An object store (gs://…) needs no other name:
            it shows what is written only when it is whole.

    Raises:
        OSError: no such folder, no room, no right; the file is as it was.
    """
    if "://" in os.fspath(path):
        epath.Path(path).write_bytes(content)
        return
    target = Path(path)
    partial = target.with_name(f"{target.name}.tmp")
    try:
        partial.write_bytes(content)
        partial.replace(target)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
