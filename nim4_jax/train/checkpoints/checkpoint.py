"""Checkpoints of a run: train state, data iterator and facts in one bundle."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers

from nim4_jax import sharding
from nim4_jax.train import optim
from nim4_jax.train.checkpoints import checksums, frozen
from nim4_jax.train.checkpoints.frozen import FrozenStore
from nim4_jax.train.checkpoints.stored_arrays import CorruptError
from nim4_jax.train.checkpoints.stored_step import StoredStep
from nim4_jax.train.multihost import consensus
from nim4_jax.train.state import Skips, TrainState
from nim4_jax.types import Params

T = TypeVar("T")

_FOLDER = "checkpoints"
_BROKEN = "broken"


class _Manager(ocp.CheckpointManager):
    """Orbax's, without two things that it would do late, in threads of its own.

    Clearing the folder: nobody waits for it before the first save, and a run that ends
    early would cut it off. And telling JAX's preemption service the step that it saves:
    the service counts on steps that only rise, and the loop sees to preemption.
    """

    def __init__(self, directory: epath.Path, options: ocp.CheckpointManagerOptions):
        super().__init__(directory, options=options)
        self._maybe_await_cleanup_tmp_directory()

    def reached_preemption(self, step: int) -> bool:
        del step
        return False


class Checkpoints:
    """Saves and restores {state, data, meta} under WORKDIR/checkpoints/STEP.

    Orbax writes each step under a temporary name and renames it when complete, so what
    was cut off is never taken for whole. It writes beside the training: `save` waits
    until the state is copied to the host's memory, and for the save before.

    Parameters that the run freezes are not in the steps: they are written once beside
    them, before the first step that links to them, and go with the last one.

    Every checkpoint is of the whole run: any number of hosts and any mesh may restore
    it. On several hosts, each calls every method, in the same order.

    Attributes:
        every: steps between two saves.
        stalled: seconds in which `save` and `wait` held up their caller so far.
    """

    def __init__(
        self,
        workdir: str,
        every: int,
        keep: int = 2,
        keep_every: int = 0,
        fallback: bool = False,
        rules: optim.Rules = (),
    ):
        """Open the folder, and clear away what a killed run has left half written.

        Args:
            workdir: of the run.
            every: steps between two saves.
            keep: how many of the newest checkpoints stay.
            keep_every: those at multiples of it stay for ever; 0 for none.
            fallback: where the newest checkpoint is broken, move it aside and take the
                one before.
            rules: of the recipe; what they freeze is written once. () to write
                everything with each step.

        Raises:
            ValueError: numbers that cannot work.
            OSError: the folder cannot be made or cleared.
        """
        if keep < 1 or keep_every < 0 or every < 1:
            raise ValueError(
                f"checkpoint_every={every}, checkpoint_keep={keep} and "
                f"checkpoint_keep_every={keep_every}: give 1 or more, 1 or more and 0 "
                "or more."
            )
        self.every = every
        self.stalled = 0.0
        self._fallback, self._rules = fallback, rules
        self._saving, self._size = 0, 0
        self._pending = self._failed = False
        folder = (epath.Path(workdir) / _FOLDER).absolute()
        self._store = FrozenStore(folder)
        kept: list[Any] = [checkpoint_managers.LatestN(keep)]
        if keep_every:
            kept.append(checkpoint_managers.EveryNSteps(keep_every))
        self._manager = _Manager(
            folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=checkpoint_managers.AnyPreservationPolicy(kept),
                create=True,
                cleanup_tmp_directories=True,
                # Else, where a folder cannot be made, threads wait for it for minutes.
                async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
            ),
        )
        # What a killed run wrote, and linked to from nowhere, nobody has read.
        self._store.sweep()

    def latest_step(self) -> int | None:
        """The last complete step, None when there is none."""
        return self._manager.latest_step()

    def save(self, state: TrainState, data: Any, meta: dict[str, Any]) -> None:
        """Begin to save the state and the iterator that will deliver its next batch.

        A step that is saved already stays as it is. When this returns, the buffers of
        the state may be donated, and the iterator moved on.

        Raises:
            OSError: this checkpoint, or the one before, could not be written.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        with self._writing():
            self._manager.wait_until_finished()
            self._saving, self._pending = step, True
            self._size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
            position = data.get_state()
            moving, link, sums = self._put_frozen(state)
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(moving),
                    checksums=ocp.args.JsonSave(sums),
                    frozen=ocp.args.JsonSave(link),
                    data=ocp.args.JsonSave(position),
                    meta=ocp.args.JsonSave(meta),
                ),
            )

    def _put_frozen(
        self, state: TrainState
    ) -> tuple[TrainState, frozen.Link, dict[str, int]]:
        """Write frozen parameters that are not there yet, once no other save goes on.

        Returns:
            The state without them, where they lie, checksums of that state's leaves.
        """
        params, still = frozen.split(state.params, self._rules)
        sums = checksums.sum_leaves(state)
        link = self._store.put(
            still, {path: sums.pop(f"params/{path}") for path in still}
        )
        # Steps that the last save has deleted needed these no more.
        self._store.sweep(link.values())
        moving = dataclasses.replace(state, params=params)
        self._size = sum(leaf.nbytes for leaf in jax.tree.leaves(moving))
        return moving, link, sums

    def wait(self) -> None:
        """Until what was saved last is whole.

        Raises:
            OSError: it could not be written.
        """
        with self._writing():
            self._manager.wait_until_finished()
        self._pending = False

    def check(self) -> None:
        """Notice a save that has failed meanwhile; waits for nothing.

        Raises:
            OSError: it could not be written.
        """
        if self._pending and not self._manager.is_saving_in_progress():
            self.wait()

    def restore(self, state: TrainState, data: Any) -> TrainState:
        """The latest state, with the shardings of `state`; moves the iterator there.

        Args:
            state: arrays or shapes of the same structure.
            data: iterator of the same data configuration, on any host of any number.

        Raises:
            ValueError: nothing to restore, a broken checkpoint and no leave to fall
                back, a state of other shapes, or other data.
        """

        def read(stored: StoredStep) -> tuple[TrainState, dict[str, Any]]:
            stored.read_meta()  # it has to be whole as well
            if state.skips is not None and not stored.read_shapes().get("skips"):
                uncounted = stored.read_state(dataclasses.replace(state, skips=None))
                # Of before skipped steps were counted.
                counters = sharding.replicate(Skips.none())
                return dataclasses.replace(
                    uncounted, skips=counters
                ), stored.read_position()
            return stored.read_state(state), stored.read_position()

        restored, position = self._read(read)
        try:
            data.set_state(position)
        except (LookupError, TypeError) as error:
            place = self._manager.directory / str(self.latest_step()) / "data"
            raise ValueError(
                f"the place in the data that {place} tells is damaged ({error!r}); put "
                "back the file, or the checkpoint before."
            ) from error
        data.start_prefetch()
        return restored

    def param_shapes(self) -> Params:
        """Shapes and dtypes of the parameters in the latest checkpoint.

        Raises:
            ValueError: there is no checkpoint yet, or a broken one.
        """
        return self._read(StoredStep.read_shapes)["params"]

    def read_meta(self) -> dict[str, Any]:
        """The facts of the latest checkpoint.

        Raises:
            ValueError: there is no checkpoint yet, or a broken one.
        """
        return self._read(StoredStep.read_meta)

    def close(self) -> None:
        """Wait for what is being written.

        Raises:
            OSError: it could not be written, and nobody was told so far.
        """
        try:
            if not self._failed:
                self.wait()
                self._store.sweep()
        finally:
            with contextlib.suppress(Exception):  # what there is to say was said
                self._manager.close()

    def _read(self, read: Callable[[StoredStep], T]) -> T:
        """What the newest checkpoint gives, or the next one where that is allowed.

        All hosts take the same one.
        """
        self.wait()
        broken: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            found, problem = _attempt(read, self._stored(step))
            if problem is None:
                for number, reason in broken.items():
                    self._set_aside(number, reason)
                return found
            broken[step] = problem
            if not self._fallback:
                break
        if not broken:
            raise ValueError("there is no checkpoint yet; train first.")
        problem = next(iter(broken.values()))
        older = [step for step in self._manager.all_steps() if step not in broken]
        raise ValueError(self._advise(problem, sorted(older), read))

    def _stored(self, step: int) -> StoredStep:
        return StoredStep(self._manager.directory / str(step))

    def _advise(
        self, problem: str, older: list[int], read: Callable[[StoredStep], Any]
    ) -> str:
        """What is broken, what is whole, and what to do."""
        whole = [s for s in older if _attempt(read, self._stored(s))[1] is None]
        if not whole:
            cure = "No older checkpoint can be read; put back the files, or start anew."
        else:
            cure = (
                f"Checkpoints that can be read: {', '.join(map(str, whole))}. Put back "
                "the files, or go on from the newest of these with --restore_fallback."
            )
        return f"the newest checkpoint is broken. {problem}. {cure}"

    def _set_aside(self, step: int, problem: str) -> None:
        """Rename a broken checkpoint, so that another one may take its place."""
        folder = self._manager.directory / str(step)
        aside = folder.with_name(f"{step}.{_BROKEN}")
        number = 1
        while aside.exists():
            number += 1
            aside = folder.with_name(f"{step}.{_BROKEN}-{number}")
        _meet("choose")
        if jax.process_index() == 0:
            folder.rename(aside)
        _meet("renamed")
        self._manager.reload()
        logging.warning(
            "a broken checkpoint is skipped and kept as %s: %s", aside, problem
        )

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Count the time, and say what an error means."""
        began = time.perf_counter()
        try:
            yield
        except Exception as error:
            self._failed = True
            raise OSError(self._explain(error)) from error
        finally:
            self.stalled += time.perf_counter() - began

    def _explain(self, error: Exception) -> str:
        folder = self._manager.directory
        room = ""
        if "://" not in os.fspath(folder):
            free = shutil.disk_usage(folder.parent).free
            room = f" (it takes about {_size(self._size)}; {_size(free)} are free)"
        intact = latest_step(os.fspath(folder.parent))
        kept = (
            "No checkpoint was complete before it"
            if intact is None
            else f"The checkpoint of step {intact} is intact"
        )
        reason = " ".join(str(error).split())[:300]
        return (
            f"the checkpoint of step {self._saving} could not be written to {folder}"
            f"{room}: {reason}. {kept}; mend this and run the same command again."
        )


def _attempt(
    read: Callable[[StoredStep], T], stored: StoredStep
) -> tuple[Any, str | None]:
    """(what was read, None), or (None, what is wrong) if it is on any host."""
    found, problem = None, None
    try:
        found = read(stored)
    except CorruptError as error:
        problem = str(error)
    if not consensus.everywhere(problem is None) and problem is None:
        problem = f"{stored} cannot be read on another host"
    return (found, None) if problem is None else (None, problem)


def _meet(name: str) -> None:
    """All hosts wait for each other."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"checkpoints:{name}")


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e7 else f"{count / 1e3:.0f} kB"


