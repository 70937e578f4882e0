"""The callbacks of a run, made from its config: publishing, following, drift."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from typing import Any

from absl import logging

from nim4_jax import sharding
from nim4_jax.data.pipeline import iterators
from nim4_jax.data.pipeline.config import DataConfig
from nim4_jax.model_files import loading
from nim4_jax.models.asr import Asr
from nim4_jax.runs import run_settings
from nim4_jax.train import loop, optim
from nim4_jax.train.callbacks import Callback
from nim4_jax.train.drift_probe import DriftConfig, DriftProbe
from nim4_jax.train.multihost import consensus
from nim4_jax.train.releases.encoder_probe import (
    PARTS,
    EncoderProbe,
    spread,
    take_parts,
)
from nim4_jax.train.releases.publisher import Publisher
from nim4_jax.train.releases.subscriber import Subscriber
from nim4_jax.types import Params
from nim4_jax.weights import snapshot

REFERENCE = "reference.safetensors"
"""In WORKDIR: the encoder that the run began with, where drift is measured from it."""


def make_subscriber(
    made: run_settings.TrainSettings, sleep: Callable[[float], None]
) -> Subscriber | None:
    """The subscriber callback of this run, None if it follows no releases.

    Args:
        made: the run.
        sleep: how to wait for a release.

    Raises:
        ValueError: numbers that cannot work.
    """
    if made.follow is None or not made.follow.folder:
        return None
    follower = made.follow.follower(made.recipe.steps, made.checkpoint_every)
    return Subscriber(made.follow, follower, sleep)


def check_frozen(made: run_settings.TrainSettings, params: Params) -> None:
    """Refuse to follow releases of parameters that the run itself trains.

    Raises:
        ValueError: a trained parameter belongs to what a release replaces, by path.
    """
    trainable, _ = optim.split_params(params, made.recipe.rules)
    wrong = [path for path in trainable if path.split("/")[0] in PARTS]
    if wrong and made.follow is not None:
        raise ValueError(
            f"config.follow.folder={made.follow.folder!r} would overwrite "
            f"{wrong[0]!r}, which config.rules train; freeze {', '.join(PARTS)} with "
            "None, or follow nothing."
        )


def check_sources(made: run_settings.TrainSettings) -> None:
    """Refuse an empty set for comparing encoders, before anything is loaded.

    Raises:
        ValueError: recordings to compare on are missing; says which key to set.
    """
    publish, drift = made.publish, made.probe
    if publish is not None and publish.folder and not publish.sources:
        raise ValueError(
            "config.publish.sources is empty: which encoders are released is decided "
            "on recordings like those that the model is for; name held-out ones "
            "(manifests), or set config.publish.folder to ''."
        )
    if drift is not None and drift.every and not drift.sources:
        raise ValueError(
            "config.probe.sources is empty: how far the encoder drifts is measured on "
            "recordings like those that the model is for; name held-out ones "
            "(manifests), or set config.probe.every to 0."
        )


def make_others(
    made: run_settings.TrainSettings,
    meta: dict[str, Any],
    workdir: str,
    first: Params | None,
) -> list[Callback]:
    """The publisher and the drift callback of this run, where its config has them.

    Args:
        made: the run.
        meta: facts of its checkpoints.
        workdir: its folder.
        first: the parameters that it begins with, None when it is resumed.

    Raises:
        ValueError: numbers that cannot work, recordings or a reference that cannot be
        read.
    """
    found: list[Callback] = []
    publish, drift = made.publish, made.probe
    if publish is not None and publish.folder:
        watcher = publish.watcher()
        probe = make_probe(made, publish.sources, publish.batches)
        # The same run elsewhere publishes the same files, whatever its paths are.
        facts = {name: fact for name, fact in meta.items() if name != "config"}
        found.append(Publisher(publish.folder, watcher, probe, facts))
    if drift is not None and drift.every:
        probe = make_probe(made, drift.sources, drift.batches)
        reference = _find_reference(drift, meta, workdir, first)
        found.append(DriftProbe(probe, reference, drift.every))
    return found


def make_probe(
    made: run_settings.TrainSettings, sources: tuple[str, ...], batches: int
) -> EncoderProbe:
    """Batches of the sources in the shapes of the training data, and the encoder.

    Raises:
        ValueError: no such recordings, or training on text.
    """
    if not isinstance(made.data, DataConfig):
        raise ValueError(
            f"{made.stage} trains on text, which no encoder hears; set "
            "config.publish.folder to '' and config.probe.every to 0."
        )
    config = dataclasses.replace(
        made.data,
        sources=sources,
        needs=("phonemes",),
        tokenizer=None,
        max_phonemes=None,
        max_tokens=None,
        speed_perturb=(1.0,),
        workers=0,
        cache_mb=0.0,
    )
    heard = (loop.to_batch(arrays) for arrays in iterators.iterate_eval(config))
    chosen = spread(heard, batches)
    logging.info("encoders are compared on %d batches of %s", len(chosen), sources)
    return EncoderProbe(Asr(made.model), chosen)


def _find_reference(
    drift: DriftConfig, meta: dict[str, Any], workdir: str, first: Params | None
) -> Params:
    """Stage 1's part of the parameters from where the config says."""
    if drift.reference:
        params = loading.load_trainable(drift.reference)
        origin = drift.reference
    else:
        origin = os.path.join(workdir, REFERENCE)
        if first is not None:
            whole = sharding.gather(take_parts(first))
            consensus.lead(lambda: snapshot.write(origin, whole, meta))
        try:
            params, _ = snapshot.read(origin)
        except ValueError as error:
            raise ValueError(
                f"{error} It holds the encoder that this run began with; name another "
                "one in config.probe.reference, or set config.probe.every to 0."
            ) from error
    missing = [name for name in PARTS if name not in params]
    if missing:
        raise ValueError(
            f"{origin} has no {', '.join(missing)}; drift is measured from a model of "
            "stage 1 or later: name one in config.probe.reference."
        )
    return take_parts(params)
