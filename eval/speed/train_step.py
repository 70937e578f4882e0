"""One update of stage 1 (CR-CTC) and of stage 4 (transcripts): ours against torch."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from nim4_jax.configs import base, stage1, stage4
from nim4_jax.eval.speed import measure
from nim4_jax.models.asr import Asr
from nim4_jax.runs import run_settings
from nim4_jax.train import optim
from nim4_jax.train import state as train_state
from nim4_jax.train.step import make_train_step
from nim4_jax.types import AsrBatch, Frames, Labels

_ROWS, _SECONDS, _PHONEMES, _TOKENS = 8, 4.0, 30, 24
_SMALL_VOCABULARY, _SMALL_LAYERS = 16_384, 4


def make_arrays(num_phonemes: int, num_tokens: int, rows: int) -> dict[str, np.ndarray]:
    """A batch of noise with lengths between 3 s and 4 s, and random labels."""
    rng = np.random.default_rng(0)
    size = int(_SECONDS * 16_000)
    return {
        "audio": (0.1 * rng.normal(size=(rows, size))).astype(np.float32),
        "lengths": rng.integers(size * 3 // 4, size + 1, rows),
        "phonemes": rng.integers(1, num_phonemes, (rows, _PHONEMES)),
        "phoneme_lengths": np.full(rows, _PHONEMES),
        "tokens": rng.integers(1, num_tokens, (rows, _TOKENS)),
        "token_lengths": rng.integers(_TOKENS // 2, _TOKENS + 1, rows),
    }


def to_batch(arrays: dict[str, np.ndarray]) -> AsrBatch:
    """The same batch as our model takes it."""

    def mask(values: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        return np.arange(values.shape[1])[None] < lengths[:, None]

    def label(name: str, lengths: str) -> Labels:
        real = mask(arrays[name], arrays[lengths])
        return Labels((arrays[name] * real).astype(np.int32), real)

    audio = arrays["audio"]
    batch = AsrBatch(
        Frames(audio, mask(audio, arrays["lengths"])),
        label("phonemes", "phoneme_lengths"),
        label("tokens", "token_lengths"),
    )
    return jax.tree.map(jnp.asarray, batch)


class Trainer:
    """Our state and jitted step over a packaged configuration."""

    def __init__(self, made: run_settings.TrainSettings, batch: AsrBatch):
        recipe, model = made.recipe, Asr(made.model)
        tx = optim.make_optimizer(recipe.optimizer, recipe.rules, recipe.steps)
        params = train_state.init_params(model, recipe, batch, 0)
        trainable, _ = optim.split_params(params, recipe.rules)
        self.num_parameters = optim.count_parameters(trainable)
        self.state: Any = train_state.init_state(params, recipe, tx)
        self.run = jax.jit(make_train_step(model, recipe, tx), donate_argnums=0)

    def step(self, batch: AsrBatch) -> float:
        """One update; returns the loss."""
        self.state, metrics = self.run(self.state, batch)
        jax.block_until_ready(self.state)
        return float(metrics["loss"])


def make_small() -> ConfigDict:
    """Stage 4 at `small`, its LLM cut so that both sides fit into a laptop's memory."""
    config = stage4.get_config("small")
    config.tokenizer = base.get_config("nano").tokenizer
    config.model.llm.vocab_size = _SMALL_VOCABULARY
    config.model.llm.num_layers = _SMALL_LAYERS
    config.model.policy.compute = "float32"
    config.model.remat = "none"
    return config


def compare_stage(
    figure: str, config: ConfigDict, make_peer: Any, *, rows: int, runs: int
) -> measure.Row:
    """Audio in memory to updated parameters, ours and the peer's.

    Raises:
        ValueError: the two models are not of one size.
    """
    # torch's side has no time warp
    config.update_from_flattened_dict({"loss.augment.warp": 0})
    made = run_settings.build_settings(config)
    model = made.model
    arrays = make_arrays(model.num_phonemes, model.llm.vocab_size, rows)
    batch = to_batch(arrays)
    ours, peer = Trainer(made, batch), make_peer(made)
    sizes = ours.num_parameters, peer.count_parameters()
    if sizes[0] != sizes[1]:
        raise ValueError(f"models of {sizes} parameters; a ratio would mean nothing.")
    return measure.compare(
        figure,
        "ms",
        lambda: ours.step(batch),
        lambda: peer.step(arrays),
        peer_name="torch, the same step eagerly",
        runs=runs,
    )


def run(full: bool, threads: int) -> list[measure.Row]:
    """Stage 1 and stage 4 at nano; with `full` more runs, and stage 4 at small."""
    torch = measure.need("torch")
    measure.need("transformers")
    # Here and not above, because they are peers that most installations lack.
    from nim4_jax.eval.speed import torch_conformer, torch_recogniser

    torch.set_num_threads(threads)

    def make_phonemes(made: run_settings.TrainSettings):
        return torch_conformer.PhonemeTrainer(made.model, made.recipe.loss.augment)

    def make_transcripts(made: run_settings.TrainSettings):
        loss = made.recipe.loss
        return torch_recogniser.TranscriptTrainer(made.model, loss.augment, loss.prompt)

    nano, runs = stage4.get_config("nano"), 31 if full else 7
    first = stage1.get_config("nano")
    rows = [
        compare_stage(
            "train_step_nano_ms", first, make_phonemes, rows=_ROWS, runs=runs
        ),
        compare_stage(
            "train_step_stage4_nano_ms", nano, make_transcripts, rows=_ROWS, runs=runs
        ),
    ]
    if full:
        name = f"{_SMALL_LAYERS}_layers_{_SMALL_VOCABULARY}_tokens"
        name = f"train_step_stage4_small_{name}_ms"
        row = compare_stage(name, make_small(), make_transcripts, rows=2, runs=5)
        rows.append(row)
    return rows
