"""Callback of stages 2 and 3 that swaps in the encoders that stage 1 publishes."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from nim4_jax import sharding
from nim4_jax.train import optim
from nim4_jax.train.callbacks import Outcome
from nim4_jax.train.releases import schedule as following
from nim4_jax.train.releases import store
from nim4_jax.train.releases.encoder_probe import take_parts
from nim4_jax.train.releases.schedule import Follower, FollowerState
from nim4_jax.train.state import TrainState, describe_misfits
from nim4_jax.types import Params

ENCODER_STEP = "releases/encoder_step"


@dataclasses.dataclass(frozen=True)
class FollowConfig:
    """Settings of following: the folder, and how long each release is trained on.

    Attributes:
        folder: where stage 1 publishes, local or gs://; "" follows nothing.
        min_steps: least steps on one encoder; 0 stays on the first.
        last_steps: least steps on the final encoder; 0 does not ask for it.
        newest: pass over all but the newest release.
        limit_seconds: longest wait for the first and for the final release.
        poll_seconds: time between two looks.
    """

    folder: str = ""
    min_steps: int = 0
    last_steps: int = 0
    newest: bool = False
    limit_seconds: float = 86_400.0
    poll_seconds: float = 20.0

    def follower(self, steps: int, every: int) -> Follower:
        """The rule for a run of `steps`, decided at multiples of `every`.

        Raises:
            ValueError: numbers that cannot work.
        """
        return Follower(steps, every, self.min_steps, self.last_steps, self.newest)


def swap(params: Params, given: Params, origin: str) -> Params:
    """The parameters with the encoder, its features' statistics and head exchanged.

    Args:
        params: of the run; what is exchanged keeps its dtype and sharding.
        given: "cmvn", "encoder", "ctc_head" of a release; what `params` lacks of it is
            left out.
        origin: name of the release, for the error.

    Raises:
        ValueError: something is missing or has another shape, by path.
    """
    old, new = optim.flatten(params), optim.flatten(given)
    wanted = optim.flatten(take_parts(params))
    if wrong := describe_misfits(wanted, new):
        raise ValueError(
            f"encoder release {origin} is of another model: {wrong}. Give both runs "
            "the same config.model."
        )
    for path, leaf in wanted.items():
        # A copy: the state is donated, and the host's memory is not ours to give.
        copied = jnp.array(new[path], leaf.dtype, copy=True)
        old[path] = sharding.place(copied, leaf.sharding)
    return optim.unflatten(old)


class Subscriber:
    """Waits for the first encoder, exchanges it as the follower says, and keeps record.

    The optimizer state is that of what trains, so it stays. Binding: what is published
    by then decides.
    """

    name = "follow"

    def __init__(
        self,
        config: FollowConfig,
        follower: Follower,
        sleep: Callable[[float], None] = time.sleep,
    ):
        """Take where releases come from, the rule, and how to wait."""
        self._folder, self._follower = config.folder, follower
        self._pace = (config.limit_seconds, config.poll_seconds, sleep)
        self._state: FollowerState = follower.start()

    def first_encoder(self) -> Params:
        """The encoder that a fresh run begins with; waits for it.

        Raises:
            TimeoutError: there is none in time.
            ValueError: there are some, and none can be used.
        """
        self._wait(0)
        start = self._follower.start()
        _, params = following.follow(self._folder, self._follower, start, 0)
        return params or {}

    def is_due(self, step: int, last: bool) -> bool:
        """Whether another encoder may be taken after this step."""
        return self._follower.is_due(self._state, step)

    def after_step(self, state: TrainState, step: int, last: bool) -> Outcome:
        """Exchange the encoder if there is another one to take.

        Raises:
            TimeoutError: the first or the final release did not come in time.
            ValueError: the release is of another model.
        """
        self._wait(step)
        self._state, params = following.follow(
            self._folder, self._follower, self._state, step
        )
        release = following.present(self._state)
        assert release is not None  # else `follow` has raised
        if params is not None:
            state = dataclasses.replace(
                state, params=swap(state.params, params, release.name)
            )
        return Outcome(state, True, {ENCODER_STEP: float(release.step)})

    def _wait(self, step: int) -> None:
        """For the first release, and once for the final one where the last steps begin.

        Later a final release that has vanished is not waited for again.
        """
        if not self._state["history"]:
            store.wait_first(self._folder, *self._pace)
        late = self._follower.is_late(step)
        if late and self._state["decided"] < self._follower.deadline:
            store.wait_final(self._folder, *self._pace)

    def get_state(self) -> dict[str, Any]:
        """Which release was taken at which step."""
        return dict(self._state)

    def set_state(self, saved: dict[str, Any]) -> None:
        """Go on from there."""
        self._state = FollowerState(**saved)
