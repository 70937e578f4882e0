"""SpecAugment on device: time warp, frequency masks, time masks.

Sources: arXiv 1904.08779; amounts as CR-CTC, arXiv 2410.05101 (lhotse's counting rule).
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from nim4_jax.ops import sampling
from nim4_jax.types import Frames


@dataclasses.dataclass(frozen=True)
class SpecAugmentConfig:
    """How much is warped and masked.

    Attributes:
        warp: largest shift of the warp's centre, frames; 0 for none.
        freq_masks: number of frequency masks.
        freq_width: largest width of one, mel channels.
        time_masks: largest number of time masks.
        time_width: largest width of one, frames.
        time_fraction: largest share of an utterance's frames that all of them may hide.
    """

    warp: int = 80
    freq_masks: int = 2
    freq_width: int = 27
    time_masks: int = 25
    time_width: int = 100
    time_fraction: float = 0.375


def warp_time(rng: Key[Array, "*B"], features: Frames, window: int) -> Frames:
    """Move a random centre frame by up to `window` frames, stretching both sides.

    Utterances of 2·window frames or fewer stay as they are. Lengths do not change.

    Args:
        rng: one key, or a key per row: a row then draws the same in any batch.
        features: [B, T, M].
        window: frames; 0 for no warp.

    Raises:
        ValueError: neither one key nor B keys.
    """
    if window == 0:
        return features
    length = features.lengths()[:, None].astype(jnp.float32)
    batch = length.shape[0]
    keys = sampling.row_keys(rng, batch)
    drawn = jax.vmap(lambda key: jax.random.uniform(key, (2,)))(keys)
    place, shift = drawn[:, :1], drawn[:, 1:]
    center = jnp.floor(window + place * jnp.maximum(length - 2 * window, 0.0))
    moved = center + jnp.floor((2.0 * shift - 1.0) * (window - 1))
    long_enough = length > 2 * window
    time = jnp.arange(features.mask.shape[1], dtype=jnp.float32)[None]
    before = time * center / jnp.maximum(moved, 1.0)
    stretch = (length - center) / jnp.maximum(length - moved, 1.0)
    source = jnp.where(time < moved, before, center + (time - moved) * stretch)
    source = jnp.where(long_enough, jnp.clip(source, 0.0, length - 1.0), time)
    low = jnp.floor(source)
    weight = (source - low)[..., None]
    low = low.astype(jnp.int32)
    high = jnp.minimum(low + 1, jnp.maximum(features.lengths()[:, None] - 1, 0))
    high = jnp.where(long_enough, high, low)
    values = features.masked().values

    def take(index: Array) -> Array:
        return jnp.take_along_axis(values, index[..., None], axis=1)

    return dataclasses.replace(
        features, values=take(low) * (1.0 - weight) + take(high) * weight
    )


def _cover(keys: Array, widest: Array, room: Array, size: int, active: Array) -> Array:
    """Bool [B, size]: places that at least one of [B, K] random intervals covers."""
    count = active.shape[1]
    drawn = jax.vmap(lambda key: jax.random.uniform(key, (2, count)))(keys)
    width = jnp.floor(jnp.minimum(drawn[:, 0] * (widest + 1.0), widest))
    start = drawn[:, 1] * (room - width + 1.0)
    start = jnp.floor(jnp.maximum(start, 0.0))
    place = jnp.arange(size, dtype=jnp.float32)[None, None]
    inside = (place >= start[..., None]) & (place < (start + width)[..., None])
    return jnp.any(inside & active[..., None], axis=1)


def mask_features(
    rng: Key[Array, "*B"], features: Frames, config: SpecAugmentConfig
) -> Frames:
    """Set random bands and spans to 0, the mean of normalised features.

    Of an utterance of n frames at most n · time_fraction are hidden, in
    ⌈that / time_width⌉ spans of equal largest width, at most `time_masks` of them.

    Args:
        rng: one key, or a key per row: a row then draws the same in any batch.
        features: [B, T, M].
        config: how much is masked.

    Raises:
        ValueError: neither one key nor B keys.
    """
    batch, length, mels = features.values.shape
    keys = sampling.row_keys(rng, batch)
    time_keys, freq_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
    frames = features.lengths()[:, None].astype(jnp.float32)
    budget = jnp.floor(frames * config.time_fraction)
    hidden = jnp.zeros((batch, length, mels), bool)
    if config.time_masks:
        count = jnp.minimum(jnp.ceil(budget / config.time_width), config.time_masks)
        count = jnp.maximum(count, 1.0)
        widest = jnp.minimum(jnp.floor(budget / count), config.time_width)
        index = jnp.arange(config.time_masks, dtype=jnp.float32)[None]
        covered = _cover(time_keys, widest, frames, length, index < count)
        hidden = hidden | covered[:, :, None]
    if config.freq_masks:
        active = jnp.ones((batch, config.freq_masks), bool)
        widest = jnp.asarray(float(min(config.freq_width, mels)))
        room = jnp.asarray(float(mels))
        covered = _cover(freq_keys, widest, room, mels, active)
        hidden = hidden | covered[:, None, :]
    zero = jnp.zeros((), features.values.dtype)
    return dataclasses.replace(
        features, values=jnp.where(hidden, zero, features.values)
    )
