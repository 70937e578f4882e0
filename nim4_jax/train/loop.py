"""The one training loop: every stage of every size runs through `train`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from tqdm import tqdm

from nim4_jax import sharding
from nim4_jax.process.errors import Interrupted
from nim4_jax.train.callbacks import Callback, Outcome, are_due, ask, describe
from nim4_jax.train.checkpoints.checkpoint import Checkpoints
from nim4_jax.train.metrics import MetricWriter
from nim4_jax.train.multihost import consensus
from nim4_jax.train.profiler import NO_PROFILE, ProfileWindow
from nim4_jax.train.programs import StepPrograms
from nim4_jax.train.speed import Speedometer
from nim4_jax.train.state import TrainState
from nim4_jax.train.step import Metrics, TrainStep
from nim4_jax.types import AsrBatch, Frames, Labels

Arrays = dict[str, np.ndarray]
Check = Callable[[int, dict[str, float], Arrays], Any]
Prepare = Callable[[TrainState, AsrBatch], Any]
"""(state before the step, batch on the host) → what the step takes, on the host."""


def to_batch(arrays: Arrays) -> AsrBatch:
    """The pipeline's dict of arrays as one struct, still on the host."""

    def read(name: str) -> Labels:
        return Labels(arrays[name], arrays[f"{name}_mask"])

    return AsrBatch(
        audio=Frames(arrays["audio"], arrays["audio_mask"]),
        phonemes=read("phonemes"),
        tokens=read("tokens"),
        suffix=read("suffix") if "suffix" in arrays else None,
        wanted=read("wanted") if "wanted" in arrays else None,
    )


def keep(state: TrainState, batch: AsrBatch) -> AsrBatch:
    """A `Prepare` that returns the batch unchanged."""
    del state
    return batch


SKIP_LIMIT = 10


def check_finite(
    step: int,
    values: dict[str, float],
    arrays: Arrays,
    limit: int = SKIP_LIMIT,
    where: str = "",
) -> bool:
    """Log steps with a non-finite loss or gradient, and stop after too many in a row.

    The step has changed nothing but its counters: see `make_train_step`.

    Args:
        step: number of the step.
        values: its metrics.
        arrays: its batch.
        limit: so many lost steps in a row end the run.
        where: what is known of the cause, "" for nothing.

    Returns:
        Whether the numbers are good.

    Raises:
        FloatingPointError: the loss or the gradient norm of `limit` steps in a row was
            not finite; names the step and the examples of its batch.
    """
    wrong = [n for n in ("loss", "gradient_norm") if not math.isfinite(values[n])]
    if not wrong:
        return True
    examples = np.asarray(arrays.get("index", ())).tolist()
    what = (
        f"{where}{' and '.join(wrong)} of step {step} not finite (examples {examples})"
    )
    # A step that counts nothing has learnt from it.
    in_row = int(values.get("skipped_in_row", limit))
    if in_row < limit:
        total = int(values["skipped_steps"])
        logging.warning(
            "%s: the step is skipped, nothing is learnt from it; skipped so far: %d, "
            "in a row: %d of at most %d",
            what,
            total,
            in_row,
            limit - 1,
        )
        return False
    raise FloatingPointError(
        f"{what}, and so in {in_row} steps in a row; the last checkpoint is intact. "
        "Lower the learning rate, look at these examples, or allow more such steps "
        "with config.skip_limit."
    )


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """Settings of the loop: its length, and when it logs and saves.

    Attributes:
        steps: last step.
        meta: facts to keep in each checkpoint.
        until: stop here, to be resumed later; None for `steps`.
        log_every: steps between two records of metrics.
        label: name on the progress bar.
        ahead: batches whose shapes are compiled before the first step; those of other
            shapes are compiled when they come.
    """

    steps: int
    meta: dict[str, Any] = dataclasses.field(default_factory=dict)
    until: int | None = None
    log_every: int = 10
    label: str = "train"
    ahead: Sequence[Arrays] = ()


@dataclasses.dataclass(frozen=True)
class Hooks:
    """Functions and callbacks that the loop calls.

    Attributes:
        callbacks: who acts between two steps.
        check: raises where (step, metrics, batch) tell that the run is lost; what it
            returns does not matter.
        prepare: what is done with each batch before it goes to the devices; a pure
            function of state and batch, so that a resumed run repeats it.
        count_skips: examples skipped so far, for the metrics.
        stop: asked after each step whether to save it and end.
        mark: called with (step, what it begins to do), for a watchdog.
        speed: measures steps and waits.
        profile: steps to trace.
    """

    callbacks: Sequence[Callback] = ()
    check: Check = check_finite
    prepare: Prepare = keep
    count_skips: Callable[[], int] = lambda: 0
    stop: Callable[[], bool] = lambda: False
    mark: Callable[[int, str], None] = lambda step, phase: None
    speed: Speedometer = dataclasses.field(default_factory=Speedometer)
    profile: ProfileWindow = NO_PROFILE


