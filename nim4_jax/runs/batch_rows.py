"""Batch sizes of a run: from the config, or from audio seconds for each device."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from absl import logging
from jax.sharding import Mesh

from nim4_jax import sharding
from nim4_jax.data.pipeline.config import DataConfig, fit_rows
from nim4_jax.data.pipeline.iterators import TrainIterator
from nim4_jax.runs.run_settings import TrainSettings

KEY = "batch_size"
"""Of a checkpoint's facts: rows of each bucket."""


def settle(
    made: TrainSettings, mesh: Mesh, saved: Mapping[str, Any] | None = None
) -> TrainSettings:
    """The settings with the rows of each bucket.

    A run keeps the rows that it was begun with, on any devices; else another number of
    them would mean other batches.

    Args:
        made: of the run.
        mesh: that it trains on.
        saved: facts of the checkpoint that it goes on from; None for a run that begins,
            or that may change.

    Raises:
        ValueError: neither rows nor seconds are configured, or both.
    """
    if not isinstance(made.data, DataConfig) or made.data.batch_size:
        return made
    if saved is not None and KEY in saved:
        rows = tuple(int(count) for count in saved[KEY])
    else:
        shards = sharding.count_batch_shards(mesh)
        multiple = shards * made.recipe.micro_batches
        rows = fit_rows(
            made.data, shards, math.lcm(multiple, made.rollout_devices or 1)
        )
    data = dataclasses.replace(made.data, batch_size=rows, device_seconds=0.0)
    return dataclasses.replace(made, data=data)


def log_epoch(made: TrainSettings, data: Any) -> None:
    """Say what a step and an epoch hold, and how many epochs the run is."""
    if not isinstance(data, TrainIterator):
        return
    buckets, (hours, steps) = data.plan.buckets, data.measure_epoch()
    shapes = ", ".join(f"{b.batch} × {b.seconds:g} s" for b in buckets)
    logging.info(
        "batches of %s; an epoch has %.1f h of audio in %d steps, %.0f s a step; the "
        "run's %d steps are %.2f epochs, %.0f h",
        shapes,
        hours,
        steps,
        3600 * hours / steps,
        made.recipe.steps,
        made.recipe.steps / steps,
        hours * made.recipe.steps / steps,
    )
