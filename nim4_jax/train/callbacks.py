"""The interface of callbacks, which the training loop calls between two steps.

A callback of stage 1 publishes encoders, one of stages 2 and 3 takes them, one of the
later stages measures drift. What each has decided lies in every checkpoint.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from nim4_jax.train.state import TrainState


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a callback did after a step.

    Attributes:
        state: the state to go on with.
        binding: whether something was decided that the same step need not decide again;
            a checkpoint is saved at once.
        metrics: name → value, to be written.
    """

    state: TrainState
    binding: bool = False
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)


class Callback(Protocol):
    """Called between two steps, also before the first one, and before checkpoints.

    The loop asks again at the step that a run resumes from, so a callback remembers in
    its state for which step it has acted: then it is not due.

    Attributes:
        name: under which its state is kept; one of a kind in a run.
    """

    name: str

    def is_due(self, step: int, last: bool) -> bool:
        """Whether there is something to do after `step` steps."""
        ...

    def after_step(self, state: TrainState, step: int, last: bool) -> Outcome:
        """Act after `step` steps, of which the last one is `last`."""
        ...

    def get_state(self) -> dict[str, Any]:
        """What was decided so far, JSON-able."""
        ...

    def set_state(self, saved: dict[str, Any]) -> None:
        """Go on from what `get_state` gave."""
        ...


def are_due(callbacks: Sequence[Callback], step: int, last: bool) -> bool:
    """Whether any of the callbacks is due after `step` steps."""
    return any(callback.is_due(step, last) for callback in callbacks)


def ask(
    callbacks: Sequence[Callback], state: TrainState, step: int, last: bool
) -> Outcome:
    """Call the callbacks that are due, in order, each with the last one's state."""
    binding, metrics = False, {}
    for callback in callbacks:
        if callback.is_due(step, last):
            outcome = callback.after_step(state, step, last)
            state = outcome.state
            binding = binding or outcome.binding
            metrics.update(outcome.metrics)
    return Outcome(state, binding, metrics)


_KEY = "companions"  # as checkpoints have it since the first version


def describe(callbacks: Sequence[Callback], meta: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint's facts: `meta`, and by name what each callback has decided."""
    if not callbacks:
        return dict(meta)
    states = {callback.name: callback.get_state() for callback in callbacks}
    return {**meta, _KEY: states}


def read_states(meta: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Name → what that callback had decided, from the facts of a checkpoint."""
    return meta.get(_KEY, {})


def restore(callbacks: Sequence[Callback], meta: Mapping[str, Any]) -> None:
    """Hand each callback what it had decided; a new one starts afresh."""
    saved = read_states(meta)
    for callback in callbacks:
        if callback.name in saved:
            callback.set_state(saved[callback.name])
