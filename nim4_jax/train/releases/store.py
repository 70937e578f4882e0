"""The folder of encoder releases: written by stage 1, read by stages 2 and 3.

A release is a snapshot in a folder, local or gs://, that the index there lists:

    FOLDER/encoder-000500000-1a2b3c4d.safetensors    its step and checksum in the name
    FOLDER/index.json    {"format": 1, "releases": [{"name": …, "step": …, …}, …]}

A file is whole before the index names it, what a name stands for never changes, and
the index is replaced in one step: readers see the releases of before or of after. One
process writes: see `watcher` for who publishes when, `follower` for who reads.

Source: paper §2.2.2.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from absl import logging
from etils import epath

from nim4_jax import whole_file
from nim4_jax.train.multihost import consensus
from nim4_jax.types import Params
from nim4_jax.weights import snapshot

T = TypeVar("T")

INDEX = "index.json"
_FORMAT = 1
_INCOMING = "incoming.safetensors"


@dataclasses.dataclass(frozen=True)
class Release:
    """One encoder of a folder.

    Attributes:
        name: file name of the snapshot.
        step: steps of stage 1 that made it.
        cka: CKA with the reference before it; None when there was none.
        checksum: SHA-256 of the file, in hex.
        final: whether stage 1 ended with it.
    """

    name: str
    step: int
    cka: float | None
    checksum: str
    final: bool


def store(folder: str, params: Params, *, step: int, meta: dict[str, Any]) -> Release:
    """Write a snapshot into the folder; the index does not name it yet.

    Args:
        folder: local path or gs://BUCKET/PATH; made if missing.
        params: nested dict of arrays that this process can read.
        step: steps of stage 1 that made them.
        meta: JSON-able facts for the file's header.
    """
    root = epath.Path(folder)
    with tempfile.TemporaryDirectory() as scratch:
        # Beside its place, to be renamed; what a crash left there is overwritten.
        place = os.fspath(root) if _is_local(root) else scratch
        incoming = os.path.join(place, _INCOMING)
        snapshot.write(incoming, params, meta)
        checksum = _hash(incoming)
        name = f"encoder-{step:09d}-{checksum[:8]}.safetensors"
        if _is_local(root):
            os.replace(incoming, root / name)
        else:
            epath.Path(incoming).copy(root / name, overwrite=True)
    return Release(name, step, None, checksum, False)


def publish(
    folder: str,
    params: Params,
    *,
    step: int,
    cka: float | None,
    final: bool,
    meta: dict[str, Any],
) -> Release:
    """Write a snapshot, then list it.

    Doing it again after a crash changes nothing. A resumed run that has become another
    one takes back what the index says of this step and later; the files stay for those
    who use them. Only the last release is final: a run that goes on clears the mark.

    Args:
        folder, params, step, meta: as for `store`.
        cka: CKA with the reference, None without one.
        final: whether stage 1 ends here.

    Returns:
        What the index says.

    Raises:
        ValueError: the folder holds another index.json than ours.
    """
    stored = store(folder, params, step=step, meta=meta)
    release = dataclasses.replace(stored, cka=cka, final=final)
    listed = read_index(folder)
    for old in listed:
        if (old.name, old.final) == (release.name, final):
            return old
    earlier = [old for old in listed if old.step < step]
    earlier = [dataclasses.replace(old, final=False) for old in earlier]
    _write_index(folder, [*earlier, release])
    return release


def _write_index(folder: str, releases: list[Release]) -> None:
    entries = [dataclasses.asdict(release) for release in releases]
    content = {"format": _FORMAT, "releases": entries}
    text = json.dumps(content, indent=1, allow_nan=False)
    whole_file.write_text(epath.Path(folder) / INDEX, text + "\n")


def read_index(folder: str) -> tuple[Release, ...]:
    """The releases by rising step; none when nothing has been published yet.

    Raises:
        ValueError: index.json cannot be read or is not ours.
    """
    path = epath.Path(folder) / INDEX
    try:
        content = json.loads(path.read_bytes())
        if content["format"] != _FORMAT:
            raise ValueError(f"format {content['format']!r}, expected {_FORMAT}")
        releases = tuple(Release(**entry) for entry in content["releases"])
        steps = [release.step for release in releases]
        if steps != sorted(set(steps)) or any(old.final for old in releases[:-1]):
            raise ValueError("steps must rise, and only the last release be final")
    except FileNotFoundError:
        return ()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is no index of encoder releases ({error!r}); name the folder into "
            "which stage 1 publishes, or an empty one."
        ) from error
    return releases


def load(folder: str, release: Release) -> Params:
    """The parameters of a release, as float32 host arrays.

    Raises:
        ValueError: the file is gone, unreadable, or another than was published.
    """
    path = epath.Path(folder) / release.name
    try:
        with _fetch(path) as local:
            checksum = _hash(local)
            if checksum != release.checksum:
                raise ValueError(
                    f"{path} is corrupt: its checksum is {checksum[:12]}…, expected "
                    f"{release.checksum[:12]}…; copy it again from where it is whole"
                )
            params, _ = snapshot.read(local)
    except OSError as error:
        raise ValueError(f"{path} was deleted or is out of reach ({error})") from error
    return params


def try_load(folder: str, release: Release) -> Params | None:
    """The parameters of a release, or None and a warning that says why not."""
    try:
        return load(folder, release)
    except ValueError as error:
        logging.warning("this encoder release cannot be used: %s", error)
        return None


def _is_local(path: epath.Path) -> bool:
    return "://" not in os.fspath(path)


def _hash(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _fetch(path: epath.Path) -> Iterator[str]:
    """A local file with the content of `path`."""
    with tempfile.TemporaryDirectory() as scratch:
        local = _is_local(path)
        yield os.fspath(path if local else path.copy(f"{scratch}/{path.name}"))


def wait_first(
    folder: str,
    limit_seconds: float,
    poll_seconds: float,
    sleep: Callable[[float], None] = time.sleep,
) -> Release:
    """The first release of the folder, as soon as there is one.

    Args:
        folder: local path or gs://BUCKET/PATH; need not exist yet.
        limit_seconds: longest wait.
        poll_seconds: time between two looks.
        sleep: how to wait.

    Raises:
        TimeoutError: still nothing after `limit_seconds`.
        ValueError: the folder holds another index.json, or no time between two looks.
    """

    def look() -> Release | None:
        return next(iter(read_index(folder)), None)

    what = f"encoder release in {folder}"
    return wait(lambda: _see(look), what, limit_seconds, poll_seconds, sleep)


def wait_final(
    folder: str,
    limit_seconds: float,
    poll_seconds: float,
    sleep: Callable[[float], None] = time.sleep,
) -> Release:
    """The release that stage 1 ended with, as soon as it is listed.

    An index that cannot be read is warned of, and waited for like a missing one.

    Args: those of `wait_first`.

    Raises:
        TimeoutError: stage 1 has not ended after `limit_seconds`.
        ValueError: no time between two looks.
    """

    def look() -> Release | None:
        try:
            listed = read_index(folder)
        except ValueError as error:
            logging.warning("%s", error)
            return None
        return listed[-1] if listed and listed[-1].final else None

    what = f"final encoder release in {folder}"
    return wait(lambda: _see(look), what, limit_seconds, poll_seconds, sleep)


def _see(look: Callable[[], Release | None]) -> Release | None:
    """What host 0 finds; on several hosts all wait, one look at a time."""

    def describe() -> dict[str, Any] | None:
        found = look()
        return None if found is None else dataclasses.asdict(found)

    fields = consensus.lead(describe)
    return None if fields is None else Release(**fields)


def wait(
    look: Callable[[], T | None],
    what: str,
    limit_seconds: float,
    poll_seconds: float,
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """Look until there is something.

    Args:
        look: what is waited for, None as long as it is not there.
        what: its name in messages.
        limit_seconds, poll_seconds, sleep: as for `wait_first`.

    Raises:
        TimeoutError: still nothing after `limit_seconds`.
        ValueError: no time between two looks.
    """
    if poll_seconds <= 0:
        raise ValueError(f"poll_seconds is {poll_seconds}; give more than 0 seconds.")
    waited = 0.0
    while (found := look()) is None:
        if waited >= limit_seconds:
            raise TimeoutError(
                f"no {what} after {waited:.0f} s; start stage 1 with this folder, or "
                "allow a longer wait."
            )
        logging.info("no %s yet: waited %.0f s", what, waited)
        pause = min(poll_seconds, limit_seconds - waited)
        sleep(pause)
        waited += pause
    return found
