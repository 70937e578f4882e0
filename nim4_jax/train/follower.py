"""Which encoder release stages 2 and 3 train on, and until when.

What was decided is a small JSON-able dict; kept in each checkpoint, it makes a resumed
run go on as it was going.

Source: paper §2.2.2.
"""

from __future__ import annotations

import dataclasses
from typing import Any, TypedDict

from absl import logging

from nim4_jax.train import releases
from nim4_jax.train.releases import Release
from nim4_jax.types import Params


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
        index = releases.read_index(folder)
    except ValueError as error:
        logging.warning("%s", error)
        index = ()
    later = follower.rank(state, index)
    for release in later:
        params = releases.try_load(folder, release)
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
