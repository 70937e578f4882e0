"""A folder whose content is replaced atomically while others read and write it.

FOLDER/manifest.json            says which generation counts, and its files
       7/manifest.json, 7/*.npy the generation that counts
       7/NAME/…                 what is written in a form of its own, "attached"
       6/…                      the one before it, for who still opens it
       .lock                    held by who writes

A reader maps the files that the manifest names. A writer makes a directory of its own,
then replaces the manifest in one step, then removes what is older than the generation
before. To go back, copy the manifest of that one over the folder's.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from nim4_jax import whole_file

MANIFEST = "manifest.json"
_LOCK = ".lock"
_TRIES = 20  # generations that may come while one is opened

Facts = dict[str, Any]


@contextlib.contextmanager
def locked(folder: str) -> Iterator[None]:
    """The only writer of a folder, which is made if need be; waits for other ones.

    A lock of a process that died is free. Readers need none.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    # A descriptor of its own, so that threads of one process wait for each other too.
    descriptor = os.open(Path(folder, _LOCK), os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def write(
    folder: str,
    arrays: Mapping[str, np.ndarray],
    facts: Facts,
    attached: Mapping[str, Callable[[str], None]] | None = None,
) -> None:
    """Write the next generation; call it under `locked`.

    Args:
        folder: of all generations.
        arrays: by name.
        facts: for the manifest, beside "files" and "attached".
        attached: by name, what writes its own files into a folder of that path.

    Raises:
        OSError: no room; what was there before still counts.
    """
    place = Path(folder)
    before = _find_current(place)
    numbers = [int(path.name) for path in _list(place)]
    own = place / str(1 + max(numbers, default=0))
    own.mkdir()
    try:
        files = {}
        for name, array in arrays.items():
            path = own / f"{name}.npy"
            np.save(path, array)
            files[name] = _describe(place, path)
        told = {**facts, "files": files, "attached": _attach(place, own, attached)}
        text = json.dumps(told, indent=1, ensure_ascii=False)
        whole_file.write_text(own / MANIFEST, text + "\n")
        whole_file.write_text(place / MANIFEST, text + "\n")
    except BaseException:
        shutil.rmtree(own, ignore_errors=True)
        raise
    for path in _list(place):
        if path.name not in (own.name, before):
            shutil.rmtree(path, ignore_errors=True)


def _describe(place: Path, path: Path) -> Facts:
    """What the manifest says of a file."""
    return {
        "file": path.relative_to(place).as_posix(),
        "bytes": path.stat().st_size,
        "crc32": _sum(path),
    }


def _attach(
    place: Path, own: Path, attached: Mapping[str, Callable[[str], None]] | None
) -> dict[str, list[Facts]]:
    """Write what is in a form of its own, and what the manifest says of it."""
    told = {}
    for name, write_into in (attached or {}).items():
        write_into(str(own / name))
        paths = sorted(path for path in (own / name).rglob("*") if path.is_file())
        told[name] = [_describe(place, path) for path in paths]
    return told


def find_attached(folder: str) -> tuple[str, ...]:
    """Names of what is attached to the generation that counts; () without one."""
    try:
        told = json.loads(Path(folder, MANIFEST).read_text(encoding="utf8"))
        return tuple(told.get("attached", ()))
    except (OSError, ValueError, AttributeError):
        return ()


def read(
    folder: str,
    check: Callable[[Path, Any], None],
    attached: Mapping[str, Callable[[str], Any]] | None = None,
) -> tuple[Facts, dict[str, np.ndarray], dict[str, Any]]:
    """The manifest that counts, and its arrays, mapped, every byte checked.

    Args:
        folder: of all generations.
        check: raises ValueError for a manifest that is not wanted.
        attached: by name, what opens the folder that was attached, which `check` has
            found in the manifest.

    Returns:
        The manifest, the arrays, and what was opened.

    Raises:
        ValueError: no manifest, one that `check` refuses, or a file that is missing,
            cut off or changed, by name.
    """
    path = Path(folder, MANIFEST)
    for _ in range(_TRIES):
        text = _read_text(path)
        try:
            return _open_all(path, text, check, attached or {})
        except ValueError:
            # Two newer generations may have come since the manifest was read.
            if _read_text(path) == text:
                raise
    raise ValueError(
        f"{folder} was written anew {_TRIES} times while it was read; try again, or "
        "write it less often."
    )


def _open_all(
    path: Path,
    text: str,
    check: Callable[[Path, Any], None],
    attached: Mapping[str, Callable[[str], Any]],
) -> tuple[Facts, dict[str, np.ndarray], dict[str, Any]]:
    try:
        facts = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is no manifest of a hotword database ({error!r}); build one with "
            "nim4 build_hotwords."
        ) from error
    check(path, facts)
    files = facts["files"]
    _check_files(path, facts)
    with ThreadPoolExecutor() as threads:
        whole = list(threads.map(lambda own: _verify(path.parent, own), files.values()))
    # Not in threads: NumPy parses headers by `ast`, which CPython 3.11 counts the depth
    # of for all threads together (SystemError, once in some thousand loads).
    arrays = dict(zip(files, map(_map, whole)))
    opened = {}
    for name, open_folder in attached.items():
        for own in facts["attached"][name]:
            _verify(path.parent, own)
        generation = next(iter(files.values()))["file"].split("/")[0]
        opened[name] = open_folder(str(path.parent / generation / name))
    return facts, arrays, opened


