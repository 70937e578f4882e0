"""Callback of stage 1 that publishes its encoder when CKA says that it changed."""

from __future__ import annotations

import dataclasses
from typing import Any

from nim4_jax.train.callbacks import Outcome
from nim4_jax.train.releases import divergence as watching
from nim4_jax.train.releases.divergence import Watcher, WatcherState
from nim4_jax.train.releases.encoder_probe import EncoderProbe, take_parts
from nim4_jax.train.state import TrainState
from nim4_jax.types import Params

CKA = "releases/cka"


@dataclasses.dataclass(frozen=True)
class PublishConfig:
    """Settings of publishing: the folder, and when.

    Attributes:
        folder: where releases go, local or gs://; "" publishes nothing.
        from_step: where the first reference is taken.
        every: steps between two comparisons with the reference.
        threshold: a CKA below it publishes.
        sources: recordings that the encoders are compared on.
        batches: how many batches of them.
    """

    folder: str
    from_step: int
    every: int
    sources: tuple[str, ...]
    threshold: float = 0.975
    batches: int = 4

    def watcher(self) -> Watcher:
        """The rule.

        Raises:
            ValueError: numbers that cannot work.
        """
        return Watcher(self.from_step, self.every, self.threshold)


class Publisher:
    """Compares the live encoder with the last one published, and publishes it.

    Not binding: the same parameters are compared and published again alike.
    """

    name = "publish"

    def __init__(
        self, folder: str, watcher: Watcher, probe: EncoderProbe, meta: dict[str, Any]
    ):
        """Take where, when, what to compare on, and facts for each release's header."""
        self._shelf, self._watcher = watching.Shelf(folder, meta), watcher
        self._probe = probe
        self._state: WatcherState = watcher.start()

    def is_due(self, step: int, last: bool) -> bool:
        """Whether the encoder of this step is to be looked at."""
        return self._watcher.is_due(self._state, step, last)

    def after_step(self, state: TrainState, step: int, last: bool) -> Outcome:
        """Publish or keep; the state is left as it is.

        Raises:
            ValueError: a foreign index.json, or an encoder that cannot be compared.
        """
        live = take_parts(state.params)
        metrics: dict[str, float] = {}

        def compare(reference: Params) -> float:
            frames = self._probe.hear(reference), self._probe.hear(live)
            metrics[CKA] = self._probe.compare(*frames)
            return metrics[CKA]

        self._state = watching.watch(
            self._shelf,
            self._watcher,
            self._state,
            live,
            step=step,
            last=last,
            compare=compare,
        )
        return Outcome(state, metrics=metrics)

    def get_state(self) -> dict[str, Any]:
        """What the watcher has decided."""
        return dict(self._state)

    def set_state(self, saved: dict[str, Any]) -> None:
        """Go on from there."""
        self._state = WatcherState(**saved)