def latest_step(workdir: str) -> int | None:
    """The last complete checkpoint of a run, None when there is none.

    Only looks: a training run may be writing there. Orbax renames a step's folder to
    its bare number when it is complete; in an object store, which has no renames, it
    adds a file that says so.
    """
    folder = epath.Path(workdir) / _FOLDER
    if not folder.is_dir():
        return None
    found = [path for path in folder.iterdir() if path.name.isdigit()]
    for path in sorted(found, key=lambda path: int(path.name), reverse=True):
        if StoredStep(path).is_whole():
            return int(path.name)
    return None


def load_params(workdir: str) -> tuple[Params, dict[str, Any]]:
    """Parameters (host arrays) and meta of a run's last checkpoint, or of RUN@STEP.

    Raises:
        ValueError: there is no complete checkpoint in the folder, not the one that is
            asked for, or a broken one.
    """
    folder, _, number = workdir.rpartition("@")
    if folder and number.isdecimal() and not epath.Path(workdir).exists():
        stored = _locate(folder, int(number))
        if not stored.is_whole():
            raise ValueError(
                f"{folder} holds no complete checkpoint of step {number}; the last one "
                f"is of step {latest_step(folder)}."
            )
        return stored.read_params(), stored.read_meta()
    step = latest_step(workdir)
    if step is None:
        raise ValueError(
            f"{workdir} holds no complete checkpoint; name the --workdir of a training "
            "run, or a .safetensors file that `nim4 snapshot` wrote."
        )
    stored = _locate(workdir, step)
    return stored.read_params(), stored.read_meta()


def load_meta(workdir: str, step: int) -> dict[str, Any]:
    """The facts of one checkpoint of a run.

    Raises:
        ValueError: they cannot be read.
    """
    return _locate(workdir, step).read_meta()


def _locate(workdir: str, step: int) -> StoredStep:
    return StoredStep((epath.Path(workdir) / _FOLDER / str(step)).absolute())
