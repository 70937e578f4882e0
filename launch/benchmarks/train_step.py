"""One update of the nano model's stage 1 (CR-CTC): ours against torch."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nim4_jax.configs import stage1
from nim4_jax.launch import assembly
from nim4_jax.launch.benchmarks import measure
from nim4_jax.models.asr import Asr
from nim4_jax.train import optim
from nim4_jax.train import state as train_state
from nim4_jax.train.step import make_train_step
from nim4_jax.types import AsrBatch, Frames, Labels

_ROWS, _SECONDS, _PHONEMES = 8, 4.0, 30


def make_arrays(num_phonemes: int) -> dict[str, np.ndarray]:
    """A batch of noise with lengths between 3 s and 4 s, and random phonemes."""
    rng = np.random.default_rng(0)
    size = int(_SECONDS * 16_000)
    phonemes = rng.integers(1, num_phonemes, (_ROWS, _PHONEMES))
    return {
        "audio": (0.1 * rng.normal(size=(_ROWS, size))).astype(np.float32),
        "lengths": rng.integers(size * 3 // 4, size + 1, _ROWS),
        "phonemes": phonemes,
        "phoneme_lengths": np.full(_ROWS, _PHONEMES),
    }


def to_batch(arrays: dict[str, np.ndarray]) -> AsrBatch:
    """The same batch as our model takes it."""
    audio = arrays["audio"]
    mask = np.arange(audio.shape[1])[None] < arrays["lengths"][:, None]
    phonemes = arrays["phonemes"].astype(np.int32)
    tokens = np.zeros((_ROWS, 1))
    batch = AsrBatch(
        Frames(audio, mask),
        Labels(phonemes, np.ones(phonemes.shape, bool)),
        Labels(tokens.astype(np.int32), tokens.astype(bool)),
    )
    return jax.tree.map(jnp.asarray, batch)


class Trainer:
    """Our state and jitted step over the packaged configuration of stage 1."""

    def __init__(self, made: assembly.TrainSettings, batch: AsrBatch):
        recipe, model = made.recipe, Asr(made.model, deterministic=False)
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


def run(full: bool, threads: int) -> list[measure.Row]:
    """Audio in memory to updated parameters.

    Raises:
        ValueError: the two models are not of one size.
    """
    torch = measure.need("torch")
    # Here and not above, because torch is a peer that most installations lack.
    from nim4_jax.launch.benchmarks import torch_conformer

    torch.set_num_threads(threads)
    config = stage1.get_config("nano")
    config.loss.augment.warp = 0  # torch's side has no time warp
    made = assembly.build_settings(config)
    arrays = make_arrays(made.model.num_phonemes)
    batch = to_batch(arrays)
    ours = Trainer(made, batch)
    peer = torch_conformer.Trainer(made.model, made.recipe.loss.augment)
    sizes = ours.num_parameters, peer.count_parameters()
    if sizes[0] != sizes[1]:
        raise ValueError(f"models of {sizes} parameters; a ratio would mean nothing.")
    return [
        measure.compare(
            "train_step_nano_ms",
            "ms",
            lambda: ours.step(batch),
            lambda: peer.step(arrays),
            peer_name="torch, the same step eagerly",
            runs=31 if full else 7,
        )
    ]
