"""Encoder releases: stage 1 publishes them, stages 2 and 3 train on them meanwhile.

A release is a snapshot in a folder, local or gs://, that the index there lists:

    FOLDER/encoder-000500000-1a2b3c4d.safetensors    its step and checksum in the name
    FOLDER/index.json    {"format": 1, "releases": [{"name": …, "step": …, …}, …]}

A file is whole before the index names it, what a name stands for never changes, and
the index is replaced in one step: readers see the releases of before or of after. One
process writes. What either side has decided is a small JSON-able dict; kept in each
checkpoint, it makes a resumed run go on as it was going.

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
from typing import Any, TypedDict

from absl import logging
from etils import epath

from nim4_jax.types import Params
from nim4_jax.weights import snapshot

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
    data = (json.dumps(content, indent=1, allow_nan=False) + "\n").encode()
    path = epath.Path(folder) / INDEX
    if _is_local(path):
        temporary = path.with_name(f"{INDEX}.tmp")
        temporary.write_bytes(data)
        os.replace(temporary, path)
    else:
        # An object store shows what is written only when it is whole.
        path.write_bytes(data)


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


def _try_load(folder: str, release: Release) -> Params | None:
    """The parameters, or None and a warning that says why not."""
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
    if poll_seconds <= 0:
        raise ValueError(f"poll_seconds is {poll_seconds}; give more than 0 seconds.")
    waited = 0.0
    while not (index := read_index(folder)):
        if waited >= limit_seconds:
            raise TimeoutError(
                f"no encoder release in {folder} after {waited:.0f} s; start stage 1 "
                "with this folder, or allow a longer wait."
            )
        logging.info("no encoder release in %s yet: waited %.0f s", folder, waited)
        pause = min(poll_seconds, limit_seconds - waited)
        sleep(pause)
        waited += pause
    return index[0]


class WatcherState(TypedDict):
    """What stage 1 has decided.

    Attributes:
        decided: last step of which something was decided, -1 at first.
        reference: fields of the Release to compare with, None before the first.
    """

    decided: int
    reference: dict[str, Any] | None


@dataclasses.dataclass(frozen=True)
class Watcher:
    """When stage 1 publishes.

    Attributes:
        from_step: where the first reference is taken.
        every: steps between two comparisons with it.
        threshold: a CKA below it means that the encoder has become another one.
    """

    from_step: int
    every: int
    threshold: float = 0.975

    def __post_init__(self):
        if self.from_step < 0 or self.every < 1 or not 0 < self.threshold <= 1:
            raise ValueError(
                f"{self} cannot watch: expected from_step ≥ 0, every ≥ 1 and a "
                "threshold in (0, 1]."
            )

    def start(self) -> WatcherState:
        """Nothing decided, no reference."""
        return {"decided": -1, "reference": None}

    def is_due(self, state: WatcherState, step: int, last: bool) -> bool:
        """Whether something is to be decided after `step` steps, for the first time."""
        after = step - self.from_step
        due = last or (after >= 0 and after % self.every == 0)
        return due and step > state["decided"]

    def decide(self, cka: float | None, last: bool) -> str:
        """What becomes of the live encoder.

            last  CKA with the reference    verdict
            no    no reference              refer: the reference, not published
            no    threshold or more         keep: the old reference stays
            no    below the threshold       publish, and the reference
            yes   anything                  publish, as final

        Raises:
            ValueError: a CKA that is not a number between 0 and 1.
        """
        if cka is not None and not 0 <= cka <= 1:
            raise ValueError(f"CKA is {cka}, expected a number from 0 to 1.")
        if last:
            return "publish"
        if cka is None:
            return "refer"
        return "publish" if cka < self.threshold else "keep"


def watch(
    folder: str,
    watcher: Watcher,
    state: WatcherState,
    params: Params,
    *,
    step: int,
    last: bool,
    compare: Callable[[Params], float],
    meta: dict[str, Any],
) -> WatcherState:
    """Publish the live encoder where it is due; between two steps of stage 1.

    Args:
        folder: where releases go.
        watcher: when to publish.
        state: what was decided before.
        params: the live encoder.
        step: steps done.
        last: whether stage 1 ends here.
        compare: parameters of the reference → CKA of the live encoder with it.
        meta: JSON-able facts for the file's header.

    Returns:
        The new state, for the checkpoint of this step.

    Raises:
        ValueError: a CKA that is not a number from 0 to 1, or a foreign index.json.
    """
    if not watcher.is_due(state, step, last):
        return state
    cka = None
    if state["reference"] is not None:
        reference = _try_load(folder, Release(**state["reference"]))
        cka = None if reference is None else compare(reference)
    verdict = watcher.decide(cka, last)
    logging.info("encoder of step %d, CKA %s: %s", step, cka, verdict)
    if verdict == "keep":
        return {**state, "decided": step}
    if verdict == "refer":
        release = store(folder, params, step=step, meta=meta)
    else:
        release = publish(folder, params, step=step, cka=cka, final=last, meta=meta)
    return {"decided": step, "reference": dataclasses.asdict(release)}


class FollowerState(TypedDict):
    """What a follower has decided.

    Attributes:
        decided: last step of which something was decided, -1 at first.
        history: {"step": steps done when it was taken, "release": fields of the
            Release} of each encoder used; the last one is in use.
        last_from: step at which the last segment began, None before.
    """

    decided: int
    history: list[dict[str, Any]]
    last_from: int | None


@dataclasses.dataclass(frozen=True)
class Follower:
    """Which release stage 2 or 3 trains on, and until when.

    Releases are taken in turn, or, with `newest`, the newest first. What a step decides
    hangs on what is published by then, so a run is repeated exactly only from steps
    whose decisions were kept: let `every` be the steps between two checkpoints.

    Attributes:
        min_steps: least steps on one encoder before the next.
        last_steps: steps on the final encoder; then training ends.
        every: decisions are taken at multiples of it.
        newest: pass over all but the newest release.
    """

    min_steps: int
    last_steps: int
    every: int
    newest: bool = False

    def __post_init__(self):
        if min(self.min_steps, self.last_steps, self.every) < 1:
            raise ValueError(
                f"{self} cannot follow: expected min_steps, last_steps, every ≥ 1."
            )

    def start(self) -> FollowerState:
        """No encoder yet."""
        return {"decided": -1, "history": [], "last_from": None}

    def is_due(self, state: FollowerState, step: int) -> bool:
        """Whether another encoder may be taken after `step` steps.

        encoder in use                        due
        none yet                              at any step
        the final one                         never
        since fewer than `min_steps` steps    no
        any other                             at multiples of `every`, once a step
        """
        if not state["history"]:
            return True
        now = state["history"][-1]
        fresh = step > state["decided"] and step % self.every == 0
        ready = step - now["step"] >= self.min_steps
        return fresh and ready and not now["release"]["final"]

    def rank(
        self, state: FollowerState, index: tuple[Release, ...]
    ) -> tuple[Release, ...]:
        """The releases after the one in use; the first that can be read is next."""
        used = present(state)
        later = [old for old in index if used is None or old.step > used.step]
        return tuple(reversed(later) if self.newest else later)

    def take(self, state: FollowerState, release: Release, step: int) -> FollowerState:
        """The state once the release is in use."""
        segment = {"step": step, "release": dataclasses.asdict(release)}
        return {
            "decided": step,
            "history": [*state["history"], segment],
            "last_from": step if release.final else None,
        }

    def stay(
        self, state: FollowerState, index: tuple[Release, ...], step: int
    ) -> FollowerState:
        """The state once the encoder in use is kept though others may be listed.

        Where stage 1 has ended, the last segment begins: its final encoder cannot be
        read, or is the one in use.
        """
        begun = state["last_from"]
        if begun is None and index and index[-1].final:
            begun = step
        return {**state, "decided": step, "last_from": begun}

    def is_finished(self, state: FollowerState, step: int) -> bool:
        """Whether the last segment is over after `step` steps."""
        begun = state["last_from"]
        return begun is not None and step >= begun + self.last_steps


def present(state: FollowerState) -> Release | None:
    """The release in use, None before the first."""
    if not state["history"]:
        return None
    return Release(**state["history"][-1]["release"])


def follow(
    folder: str, follower: Follower, state: FollowerState, step: int
) -> tuple[FollowerState, Params | None]:
    """Change the encoder where it is due; between two steps of stage 2 or 3.

    A release that was deleted or is corrupt is passed over with a warning, and tried
    again at the next decision; the encoder in use stays if there is no other.

    Args:
        folder: where releases come from.
        follower: when to change.
        state: what was decided before.
        step: steps done.

    Returns:
        The new state, for the checkpoint of this step, and the parameters of the next
        encoder, None to go on with the present one.

    Raises:
        ValueError: there is no encoder in use and none to take.
    """
    if not follower.is_due(state, step):
        return state, None
    used = present(state)
    try:
        index = read_index(folder)
    except ValueError as error:
        logging.warning("%s", error)
        index = ()
    later = follower.rank(state, index)
    for release in later:
        params = _try_load(folder, release)
        if params is not None:
            logging.info("step %d takes encoder release %s", step, release.name)
            return follower.take(state, release, step), params
    if used is None:
        raise ValueError(
            f"none of the {len(index)} encoder releases that {folder} lists can be "
            "used; wait for the first one, or publish it again."
        )
    if later or not index:
        logging.warning("step %d goes on with encoder release %s", step, used.name)
    return follower.stay(state, index, step), None
