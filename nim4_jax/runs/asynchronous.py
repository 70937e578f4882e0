"""Training of stages 1 to 3 together: in turns, or as processes side by side."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import flags, logging
from ml_collections import ConfigDict

from nim4_jax import whole_file
from nim4_jax.process import errors, logs
from nim4_jax.process.errors import Interrupted
from nim4_jax.runs import run_settings, training
from nim4_jax.runs.restart import Restart
from nim4_jax.train.checkpoints import checkpoint
from nim4_jax.train.multihost.preemption import Preemption
from nim4_jax.train.releases import store

_TURN = "turn.json"
_PATIENCE = 30.0  # seconds that a process has to save before it is killed
_LOOK = 0.5  # seconds between two looks for a signal

Clock = Callable[[str, float], None]


@dataclasses.dataclass(frozen=True, eq=False)
class Terms:
    """Settings under which the stages of a pipeline are trained.

    Attributes:
        clock: told the name of a stage and the seconds it took.
        stop: hears signals that ask the training to end.
        allowed: what is allowed where a stage is resumed.
    """

    clock: Clock = lambda name, seconds: None
    stop: Preemption = dataclasses.field(default_factory=Preemption)
    allowed: Restart = Restart()


@dataclasses.dataclass(frozen=True, eq=False)
class Member:
    """One stage of a group.

    Attributes:
        name: of its folder.
        config: the whole config, where to publish or what to follow included.
        workdir: its folder.
    """

    name: str
    config: ConfigDict
    workdir: str

    @property
    def steps(self) -> int:
        """Its length."""
        return int(self.config.steps)

    def done(self) -> int:
        """Steps of its last checkpoint; 0 without any."""
        return checkpoint.latest_step(self.workdir) or 0

    def is_finished(self) -> bool:
        """Whether there is nothing left to train."""
        return self.done() >= self.steps

    def reach(self, index: tuple[store.Release, ...]) -> int:
        """The step up to which a follower need not wait, given what is published."""
        made = run_settings.build_settings(self.config)
        assert made.follow is not None  # `link` has set the folder
        follower = made.follow.follower(made.recipe.steps, made.checkpoint_every)
        return follower.reach(index)


def link(members: Sequence[Member]) -> str:
    """Let the first publish into its folder, and the others follow that.

    Returns:
        The folder of the releases.

    Raises:
        ValueError: a stage that cannot publish, or cannot follow.
    """
    leader, *followers = members
    folder = os.path.join(leader.workdir, "releases")
    for member, key in [
        (leader, "publish"),
        *((other, "follow") for other in followers),
    ]:
        part = member.config.get(key)
        if part is None:
            raise ValueError(
                f"{member.name} has no config.{key}; a group is stage1 and then stages "
                "that follow it, as stage2 and stage3."
            )
        part.folder = folder
    return folder


def train_sequentially(members: Sequence[Member], terms: Terms) -> None:
    """The first one wholly, then its followers, in this process."""
    for member in members:
        if not member.is_finished():
            _train(member, None, terms)


def train_interleaved(
    members: Sequence[Member], folder: str, every: int, workdir: str, terms: Terms
) -> None:
    """By turns in this process: `every` steps of the first one, then of a follower.

    Followers train one after the other; one that would have to wait is passed over.
    Whose turn it is is kept in a file, so a resumed group repeats what it did.

    Args:
        members: the first one publishes.
        folder: where.
        every: steps of a turn.
        workdir: where the turn is kept.
        terms: of the training.
    """
    if every < 1:
        raise ValueError(f"turns of {every} steps; give config.slice 1 or more.")
    path = Path(workdir, _TURN)
    path.parent.mkdir(parents=True, exist_ok=True)
    by_name = {member.name: member for member in members}
    turn = json.loads(path.read_text()) if path.exists() else None
    if turn is not None and turn["name"] not in by_name:
        turn = None
    while True:
        if turn is not None and by_name[turn["name"]].done() < turn["until"]:
            _train(by_name[turn["name"]], turn["until"], terms)
        turn = next_turn(members, folder, every, turn and turn["name"])
        if turn is None:
            return
        whole_file.write_text(path, json.dumps(turn) + "\n")


def next_turn(
    members: Sequence[Member], folder: str, every: int, before: str | None
) -> dict[str, Any] | None:
    """Who trains next, and until which step; None when all are finished.

    stage 1     turn before    the first unfinished follower    next
    unfinished  a follower's   any                              stage 1
    unfinished  stage 1's      need not wait                    the follower
    unfinished  stage 1's      would wait, or there is none     stage 1
    finished    any            any                              the follower, wholly
    finished    any            none                             nobody
    """
    leader = members[0]
    follower = next((m for m in members[1:] if not m.is_finished()), None)
    if leader.is_finished():
        return follower and {"name": follower.name, "until": follower.steps}
    if follower is not None and before == leader.name:
        reach = follower.reach(store.read_index(folder))
        if reach > follower.done():
            return _turn(follower, every, reach)
    return _turn(leader, every, leader.steps)


def _turn(member: Member, every: int, most: int) -> dict[str, Any]:
    until = (member.done() // every + 1) * every
    return {"name": member.name, "until": min(until, most)}


def train_in_parallel(members: Sequence[Member], terms: Terms) -> None:
    """The first one in one process, its followers, one after the other, in another.

    A signal to this process, or to one of those, ends all; each saves its step.

    Raises:
        ChildProcessError: one of them failed; the other was stopped.
        Interrupted: a signal asked for it.
    """
    context = multiprocessing.get_context("spawn")
    waiting = [[member for member in queue] for queue in (members[:1], members[1:])]
    running: dict[int, tuple[Any, Member, float, list[Member]]] = {}

    def start(queue: list[Member]) -> None:
        while queue and queue[0].is_finished():
            queue.pop(0)
        if queue:
            member = queue.pop(0)
            arguments = (member.config, member.workdir, terms.allowed)
            process = context.Process(target=_train_child, args=arguments)
            process.start()
            running[process.sentinel] = (process, member, time.perf_counter(), queue)

    with terms.stop.deferred(), contextlib.ExitStack() as at_end:
        at_end.callback(lambda: _stop([process for process, *_ in running.values()]))
        for queue in waiting:
            start(queue)
        while running:
            terms.stop.check()
            for sentinel in multiprocessing.connection.wait(list(running), _LOOK):
                process, member, began, queue = running.pop(sentinel)
                process.join()
                terms.clock(member.name, time.perf_counter() - began)
                terms.stop.check()
                if process.exitcode == errors.EXIT_AGAIN:
                    raise Interrupted(f"{member.name} was interrupted")
                if process.exitcode != 0:
                    others = [other.name for _, other, _, _ in running.values()]
                    stopped = f" {', '.join(others)} stopped." if others else ""
                    raise ChildProcessError(
                        f"{member.name} ended with exit code {process.exitcode}; its "
                        f"own message is above.{stopped} Run the same command to go on."
                    )
                start(queue)


def _stop(processes: Sequence[Any]) -> None:
    """Let processes save and end; their checkpoints are whole at any time."""
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(_PATIENCE)
        if process.is_alive():
            process.kill()
            process.join()


def _train(member: Member, until: int | None, terms: Terms) -> None:
    began = time.perf_counter()
    try:
        training.run(
            member.config,
            member.workdir,
            until=until,
            stop=terms.stop,
            allowed=terms.allowed,
        )
    finally:
        terms.clock(member.name, time.perf_counter() - began)


def _train_child(config: ConfigDict, workdir: str, allowed: Restart) -> None:
    """One stage in a process of its own, which ends when its parent does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops us
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # Two processes may share one accelerator.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    logs.prepare()
    logging.info("%s: process %d", workdir, os.getpid())
    with Preemption(signal.SIGTERM) as stop:
        errors.guard(
            lambda _: training.run(config, workdir, stop=stop, allowed=allowed),
        )(None)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
