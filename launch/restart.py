"""How a run goes on from what lies in its workdir, and when it refuses to."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from absl import flags, logging
from ml_collections import ConfigDict

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
        force_config: go on with another config than the run was begun with; for data
            that has moved, or a rate that is to change.
    """

    fallback: bool = False
    force_config: bool = False

    def check(self, saved: Mapping[str, Any], config: ConfigDict) -> None:
        """Refuse to continue another run.

        Args:
            saved: facts of the checkpoint, of `assembly.describe`.
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
        "Go on in a workdir whose run was begun with another config.",
    )


def from_flags() -> Restart:
    """What the user allows."""
    return Restart(flags.FLAGS.restore_fallback, flags.FLAGS.force_config)
