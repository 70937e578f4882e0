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
from nim4_jax.train import consensus
from nim4_jax.train.checkpoint import Checkpoints
from nim4_jax.train.companions import Companion, Outcome, are_due, ask, describe
from nim4_jax.train.interruption import Interrupted
from nim4_jax.train.metrics import MetricWriter
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
    """The `Prepare` of a step that takes the batch as it is."""
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
    """Tell of a step whose numbers are lost, and stop after too many of them.

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


def train(
    state: TrainState,
    train_step: TrainStep,
    data: Iterator[Arrays],
    checkpoints: Checkpoints,
    writer: MetricWriter,
    *,
    steps: int,
    meta: dict[str, Any],
    until: int | None = None,
    ahead: Sequence[Arrays] = (),
    companions: Sequence[Companion] = (),
    check: Check = check_finite,
    prepare: Prepare = keep,
    label: str = "train",
    log_every: int = 10,
    count_skips: Callable[[], int] = lambda: 0,
    stop: Callable[[], bool] = lambda: False,
    mark: Callable[[int, str], None] = lambda step, phase: None,
    speed: Speedometer | None = None,
    profile: ProfileWindow = NO_PROFILE,
) -> TrainState:
    """Run from `state.step` to `steps`, saving on the way and at the end.

    Metrics of a step are fetched while the next one runs. The data iterator is saved
    before it is asked for the next batch, so that it belongs to the state beside it.

    Args:
        state: where to begin; donated.
        train_step: pure function (state, batch) → (state, metrics).
        data: batches of fixed shapes, a Grain iterator.
        checkpoints: where to save, and how often.
        writer: where metrics go.
        steps: last step.
        meta: facts to keep in each checkpoint.
        until: stop here, to be resumed later; None for `steps`.
        ahead: batches whose shapes are compiled before the first step; those of other
            shapes are compiled when they come.
        companions: who acts between two steps.
        check: raises where (step, metrics, batch) tell that the run is lost; what it
            returns does not matter.
        prepare: what is done with each batch before it goes to the devices; a pure
            function of state and batch, so that a resumed run repeats it.
        label: name on the progress bar.
        log_every: steps between two records of metrics.
        count_skips: examples skipped so far, for the metrics.
        stop: asked after each step whether to save it and end.
        mark: told (step, what it begins to do), for who watches that it goes on.
        speed: measures; None for one that knows neither devices nor model.
        profile: steps to trace.

    Returns:
        The state at `steps`, or at `until` if that comes first.

    Raises:
        FloatingPointError: a loss that is not finite, from `check_finite`.
        Interrupted: `stop` said so, or a companion gave up waiting; the step is saved.
        OSError: a checkpoint could not be written.
    """
    run, speed = StepPrograms(train_step, state), speed or Speedometer()
    first, end = int(state.step), steps if until is None else min(until, steps)
    with tqdm(
        total=steps,
        initial=first,
        desc=label,
        unit="step",
        mininterval=2,
        disable=not consensus.leads(),
    ) as bar:
        turns = _Turns(
            run,
            data,
            checkpoints,
            writer,
            _Report(writer, bar, log_every, check),
            meta=meta,
            companions=companions,
            prepare=prepare,
            log_every=log_every,
            count_skips=count_skips,
            mark=mark,
            speed=speed,
            profile=profile,
        )
        if first < end:
            turns.compile(state, first, ahead)
        for step in range(first, end + 1):
            if step > first:
                state = turns.advance(state, step)
            halt = stop()
            save = halt or step % checkpoints.every == 0 or step == end
            save = save and step > first
            if save:
                turns.report.flush()
            if are_due(companions, step, step == steps):
                outcome = turns.meet(state, step, step == steps, resumable=step > first)
                state, save = outcome.state, save or outcome.binding
            if save:
                turns.save(state, step)
            if halt:
                checkpoints.wait()
                raise Interrupted(f"{label}: step {step} of {steps} is saved")
    logging.info("%s: step %d reached", label, max(first, end))
    return state


@dataclasses.dataclass(kw_only=True)
class _Turns:
    """What is done between two checks of the loop; attributes as `train` takes them."""

    run: StepPrograms = dataclasses.field(kw_only=False)
    data: Iterator[Arrays] = dataclasses.field(kw_only=False)
    checkpoints: Checkpoints = dataclasses.field(kw_only=False)
    writer: MetricWriter = dataclasses.field(kw_only=False)
    report: _Report = dataclasses.field(kw_only=False)
    meta: dict[str, Any]
    companions: Sequence[Companion]
    prepare: Prepare
    log_every: int
    count_skips: Callable[[], int]
    mark: Callable[[int, str], None]
    speed: Speedometer
    profile: ProfileWindow

    def compile(self, state: TrainState, step: int, batches: Sequence[Arrays]) -> None:
        """Compile the step for the shapes of these batches."""
        shapes = [sharding.describe_batch(to_batch(arrays)) for arrays in batches]
        with self.speed.stepping(self.run.count):
            self.run.compile_all(state, shapes, lambda phase: self.mark(step, phase))

    def advance(self, state: TrainState, step: int) -> TrainState:
        """Do the step of that number, on the next batch."""
        speed = self.speed
        self.checkpoints.check()
        self.mark(step, "waiting for data")
        with speed.waiting():
            arrays = next(self.data)
        self.mark(step, "computing")
        self.profile.before(step)
        # Rollouts are work of the step; their program compiles when the step's does.
        with speed.stepping(self.run.count):
            batch = sharding.put_batch(self.prepare(state, to_batch(arrays)))
            state, metrics = self.run(state, batch)
        self.report.follow(step, metrics, arrays)
        speed.count(arrays)
        self.profile.after(step, state)
        if step % self.log_every == 0:
            skipped = {"data/skipped": float(self.count_skips())}
            self.writer.write(step, {**speed.measure(), **skipped})
        return state

    def meet(
        self, state: TrainState, step: int, last: bool, *, resumable: bool
    ) -> Outcome:
        """Let the companions act; what interrupts one of them saves the step first."""
        self.report.flush()
        self.mark(step, "with its companions")
        before = describe(self.companions, self.meta)
        try:
            with self.speed.aside():
                outcome = ask(self.companions, state, step, last)
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
        """Save the state, and what the companions have decided."""
        self.mark(step, "saving")
        with self.speed.saving():
            meta = describe(self.companions, self.meta)
            self.checkpoints.save(state, self.data, meta)


class _Report:
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
