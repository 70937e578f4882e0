"""The encoder release that stages 2 and 3 train on at each step.

What was decided is a small JSON-able dict; kept in each checkpoint, it makes a resumed
run go on as it was going.

Source: paper §2.2.2.
"""

from __future__ import annotations

import dataclasses
from typing import Any, TypedDict

from absl import logging

from nim4_jax.train.multihost import consensus
from nim4_jax.train.releases import store
from nim4_jax.train.releases.store import Release
from nim4_jax.types import Params


class FollowerState(TypedDict):
    """State of a follower, kept in checkpoints.

    Attributes:
        decided: last step of which something was decided, -1 at first.
        history: {"step": steps done when it was taken, "release": fields of the
            Release} of each encoder used; the last one is in use.
    """

    decided: int
    history: list[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Follower:
    """Which release stage 2 or 3 trains on.

    Releases are taken in turn, or, with `newest`, the newest first; each has its least
    number of steps. The last `last_steps` are the final one's, which is waited for if
    need be; it may come earlier. What a step decides hangs on what is published by
    then, so that decisions are binding: a checkpoint must follow each of them.

    Attributes:
        steps: length of the run.
        every: decisions are taken at multiples of it, and where the last steps begin.
        min_steps: least steps on one encoder; 0 stays on the first (until the last
            steps).
        last_steps: least steps on the final encoder; 0 does not ask for it.
        newest: pass over all but the newest release.
    """

    steps: int
    every: int
    min_steps: int = 0
    last_steps: int = 0
    newest: bool = False

    def __post_init__(self):
        least = max(self.min_steps, 0) + max(self.last_steps, 0)
        if self.every < 1 or min(self.min_steps, self.last_steps) < 0:
            raise ValueError(
                f"{self} cannot follow: expected every ≥ 1, min_steps and "
                "last_steps ≥ 0."
            )
        if least > self.steps:
            raise ValueError(
                f"{self} cannot follow: min_steps + last_steps are more than the "
                f"{self.steps} steps of the run."
            )

    @property
    def deadline(self) -> int:
        """Where the last steps begin; `steps` where there are none."""
        return self.steps - self.last_steps

    def start(self) -> FollowerState:
        """No encoder yet."""
        return {"decided": -1, "history": []}

    def is_due(self, state: FollowerState, step: int) -> bool:
        """Whether another encoder may be taken after `step` steps.

        encoder in use                 due
        any, after `steps`             never
        none yet                       at any step
        the final one                  never
        any other, at the deadline     yes, if there are last steps
        any other, after it            at multiples of `every`: the final one was lost
        any other, before it           there too, after `min_steps` steps on it

        Nothing is decided twice for a step.
        """
        if step >= self.steps or not state["history"]:
            return step < self.steps
        now = state["history"][-1]
        if now["release"]["final"] or step <= state["decided"]:
            return False
        if self.is_late(step):
            return step == self.deadline or step % self.every == 0
        ready = self.min_steps and step - now["step"] >= self.min_steps
        return bool(ready) and step % self.every == 0

    def is_late(self, step: int) -> bool:
        """Whether only the final encoder will do."""
        return self.last_steps > 0 and step >= self.deadline

    def reach(self, index: tuple[Release, ...]) -> int:
        """The step up to which a run need not wait; -1 where it cannot begin.

        releases listed     last steps     reach
        none                any            -1
        not the final one   none           `steps`
        not the final one   some           the step before the deadline
        the final one       any            `steps`
        """
        if not index:
            return -1
        waits = self.last_steps > 0 and not index[-1].final
        return self.deadline - 1 if waits else self.steps

    def rank(
        self, state: FollowerState, index: tuple[Release, ...], step: int
    ) -> tuple[Release, ...]:
        """Releases that may follow the one in use; the first that can be read does.

        None but the final one is taken where it could not have its least steps before
        the deadline, unless there is none in use.
        """
        used = present(state)
        if used is None:
            backwards = self.newest or self.is_late(step)
            return index[::-1] if backwards else index
        short = step + max(self.min_steps, 1) > self.deadline
        later = [old for old in index if old.step > used.step]
        later = [old for old in later if old.final or not short]
        return tuple(reversed(later) if self.newest else later)

    def take(self, state: FollowerState, release: Release, step: int) -> FollowerState:
        """The state once the release is in use."""
        segment = {"step": step, "release": dataclasses.asdict(release)}
        return {"decided": step, "history": [*state["history"], segment]}


def present(state: FollowerState) -> Release | None:
    """The release in use, None before the first."""
    if not state["history"]:
        return None
    return Release(**state["history"][-1]["release"])


def _read_index(folder: str) -> tuple[Release, ...]:
    """The releases as host 0 sees them; none where the list cannot be read."""

    def look() -> list[dict[str, Any]]:
        try:
            return [dataclasses.asdict(old) for old in store.read_index(folder)]
        except ValueError as error:
            logging.warning("%s", error)
            return []

    return tuple(Release(**fields) for fields in consensus.lead(look))


def follow(
    folder: str, follower: Follower, state: FollowerState, step: int
) -> tuple[FollowerState, Params | None]:
    """Change the encoder where it is due; between two steps of stage 2 or 3.

    A release that was deleted or is corrupt is passed over with a warning, and tried
    again at the next decision; the encoder in use stays if there is no other. On
    several hosts all call this: each looks at the list as host 0 sees it, and a release
    that one of them cannot read is for none.

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
    index = _read_index(folder)
    later = follower.rank(state, index, step)
    for release in later:
        params = store.try_load(folder, release)
        if consensus.everywhere(params is not None):
            logging.info("step %d takes encoder release %s", step, release.name)
            return follower.take(state, release, step), params
    if used is None:
        raise ValueError(
            f"none of the {len(index)} encoder releases that {folder} lists can be "
            "used; wait for the first one, or publish it again."
        )
    if later or not index:
        logging.warning("step %d goes on with encoder release %s", step, used.name)
    return {**state, "decided": step}, None
