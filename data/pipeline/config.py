"""The data configuration and the batch shapes that follow from it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nim4_jax.data.noise import channel, noise_draws
from nim4_jax.data.pipeline.buckets import Bucket
from nim4_jax.data.pipeline.hints import HintData
from nim4_jax.rates import Rates

_LABELS_PER_SECOND = 16  # default label width; fast English is 14 phonemes a second


@dataclass(frozen=True)
class DataConfig:
    """What is read, and in which shapes.

    Attributes:
        sources: specifications (`opening.open_source`), or (specification, weight) with
            the passes over that source in one epoch.
        batch_size: rows of a global batch; one number, or one per bucket; () where they
            follow from `device_seconds`, see `fit_rows`.
        device_seconds: audio of a batch for each device that has rows of its own,
            padding included.
        bucket_seconds: longest audio of each bucket, growing.
        max_phonemes: label width of each bucket; 16 a second if None.
        max_tokens: the same for tokens.
        speed_perturb: speed factors, drawn per example and epoch.
        tempo_share: share of the speech whose speed factor leaves its pitch as it is
            (tempo.py); 0 for none. It does nothing where all factors are 1.
        noise_share: share of the speech that gets silence around it and noise of one
            kind over both: babble of other utterances, a vehicle or music; 0 for none.
        noise_snr: mean and standard deviation of their signal-to-noise ratio, dB.
        noise_sources: folders of audio, or specifications like those of `sources`;
            pieces of these recordings replace vehicle and music, which are synthesised
            otherwise.
        room_share: share of the speech that is heard in a simulated room (rooms.py),
            0.3 to 4 m from the microphone; 0 for none.
        gain_share: share of all examples whose level is changed; 0 for none.
        gain_db: least and most gain, dB, drawn evenly; what exceeds full scale clips,
            and all is rounded to 16 bits, as a recorder does.
        telephone_share: share of all examples that go over a telephone line: 8 kHz,
            300 to 3400 Hz, µ-law or A-law, and back to 16 kHz; 0 for none.
        nonspeech_share: share of the examples of an epoch that hold silence, noise or
            music, and `<|im_end|>` as the answer; they come on top of the sources.
        long_seconds: from this length on a recording is a long one.
        long_weight: further passes over the long recordings in one epoch; 0 for none.
        hints: names in the prompt of each example; None leaves all prompts alike.
        seed: of all that is random.
        epochs: passes before the iterator ends; None goes on for ever.
        needs: of "phonemes" and "tokens": labels without which an example is skipped;
            the others are delivered one wide and masked.
        tokenizer: path to a tokenizer.json; None delivers no tokens.
        rates: of the model, which says what CTC can align.
        threads: decoding threads of this process; 0 decodes in `next`.
        workers: decoding processes (each with `threads`); 0 stays in this process. More
            than 0 needs parsed absl flags and a guarded main module.
        prefetch: batches made ahead, per process.
        cache_mb: memory for decoded audio, MB per process.
    """

    sources: tuple[str | tuple[str, float], ...]
    batch_size: int | tuple[int, ...] = 16
    device_seconds: float = 0.0
    bucket_seconds: tuple[float, ...] = (2.5, 4.0, 6.0)
    max_phonemes: tuple[int, ...] | None = None
    max_tokens: tuple[int, ...] | None = None
    speed_perturb: tuple[float, ...] = (1.0,)
    tempo_share: float = 0.0
    noise_share: float = 0.0
    noise_snr: tuple[float, float] = (10.0, 5.0)
    noise_sources: tuple[str, ...] = ()
    room_share: float = 0.0
    gain_share: float = 0.0
    gain_db: tuple[float, float] = (-30.0, 10.0)
    telephone_share: float = 0.0
    nonspeech_share: float = 0.0
    long_seconds: float = 10.0
    long_weight: float = 0.0
    hints: HintData | None = None
    seed: int = 0
    epochs: int | None = None
    needs: tuple[str, ...] = ("phonemes", "tokens")
    tokenizer: str | None = None
    rates: Rates = Rates()
    threads: int = 2
    workers: int = 0
    prefetch: int = 4
    cache_mb: float = 0.0


def fit_rows(config: DataConfig, shards: int, multiple: int) -> tuple[int, ...]:
    """Rows of each bucket's global batch: as much audio as `device_seconds` allows.

    Args:
        config: with `device_seconds`.
        shards: devices that rows are split over.
        multiple: what rows must be a multiple of; that many at least, even if they are
            too long.

    Raises:
        ValueError: neither rows nor seconds are configured, or both.
    """
    if bool(config.batch_size) == (config.device_seconds > 0):
        raise ValueError(
            f"data.batch_size={config.batch_size} and data.device_seconds="
            f"{config.device_seconds}: give one, rows or seconds for each device, and "
            "leave the other at () or 0."
        )
    allowed = config.device_seconds * shards
    return tuple(
        max(1, int(allowed / seconds / multiple)) * multiple
        for seconds in config.bucket_seconds
    )


def make_channels(config: DataConfig) -> channel.Distribution | None:
    """What tempo, rooms, gains and lines are drawn from; None where all are off.

    Raises:
        ValueError: shares outside 0 to 1, or gains in the wrong order.
    """
    source = channel.Distribution(
        config.room_share,
        config.gain_share,
        config.gain_db,
        config.telephone_share,
        config.tempo_share,
    )
    return None if source.is_off else source


def make_buckets(config: DataConfig) -> tuple[Bucket, ...]:
    """The batch shapes of a configuration.

    Raises:
        ValueError: empty, not growing, or of unequal numbers.
    """
    seconds = config.bucket_seconds
    if not seconds or list(seconds) != sorted(set(seconds)) or seconds[0] <= 0:
        raise ValueError(f"bucket_seconds {seconds}; expected growing positive seconds")
    unknown = set(config.needs) - {"phonemes", "tokens"}
    if unknown:
        raise ValueError(f"needs {sorted(unknown)}; choose from phonemes, tokens")
    if not config.speed_perturb or min(config.speed_perturb) <= 0:
        raise ValueError(f"speed_perturb {config.speed_perturb}; expected factors > 0")
    noise_draws.Distribution(config.noise_share, config.noise_snr)  # raises
    make_channels(config)  # raises
    if not 0 <= config.nonspeech_share < 1:
        raise ValueError(
            f"nonspeech_share {config.nonspeech_share}; expected 0 (none) to below 1"
        )
    if not 0 <= config.long_weight < float("inf"):
        raise ValueError(
            f"long_weight {config.long_weight}; expected passes, 0 or more"
        )
    if config.epochs is not None and config.epochs < 1:
        raise ValueError(f"epochs {config.epochs}; expected at least 1, or None")
    batch = config.batch_size
    default = tuple(int(np.ceil(s * _LABELS_PER_SECOND)) for s in seconds)
    columns = {
        "batch_size": (batch,) * len(seconds) if isinstance(batch, int) else batch,
        "max_phonemes": config.max_phonemes or default,
        "max_tokens": config.max_tokens or default,
    }
    if "phonemes" not in config.needs:
        columns["max_phonemes"] = (1,) * len(seconds)
    if "tokens" not in config.needs or not config.tokenizer:
        columns["max_tokens"] = (1,) * len(seconds)
    for name, column in columns.items():
        growing = name == "batch_size" or list(column) == sorted(column)
        if len(column) != len(seconds) or min(column) < 1 or not growing:
            raise ValueError(
                f"{name} {column}; expected {len(seconds)} numbers ≥ 1, one per bucket"
                + ("" if name == "batch_size" else ", not shrinking")
            )
    return tuple(Bucket(*row) for row in zip(seconds, *columns.values()))
