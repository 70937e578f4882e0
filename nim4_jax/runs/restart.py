"""Resuming of a run: what may have changed, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from absl import flags, logging
from ml_collections import ConfigDict

from nim4_jax.train.optim import OptimizerConfig

HARMLESS = frozenset(
    {
        "steps",
        "log_every",
        "checkpoint_every",
        "checkpoint_keep",
        "checkpoint_keep_every",
        "timeout_minutes",
        "skip_limit",
        "mesh",
        "micro_batches",
        "rollout_devices",
        "init_from",
        "cmvn",
        "cmvn_hours",
        "data.threads",
        "data.workers",
        "data.prefetch",
        "data.cache_mb",
        "model.remat",
        "model.policy.kernels",
        "probe",
        "publish.folder",
        "follow.folder",
        "follow.limit_seconds",
        "follow.poll_seconds",
    }
)
"""Keys of a config, with what is below them, that may change while a run is trained:
how long and where it runs and what it writes, not what it learns from."""

_SHOWN = 8


@dataclasses.dataclass(frozen=True)
class Restart:
    """What the user allows where a run is resumed.

    Attributes:
        fallback: take the checkpoint before, if the newest is broken.
        force_config: go on with another config than the run was begun with, or with
            other data, of which a new epoch then begins; for data that has moved or
            grown, or a rate that is to change.
    """

    fallback: bool = False
    force_config: bool = False

    def check(self, saved: Mapping[str, Any], config: ConfigDict) -> None:
        """Refuse to continue another run.

        Args:
            saved: facts of the checkpoint, of `run_settings.describe`.
            config: of this run.

        Raises:
            ValueError: they differ in more than `HARMLESS` keys; names them with both
                values.
        """
        before = json.loads(saved["config"])
        now = json.loads(config.to_json_best_effort())
        found = [
            f"{key} was {old!r}, is {new!r}"
            for key, old, new in differ(before, now)
            if not any(key == h or key.startswith(f"{h}.") for h in HARMLESS)
        ]
        if not found:
            return
        more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        listed = "; ".join(found[:_SHOWN]) + more
        if not self.force_config:
            raise ValueError(
                f"this workdir is of another run: {listed}. Choose another --workdir, "
                "go on with the config that it was begun with, or change the run on "
                "purpose with --force_config."
            )
        logging.warning("the run goes on with another config: %s", listed)


def tell_rate(
    saved: Mapping[str, Any], optimizer: OptimizerConfig, steps: int, step: int
) -> str:
    """What another length of the run does to the learning rate; "" for nothing.

    Warns as well. The decay is spread over all steps, so the rate jumps where the run
    goes on.

    Args:
        saved: facts of the checkpoint.
        optimizer: of this run.
        steps: its length.
        step: at which it goes on.
    """
    before = int(saved["steps"])
    if before == steps or step >= steps:
        return ""
    old, new = (float(optimizer.schedule(n)(step)) for n in (before, steps))
    ratio = new / old if old else float("inf")
    told = (
        f"config.steps was {before}, is {steps}: the decay of the learning rate is "
        f"spread over all steps, so at step {step} it goes from {old:.3g} to {new:.3g} "
        f"(× {ratio:.2g}); for another rate set config.optimizer.peak_rate with "
        "--force_config"
    )
    logging.warning("%s", told)
    return told


def differ(before: Any, now: Any, where: str = "") -> list[tuple[str, Any, Any]]:
    """(dotted key, old value, new value) wherever two trees of JSON values differ.

    Keys that only one of them has do not count: versions of the package come and go
    with keys, and the model's and the data's own checks notice what matters.
    """
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        return [
            found
            for key in before
            if key in now
            for found in differ(before[key], now[key], f"{where}.{key}".lstrip("."))
        ]
    return [] if before == now else [(where, before, now)]


def define_flags() -> None:
    """The flags of commands that resume runs."""
    flags.DEFINE_bool(
        "restore_fallback",
        False,
        "If the newest checkpoint is broken, keep it aside and take the one before.",
    )
    flags.DEFINE_bool(
        "force_config",
        False,
        "Go on in a workdir whose run was begun with another config or other data.",
    )


def from_flags() -> Restart:
    """What the user allows."""
    return Restart(flags.FLAGS.restore_fallback, flags.FLAGS.force_config)