def _check_files(path: Path, facts: Facts) -> None:
    """See that a manifest says of each file what it has to."""
    files, attached = facts["files"], facts.get("attached", {})
    kinds = {"file": str, "bytes": int, "crc32": int}
    whole = (
        isinstance(files, dict)
        and isinstance(attached, dict)
        and all(isinstance(part, list) for part in attached.values())
    )
    listed = [*files.values(), *itertools.chain(*attached.values())] if whole else []
    whole = whole and all(
        isinstance(own, dict) and type(own.get(key)) is kind
        for own in listed
        for key, kind in kinds.items()
    )
    if not whole:
        raise ValueError(
            f"{path} is damaged: it does not say {', '.join(kinds)} of each file; copy "
            "or build the database again."
        )


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf8")
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path} is no manifest of a hotword database ({error!r}); build one with "
            "nim4 build_hotwords."
        ) from error


def _list(place: Path) -> list[Path]:
    """Directories of generations, whole or not."""
    return [path for path in place.iterdir() if path.is_dir() and path.name.isdecimal()]


def _find_current(place: Path) -> str:
    """Directory of the generation that counts; "" where there is none."""
    try:
        files = json.loads((place / MANIFEST).read_text(encoding="utf8"))["files"]
        return next(iter(files.values()))["file"].split("/")[0]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StopIteration):
        return ""


def _verify(place: Path, facts: Facts) -> Path:
    """Path of a file that is what the manifest says."""
    path = place / facts["file"]
    try:
        size = path.stat().st_size
        found = _sum(path) if size == facts["bytes"] else 0
    except (OSError, ValueError):  # the latter of a name that no file can have
        size, found = -1, 0
    if size != facts["bytes"]:
        told = "missing" if size < 0 else f"{size} bytes long"
        raise ValueError(
            f"{path} is {told}, the manifest says {facts['bytes']} bytes; copy or "
            "build the database again."
        )
    if found != facts["crc32"]:
        raise ValueError(
            f"{path} was changed: checksum {found:08x}, the manifest says "
            f"{facts['crc32']:08x}; copy or build the database again."
        )
    return path


def _map(path: Path) -> np.ndarray:
    try:
        # A plain view: calls and slices of `np.memmap` itself cost microseconds each.
        return np.load(path, mmap_mode="r").view(np.ndarray)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be opened ({error}).") from error


def _sum(path: Path) -> int:
    """CRC-32 of a file, which is mapped and not read into memory."""
    if not path.stat().st_size:
        return 0  # nothing cannot be mapped
    return zlib.crc32(np.memmap(path, np.uint8, mode="r"))
