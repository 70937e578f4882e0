"""Parameters of a model by part, counted without allocating any."""

from __future__ import annotations

import functools

import jax
import numpy as np

from nim4_jax.models.asr import Asr, AsrConfig, Prompt
from nim4_jax.train import optim
from nim4_jax.train import state as train_state
from nim4_jax.train.losses import CrCtc, Transcribe
from nim4_jax.train.optim import OptimizerConfig
from nim4_jax.train.recipes import LossFunction, Recipe
from nim4_jax.types import AsrBatch, Frames, Labels, Params

PARTS = {
    "encoder: Conformer's subsampling": "encoder/subsampling/",
    "encoder: Whisper's convolutions": "encoder/stem/",
    "encoder: blocks": "encoder/",
    "phoneme head": "ctc_head/",
    "adaptor": "adaptor/",
    "LLM: embeddings": "llm/embed",
    "LLM: blocks": "llm/",
    "feature statistics": "cmvn/",
}
"""Row of the table → how its parameters begin; the first that fits takes them."""


def trace_params(config: AsrConfig) -> Params:
    """Shapes of every parameter that stages 1 to 5 reach, without allocating any."""
    recipes = [_make_recipe(loss) for loss in (CrCtc(), Transcribe(Prompt((0,), (0,))))]
    size = config.features.window * 40

    def init(recipe: Recipe, batch: AsrBatch) -> Params:
        return train_state.init_params(Asr(config), recipe, batch, seed=0)

    def shape(*size: int, dtype: type = np.bool_) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(size, dtype)

    labels = Labels(shape(1, 2, dtype=np.int32), shape(1, 2))
    audio = Frames(shape(1, size, dtype=np.float32), shape(1, size))
    batch = AsrBatch(audio, labels, labels)
    made = [jax.eval_shape(functools.partial(init, r), batch) for r in recipes]
    return {name: part for params in made for name, part in params.items()}


def _make_recipe(loss: LossFunction) -> Recipe:
    return Recipe(loss, ((".*", 1.0),), OptimizerConfig(1e-3, 1), steps=1)


def count_parts(params: Params) -> dict[str, int]:
    """Parameters of each row of `PARTS` that the model has.

    Raises:
        ValueError: a parameter that belongs to no row, by path.
    """
    counts = dict.fromkeys(PARTS, 0)
    for path, leaf in optim.flatten(params).items():
        rows = [row for row, start in PARTS.items() if path.startswith(start)]
        if not rows:
            raise ValueError(f"{path} belongs to no part of {list(PARTS.values())}.")
        counts[rows[0]] += leaf.size
    return {row: count for row, count in counts.items() if count}


def format_table(counts: dict[str, int]) -> str:
    """The counts as a Markdown table with a total."""
    total = sum(counts.values())
    lines = ["| part | parameters | share |", "| --- | ---: | ---: |"]
    for row, count in counts.items():
        lines.append(f"| {row} | {count:,} | {100 * count / total:.1f} % |")
    lines.append(f"| **all** | **{total:,}** | |")
    return "\n".join(lines)