def train(
    state: TrainState,
    train_step: TrainStep,
    data: Iterator[Arrays],
    checkpoints: Checkpoints,
    writer: MetricWriter,
    config: LoopConfig,
    hooks: Hooks | None = None,
) -> TrainState:
    """Run from `state.step` to `config.steps`, saving on the way and at the end.

    Metrics of a step are fetched while the next one runs. The data iterator is saved
    before it is asked for the next batch, so that it belongs to the state beside it.

    Args:
        state: where to begin; donated.
        train_step: pure function (state, batch) → (state, metrics).
        data: batches of fixed shapes, a Grain iterator.
        checkpoints: where to save, and how often.
        writer: where metrics go.
        config: how far to run.
        hooks: what is called on the way; None for nothing.

    Returns:
        The state at `config.steps`, or at `config.until` if that comes first.

    Raises:
        FloatingPointError: a loss that is not finite, from `check_finite`.
        Interrupted: `hooks.stop` said so, or a callback gave up waiting; the step is
            saved.
        OSError: a checkpoint could not be written.
    """
    steps, first = config.steps, int(state.step)
    end = steps if config.until is None else min(config.until, steps)
    with tqdm(
        total=steps,
        initial=first,
        desc=config.label,
        unit="step",
        mininterval=2,
        disable=not consensus.leads(),
    ) as bar:
        loop = _Loop(
            StepPrograms(train_step, state),
            data,
            checkpoints,
            writer,
            config,
            hooks := hooks or Hooks(),
            _DelayedMetrics(writer, bar, config.log_every, hooks.check),
        )
        if first < end:
            loop.compile(state, first)
        for step in range(first, end + 1):
            if step > first:
                state = loop.advance(state, step)
            halt = hooks.stop()
            save = halt or step % checkpoints.every == 0 or step == end
            save = save and step > first
            if save:
                loop.metrics.flush()
            if are_due(hooks.callbacks, step, step == steps):
                outcome = loop.call_back(state, step, resumable=step > first)
                state, save = outcome.state, save or outcome.binding
            if save:
                loop.save(state, step)
            if halt:
                checkpoints.wait()
                raise Interrupted(f"{config.label}: step {step} of {steps} is saved")
    logging.info("%s: step %d reached", config.label, max(first, end))
    return state


@dataclasses.dataclass
class _Loop:
    """The parts of one step of the loop; attributes as `train` takes them."""

    run: StepPrograms
    data: Iterator[Arrays]
    checkpoints: Checkpoints
    writer: MetricWriter
    config: LoopConfig
    hooks: Hooks
    metrics: _DelayedMetrics

    def compile(self, state: TrainState, step: int) -> None:
        """Compile the step for the shapes that are known beforehand."""
        batches = map(to_batch, self.config.ahead)
        shapes = [sharding.describe_batch(batch) for batch in batches]
        mark = self.hooks.mark
        with self.hooks.speed.stepping(self.run.count):
            self.run.compile_all(state, shapes, lambda phase: mark(step, phase))

    def advance(self, state: TrainState, step: int) -> TrainState:
        """Do the step of that number, on the next batch."""
        hooks, speed = self.hooks, self.hooks.speed
        self.checkpoints.check()
        hooks.mark(step, "waiting for data")
        with speed.waiting():
            arrays = next(self.data)
        hooks.mark(step, "computing")
        hooks.profile.before(step)
        # Rollouts are work of the step; their program compiles when the step's does.
        with speed.stepping(self.run.count):
            batch = sharding.put_batch(hooks.prepare(state, to_batch(arrays)))
            state, metrics = self.run(state, batch)
        self.metrics.follow(step, metrics, arrays)
        speed.count(arrays)
        hooks.profile.after(step, state)
        if step % self.config.log_every == 0:
            skipped = {"data/skipped": float(hooks.count_skips())}
            self.writer.write(step, {**speed.measure(), **skipped})
        return state

    def call_back(self, state: TrainState, step: int, *, resumable: bool) -> Outcome:
        """Let the callbacks act; what interrupts one of them saves the step first."""
        hooks, last = self.hooks, step == self.config.steps
        self.metrics.flush()
        hooks.mark(step, "with its callbacks")
        before = describe(hooks.callbacks, self.config.meta)
        try:
            with hooks.speed.aside():
                outcome = ask(hooks.callbacks, state, step, last)
        except Interrupted:
            # They are asked again where the run is resumed.
            if resumable:
                self.checkpoints.save(state, self.data, before)
                self.checkpoints.wait()
            raise
        if outcome.metrics:
            self.writer.write(step, outcome.metrics)
        return outcome

    def save(self, state: TrainState, step: int) -> None:
        """Save the state, and what the callbacks have decided."""
        self.hooks.mark(step, "saving")
        with self.hooks.speed.saving():
            meta = describe(self.hooks.callbacks, self.config.meta)
            self.checkpoints.save(state, self.data, meta)


class _DelayedMetrics:
    """Fetches the metrics of a step while the next one runs."""

    def __init__(self, writer: MetricWriter, bar: tqdm, every: int, check: Check):
        self._writer, self._bar = writer, bar
        self._every, self._check = every, check
        self._pending: tuple[int, Metrics, Arrays] | None = None

    def follow(self, step: int, metrics: Metrics, arrays: Arrays) -> None:
        """Report the step before; this one was only begun."""
        self.flush()
        self._pending = (step, metrics, arrays)
        self._bar.update()

    def flush(self) -> None:
        """Wait for the step begun last, check its metrics, and now and then write."""
        if self._pending is None:
            return
        (step, metrics, arrays), self._pending = self._pending, None
        fetched = jax.device_get(metrics).items()
        values = {name: float(value) for name, value in fetched}
        self._check(step, values, arrays)
        if step % self._every == 0 or step == 1:
            row = {f"train/{name}": value for name, value in values.items()}
            self._writer.write(step, row)
            self._bar.set_postfix(loss=f"{values['loss']:.3f}", refresh=False)
