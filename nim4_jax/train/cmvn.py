"""Global mean and variance of log-mel features over a corpus."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from nim4_jax import features, sharding, whole_file
from nim4_jax.features import FeatureConfig
from nim4_jax.types import Frames, Params

Statistics = dict[str, list[float] | int]
_FLOOR = 1e-3  # least standard deviation, so that a dead channel is not blown up


def measure(audio: Iterable[Frames], config: FeatureConfig) -> Statistics:
    """Mean and standard deviation of each mel channel over all valid frames.

    Args:
        audio: batches of samples [B, S], on the host or spread over the current mesh;
            each shape compiles once.
        config: front end.

    Returns:
        {"mean": [M], "std": [M], "frames": count}.

    Raises:
        ValueError: there is no valid frame at all.
    """

    @functools.partial(jax.jit, out_shardings=sharding.replicated())
    def add_up(batch: Frames):
        frames = features.log_mel(batch, config)
        valid = frames.mask[..., None]
        values = jnp.where(valid, frames.values, 0.0)
        # Around a typical level, so that float32 sums lose nothing.
        centred = jnp.where(valid, values - 12.0, 0.0)
        # A row at a time: the same numbers, however rows are spread over devices.
        squares = jnp.sum(jnp.square(centred), axis=1)
        return jnp.sum(frames.mask), jnp.sum(centred, axis=1), squares

    count, total, square = 0, np.zeros(config.num_mels), np.zeros(config.num_mels)
    for batch in audio:
        frames, first, second = jax.device_get(add_up(batch))
        count += int(frames)
        total += first.sum(axis=0, dtype=np.float64)
        square += second.sum(axis=0, dtype=np.float64)
    if count == 0:
        raise ValueError(
            "no audio of at least 25 ms to measure mean and variance on; check the "
            "sources of the data."
        )
    mean = total / count
    deviation = np.sqrt(np.maximum(square / count - mean**2, _FLOOR**2))
    return {
        "mean": (mean + 12.0).tolist(),
        "std": deviation.tolist(),
        "frames": count,
    }


def write(path: str, statistics: Statistics) -> None:
    """Keep statistics as JSON."""
    whole_file.write_text(path, json.dumps(statistics) + "\n")


def read(path: str) -> Statistics:
    """Statistics that `write` kept.

    Raises:
        ValueError: the file is missing or holds something else.
    """
    try:
        statistics = json.loads(epath.Path(path).read_text(encoding="utf8"))
        mean, std = (np.asarray(statistics[key], float) for key in ("mean", "std"))
        if mean.ndim != 1 or mean.shape != std.shape:
            raise KeyError("mean and std of one length")
        if not (np.isfinite(mean).all() and np.isfinite(std).all() and (std > 0).all()):
            raise KeyError("finite numbers, std above 0")
    except (
        OSError,
        ValueError,
        LookupError,
        TypeError,
        OverflowError,
        RecursionError,
    ) as error:
        raise ValueError(
            f"{path} holds no feature statistics ({error}); make it with "
            "`nim4 cmvn --source=MANIFEST --out=FILE`."
        ) from error
    return statistics


def to_params(statistics: Statistics) -> Params:
    """Parameters of `models.asr.Cmvn`: values ↦ (values − mean) · scale."""
    return {
        "mean": jnp.asarray(statistics["mean"], jnp.float32),
        "scale": 1.0 / jnp.asarray(statistics["std"], jnp.float32),
    }
