"""Decision of stage 1 to publish its encoder: CKA with the last release falls.

What was decided is a small JSON-able dict; kept in each checkpoint, it makes a resumed
run go on as it was going.

Source: paper §2.2.2.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypedDict

from absl import logging

from nim4_jax import sharding
from nim4_jax.train.multihost import consensus
from nim4_jax.train.releases import store
from nim4_jax.train.releases.store import Release
from nim4_jax.types import Params


class WatcherState(TypedDict):
    """State of the watcher, kept in checkpoints.

    Attributes:
        decided: last step of which something was decided, -1 at first.
        reference: fields of the Release to compare with, None before the first.
    """

    decided: int
    reference: dict[str, Any] | None


@dataclasses.dataclass(frozen=True)
class Watcher:
    """Rule by which stage 1 publishes its encoder.

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
        """Decision for the current encoder, given its CKA with the reference.

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


@dataclasses.dataclass(frozen=True)
class Shelf:
    """The folder that releases are written to, and facts for their headers.

    Attributes:
        folder: that stages which follow look into.
        meta: JSON-able facts for each file's header.
    """

    folder: str
    meta: dict[str, Any]


def watch(
    shelf: Shelf,
    watcher: Watcher,
    state: WatcherState,
    params: Params,
    *,
    step: int,
    last: bool,
    compare: Callable[[Params], float],
) -> WatcherState:
    """Publish the live encoder where it is due; between two steps of stage 1.

    On several hosts all call this; host 0 decides, and writes.

    Args:
        shelf: where releases go.
        watcher: when to publish.
        state: what was decided before.
        params: the live encoder, on the host or on any devices.
        step: steps done.
        last: whether stage 1 ends here.
        compare: parameters of the reference → CKA of the live encoder with it.

    Returns:
        The new state, for the checkpoint of this step.

    Raises:
        ValueError: a CKA that is not a number from 0 to 1, or a foreign index.json.
    """
    if not watcher.is_due(state, step, last):
        return state
    cka = None
    if state["reference"] is not None:
        reference = store.try_load(shelf.folder, Release(**state["reference"]))
        readable = consensus.everywhere(reference is not None)
        cka = compare(reference) if reference is not None and readable else None
        cka = consensus.lead(lambda: cka)
    verdict = watcher.decide(cka, last)
    logging.info("encoder of step %d, CKA %s: %s", step, cka, verdict)
    if verdict == "keep":
        return {**state, "decided": step}
    whole = sharding.gather(params)

    def write() -> dict[str, Any]:
        if verdict == "refer":
            release = store.store(shelf.folder, whole, step=step, meta=shelf.meta)
        else:
            facts = {"step": step, "cka": cka, "final": last, "meta": shelf.meta}
            release = store.publish(shelf.folder, whole, **facts)
        return dataclasses.asdict(release)

    return {"decided": step, "reference": consensus.lead(write)}
