"""A model, batches and recipes of almost no size, for tests of training."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import grain
import jax
import numpy as np

from nim4_jax.features import FeatureConfig, WhisperFeatures
from nim4_jax.models.asr import Asr, AsrConfig, Prompt
from nim4_jax.models.conformer import ConformerConfig
from nim4_jax.models.llm_config import LLMConfig
from nim4_jax.models.whisper_encoder import WhisperEncoderConfig
from nim4_jax.ops.chunking import DynamicChunks
from nim4_jax.ops.spec_augment import SpecAugmentConfig
from nim4_jax.train import loop, optim
from nim4_jax.train import state as train_state
from nim4_jax.train.losses import CrCtc, Transcribe
from nim4_jax.train.optim import OptimizerConfig
from nim4_jax.train.recipes import Recipe
from nim4_jax.types import AsrBatch

CONFIG = AsrConfig(
    features=FeatureConfig(num_mels=16),
    encoder=ConformerConfig(
        num_layers=1,
        width=16,
        num_heads=2,
        num_mels=16,
        subsampling_channels=2,
        ffn_factor=2,
        conv_kernel=3,
        conv_expansion=1,
    ),
    adaptor_width=16,
    num_phonemes=8,
    llm=LLMConfig(
        vocab_size=32,
        width=16,
        num_layers=1,
        num_heads=2,
        num_kv_heads=1,
        head_dim=8,
        ffn=16,
    ),
)
# By encoder, each with its own features.
CONFIGS = {
    "conformer": CONFIG,
    "whisper": dataclasses.replace(
        CONFIG,
        features=WhisperFeatures(num_mels=16, floor=-8.0),
        encoder=WhisperEncoderConfig(
            num_layers=2, width=16, num_heads=2, num_mels=16, ffn_factor=2
        ),
        speech_stride=8,
    ),
}
PROMPT = Prompt(prefix=(1, 2), suffix=(3,))
SAMPLES, PHONEMES, TOKENS = 4_800, 4, 3

NO_AUGMENT = SpecAugmentConfig(warp=0, freq_masks=0, time_masks=0)
FULL = DynamicChunks(full_share=1.0)
PLAIN_CTC = CrCtc(views=1, augment=NO_AUGMENT, chunks=FULL)
PLAIN_TRANSCRIBE = Transcribe(PROMPT, augment=NO_AUGMENT, chunks=FULL)


def make_arrays(seed: int, rows: int = 4, samples: int = SAMPLES) -> dict[str, Any]:
    """One batch as the pipeline gives it: noise of several lengths, random labels."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(samples * 3 // 4, samples + 1, (rows, 1))
    mask = np.arange(samples)[None] < lengths
    noise = 0.1 * rng.normal(size=(rows, samples))
    arrays = {
        "audio": np.where(mask, noise, 0.0).astype(np.float32),
        "audio_mask": mask,
        "index": np.arange(rows) + 100 * seed,
    }
    for name, width, classes in (
        ("phonemes", PHONEMES, CONFIG.num_phonemes),
        ("tokens", TOKENS, CONFIG.llm.vocab_size),
    ):
        # Neighbours differ, so that short audio has frames enough.
        steps = rng.integers(1, classes - 1, (rows, width))
        ids = 1 + np.cumsum(steps, axis=1) % (classes - 1)
        kept = np.arange(width)[None] < rng.integers(1, width + 1, (rows, 1))
        arrays[name] = np.where(kept, ids, 0).astype(np.int32)
        arrays[f"{name}_mask"] = kept
    return arrays


def make_batch(seed: int, rows: int = 4, samples: int = SAMPLES) -> AsrBatch:
    """`make_arrays` as a struct on the host."""
    return loop.to_batch(make_arrays(seed, rows, samples))


def make_data(broken: tuple[int, ...] = ()) -> Iterator[dict[str, Any]]:
    """Endless batches as a Grain iterator; those in `broken` are NaN."""

    def load(step: int) -> dict[str, Any]:
        arrays = make_arrays(step)
        return arrays | {"audio": arrays["audio"] * (np.nan if step in broken else 1)}

    data = grain.MapDataset.range(10_000).map(load)
    return iter(data.to_iter_dataset(grain.ReadOptions(0, 0)))


def make_recipe(
    loss: Any, rules: optim.Rules = ((".*", 1.0),), steps: int = 10
) -> Recipe:
    """A recipe whose first steps already move something."""
    optimizer = OptimizerConfig(peak_rate=1e-2, warmup_steps=1, weight_decay=1e-2)
    return Recipe(loss, rules, optimizer, steps)


def make_params(recipe: Recipe, config: AsrConfig = CONFIG) -> dict[str, Any]:
    """Random parameters of what the recipe reaches, without compiling initialisers."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(
        lambda: train_state.init_params(Asr(config), recipe, make_batch(0), 0)
    )

    def draw(path: Any, leaf: Any) -> np.ndarray:
        name = path[-1].key
        noise = 0.3 * rng.normal(size=leaf.shape)
        return np.float32(noise + (name == "scale") - 3.0 * (name == "mean"))

    return jax.tree_util.tree_map_with_path(draw, shapes)


def make_state(recipe: Recipe, config: AsrConfig = CONFIG):
    """(optimizer, state at step 0) with random parameters."""
    tx = optim.make_optimizer(recipe.optimizer, recipe.rules, recipe.steps)
    params = jax.tree.map(jax.numpy.asarray, make_params(recipe, config))
    return tx, train_state.init_state(params, recipe, tx)
