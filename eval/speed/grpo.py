"""Where the time of a GRPO step goes: the rollout's share, on nano and real speech."""

from __future__ import annotations

import dataclasses
import statistics
import time
from typing import Any

import jax
import numpy as np

from nim4_jax.configs import stage6
from nim4_jax.data.pipeline import iterators
from nim4_jax.eval.speed import measure
from nim4_jax.model_files import loading
from nim4_jax.models.asr import Asr
from nim4_jax.rl.worker import RolloutWorker
from nim4_jax.runs import run_settings
from nim4_jax.train import loop, optim
from nim4_jax.train import state as train_state
from nim4_jax.train.step import make_train_step
from nim4_jax.types import AsrBatch

PACKAGED = "package:nano_stage1.safetensors,package:nano_llm.safetensors"
"""With them the adaptor is random, and transcripts are as long as chance has it."""


class Trainer:
    """State, step and rollout of stage 6 at nano."""

    def __init__(self, origins: str):
        config = stage6.get_config("nano")
        made = run_settings.build_settings(config)
        self.recipe, self.model = made.recipe, Asr(made.model)
        data = iterators.make_train_iterator(made.data, rank=0, hosts=1)
        self.batch: AsrBatch = loop.to_batch(next(data))
        data.close()
        params = train_state.init_params(self.model, self.recipe, self.batch, 0)
        given: dict[str, Any] = {}
        for origin in filter(None, origins.split(",")):
            given |= loading.load_model(origin)[0]
        given.pop(train_state.REFERENCE, None)
        params, _ = train_state.adopt(params, given, origins)
        params = train_state.add_reference(params, self.recipe)
        recipe = self.recipe
        tx = optim.make_optimizer(recipe.optimizer, recipe.rules, recipe.steps)
        self.state: Any = train_state.init_state(params, recipe, tx)
        self._step = jax.jit(make_train_step(self.model, recipe, tx))
        self._worker = RolloutWorker(self.model, recipe)

    def roll(self, step: int) -> Any:
        """The rollout of a step: audio, samples, rewards."""
        return self._worker.prepare(self._at(step), self.batch)

    def step(self, step: int) -> dict[str, Any]:
        """The whole step, always from the same weights, its update thrown away."""
        state = self._at(step)
        rolled = jax.device_put(self._worker.prepare(state, self.batch))
        return jax.block_until_ready(self._step(state, rolled))[1]

    def _at(self, step: int) -> Any:
        return dataclasses.replace(self.state, step=np.int32(step))


def run(full: bool, threads: int, model: str = "") -> list[measure.Row]:
    """Rollout and whole step by turns, of the same samples.

    Args:
        full: more steps.
        threads: unused; the launcher limits the cores.
        model: workdir or .safetensors of a stage 4 model; "" for the packaged parts.
    """
    trainer = Trainer(model or PACKAGED)
    runs = 15 if full else 3
    times: dict[str, list[float]] = {"rollout": [], "step": []}
    lengths = []
    for number in range(-1, runs):  # the first turn warms up
        step = max(number, 0)
        for name in ("rollout", "step") if number % 2 else ("step", "rollout"):
            began = time.perf_counter()
            done = trainer.roll(step) if name == "rollout" else trainer.step(step)
            if number >= 0:
                times[name].append(time.perf_counter() - began)
                if name == "step":
                    lengths.append(float(done["length"]))
    medians = {name: statistics.median(values) for name, values in times.items()}
    pairs = zip(times["rollout"], times["step"])
    share = statistics.median(rollout / step for rollout, step in pairs)
    figures = (
        ("grpo_rollout_nano_ms", "ms", 1e3 * medians["rollout"]),
        ("grpo_step_nano_ms", "ms", 1e3 * medians["step"]),
        ("grpo_rollout_share_percent", "%", 100.0 * share),
        ("grpo_sample_length_tokens", "tokens", statistics.median(lengths)),
    )
    return [measure.Row(*figure, None, "none", None, runs) for figure in figures]
