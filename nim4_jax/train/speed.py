"""Throughput, model FLOPs utilisation and a breakdown of the time of a run.

figure                       | over                | means
perf/steps_per_second        | since last record   |
perf/audio_hours_per_hour    | since last record   | of all hosts, padding left out
perf/tokens_per_second       | since last record   | transcript tokens, likewise
perf/mfu                     | since last record   | operations by formula / peak
perf/data_wait_share         | since last record   | the devices may have starved
perf/checkpoint_stall_share  | since last record   | the loop waited for a save
perf/compile_seconds         | since the launch    |
perf/goodput                 | since the launch    | share spent on steps, not on
                             |                     | starting, compiling, waiting,
                             |                     | saving or callbacks
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from nim4_jax.rates import Rates
from nim4_jax.train.flops import FlopCounter, Lengths

Clock = Callable[[], float]


@dataclasses.dataclass(frozen=True)
class Capacity:
    """Facts of a run that throughput and MFU are computed from.

    Attributes:
        counter: operations of a batch; None where nobody asks for MFU.
        rates: of the model.
        rate: audio samples a second.
        hosts: parts that a global batch is loaded in; this process sees one of them.
        peak: operations per second of all devices together; 0 where it is not known.
    """

    counter: FlopCounter | None = None
    rates: Rates = Rates()
    rate: int = 16_000
    hosts: int = 1
    peak: float = 0.0


@dataclasses.dataclass
class _Tally:
    """What has piled up since the last record."""

    began: float
    steps: int = 0
    waited: float = 0.0
    stalled: float = 0.0
    audio: float = 0.0
    tokens: float = 0.0
    operations: float = 0.0


class Speedometer:
    """Measures a loop that tells it what it does.

    Attributes:
        capacity: see there.
        compiling: seconds spent on compilation so far.
    """

    def __init__(
        self,
        capacity: Capacity = Capacity(),
        launched: float | None = None,
        clock: Clock = time.perf_counter,
    ):
        """Begin to measure.

        Args:
            capacity: devices and data.
            launched: the clock when the process began; None for now.
            clock: seconds.
        """
        self.capacity, self.compiling = capacity, 0.0
        self._clock = clock
        now = clock()
        self._launched = now if launched is None else launched
        self._lost = now - self._launched
        self._tally = _Tally(now)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around the request for a batch."""
        began = self._clock()
        yield
        self._tally.waited += self._clock() - began
        self._lost += self._clock() - began

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """Around what the loop does for a checkpoint."""
        began = self._clock()
        yield
        self._tally.stalled += self._clock() - began
        self._lost += self._clock() - began

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Around work beside the steps: callbacks."""
        began = self._clock()
        yield
        self._lost += self._clock() - began

    @contextlib.contextmanager
    def stepping(self, programs: Callable[[], int]) -> Iterator[None]:
        """Around a step and its rollout; where they compile, all of it is compilation.

        Args:
            programs: how many the step has been compiled to so far.
        """
        began, before = self._clock(), programs()
        yield
        if programs() != before:
            self.compiling += self._clock() - began
            self._lost += self._clock() - began

    def count(self, arrays: dict[str, Any]) -> None:
        """Count a batch, from this host's share of it.

        Args:
            arrays: of the pipeline; masks tell how much of a row is real.
        """
        tally, capacity = self._tally, self.capacity
        tally.steps += 1
        tokens = np.sum(arrays["tokens_mask"], axis=1)
        tally.tokens += float(np.sum(tokens)) * capacity.hosts
        if "audio_mask" not in arrays:
            return
        samples = np.sum(arrays["audio_mask"], axis=1)
        tally.audio += float(np.sum(samples)) * capacity.hosts / capacity.rate
        if capacity.counter is not None:
            suffix = arrays.get("suffix_mask")
            suffix = None if suffix is None else np.sum(suffix, axis=1)
            lengths = Lengths.of(samples, tokens, suffix, capacity.rates)
            cost = sum(capacity.counter.count(lengths).values())
            tally.operations += cost * capacity.hosts

    def measure(self) -> dict[str, float]:
        """The table above; begins a new record."""
        now, tally = self._clock(), self._tally
        elapsed = max(now - tally.began, 1e-9)
        total = max(now - self._launched, 1e-9)
        self._tally = _Tally(now)
        figures = {
            "steps_per_second": tally.steps / elapsed,
            "audio_hours_per_hour": tally.audio / elapsed,
            "tokens_per_second": tally.tokens / elapsed,
            "data_wait_share": tally.waited / elapsed,
            "checkpoint_stall_share": tally.stalled / elapsed,
            "compile_seconds": self.compiling,
            "goodput": max(0.0, 1.0 - self._lost / total),
        }
        if self.capacity.peak:
            figures["mfu"] = tally.operations / elapsed / self.capacity.peak
        return {f"perf/{name}": value for name, value in figures.items()}
