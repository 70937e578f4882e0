"""The one training loop: every stage of every size runs through `train`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from absl import logging
from tqdm import tqdm

from nim4_jax import sharding
from nim4_jax.train.checkpoint import Checkpoints
from nim4_jax.train.metrics import MetricWriter
from nim4_jax.train.state import TrainState
from nim4_jax.train.step import Metrics, TrainStep
from nim4_jax.types import AsrBatch, Frames, Labels

Arrays = dict[str, np.ndarray]


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


def check_finite(step: int, values: dict[str, float], arrays: Arrays) -> None:
    """Stop a run whose numbers are lost.

    Raises:
        FloatingPointError: the loss or the gradient norm is not finite; names the step
        and
            the examples of its batch.
    """
    wrong = [n for n in ("loss", "gradient_norm") if not math.isfinite(values[n])]
    if wrong:
        examples = np.asarray(arrays.get("index", ())).tolist()
        raise FloatingPointError(
            f"{' and '.join(wrong)} of step {step} not finite (examples {examples}); "
            "the last checkpoint is intact. Lower the learning rate or look at these "
            "examples."
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
    label: str = "train",
    log_every: int = 10,
    count_skips: Callable[[], int] = lambda: 0,
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
        label: name on the progress bar.
        log_every: steps between two records of metrics.
        count_skips: examples skipped so far, for the metrics.

    Returns:
        The state at `steps`.

    Raises:
        FloatingPointError: a loss that is not finite.
    """
    run = jax.jit(train_step, donate_argnums=0)
    first = int(state.step)
    pending: tuple[int, Metrics, Arrays] | None = None
    waited, began = 0.0, time.perf_counter()
    with tqdm(
        total=steps, initial=first, desc=label, unit="step", mininterval=2
    ) as bar:
        for step in range(first + 1, steps + 1):
            asked = time.perf_counter()
            arrays = next(data)
            waited += time.perf_counter() - asked
            state, metrics = run(state, sharding.put_batch(to_batch(arrays)))
            if pending is not None:
                _report(pending, writer, bar, log_every)
            pending = (step, metrics, arrays)
            bar.update()
            if step % log_every == 0:
                elapsed = max(time.perf_counter() - began, 1e-9)
                perf = {
                    "perf/steps_per_second": (step - first) / elapsed,
                    "perf/data_wait_share": waited / elapsed,
                    "data/skipped": float(count_skips()),
                }
                writer.write(step, perf)
            if step % checkpoints.every == 0 or step == steps:
                _report(pending, writer, bar, log_every)
                pending = None
                checkpoints.save(state, data, meta)
    logging.info("%s: step %d reached", label, steps)
    return state


def _report(
    pending: tuple[int, Metrics, Arrays], writer: MetricWriter, bar: tqdm, every: int
) -> None:
    """Fetch a step's metrics, check them, and now and then write them."""
    step, metrics, arrays = pending
    values = {name: float(value) for name, value in jax.device_get(metrics).items()}
    check_finite(step, values, arrays)
    if step % every == 0 or step == 1:
        writer.write(step, {f"train/{name}": value for name, value in values.items()})
        bar.set_postfix(loss=f"{values['loss']:.3f}", refresh=False)
