"""Compiled train steps, one for each batch shape."""

from __future__ import annotations

import concurrent.futures
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
from absl import logging

from nim4_jax import sharding
from nim4_jax.train.state import TrainState
from nim4_jax.train.step import Metrics, TrainStep

_THREADS = 4
"""Compilers at once; each takes some GB of the host's memory at full size."""


class StepPrograms:
    """Runs the step; shapes that are known beforehand are compiled beforehand.

    Else a shape that comes rarely stops all devices for its compilation in the midst of
    the run, and one that does not fit the devices ends it there.
    """

    def __init__(self, train_step: TrainStep, state: TrainState):
        """Take the step, and a state that lies where all others will."""
        lies = jax.tree.map(lambda leaf: leaf.sharding, state)
        # The state stays where it lies; metrics are whole everywhere, to be fetched.
        self._jitted: Any = jax.jit(
            train_step, donate_argnums=0, out_shardings=(lies, sharding.replicated())
        )
        self._compiled: dict[Any, Any] = {}

    def count(self) -> int:
        """How many programs there are so far."""
        return len(self._compiled) + self._jitted._cache_size()

    def compile_all(
        self,
        state: TrainState,
        batches: Sequence[Any],
        tell: Callable[[str], None] = lambda phase: None,
    ) -> None:
        """Compile for these batches; they and the state stay as they are.

        Args:
            state: to begin with.
            batches: what the step takes, or its shapes.
            tell: called between two programs, for who watches that it goes on.
        """
        wanted = {_key(batch): batch for batch in batches}
        if not wanted:
            return
        began = time.perf_counter()
        with concurrent.futures.ThreadPoolExecutor(_THREADS, "compile") as threads:
            going_on = {}
            for key, batch in wanted.items():
                tell(f"tracing step {len(going_on) + 1} of {len(wanted)}")
                lowered = self._jitted.lower(state, batch)
                going_on[threads.submit(lowered.compile)] = key
            for done in concurrent.futures.as_completed(going_on):
                self._compiled[going_on[done]] = done.result()
                tell(f"compiling: {len(self._compiled)} of {len(wanted)} done")
        logging.info(
            "the step is compiled for %d shapes of batches, in %.1f s",
            len(wanted),
            time.perf_counter() - began,
        )

    def __call__(self, state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        """One step; compiles first if the shape is new. The state is donated."""
        return self._compiled.get(_key(batch), self._jitted)(state, batch)


def _key(batch: Any) -> Any:
    """The same for batches of one shape."""
    leaves, structure = jax.tree.flatten(batch)
    return structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves)
