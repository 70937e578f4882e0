"""`nim4 bench serve`: its flags, and what they ask for.

nim4 bench serve --json --full --model=runs/demo/stage4 --streams=64
nim4 bench serve --json --device=none --threads=1 --streams=1024
"""

from __future__ import annotations

from typing import Any

from absl import flags

from nim4_jax.eval.speed import measure, serve
from nim4_jax.eval.speed.serve_process import DEVICES


def define_flags() -> None:
    """Those that no other bench has."""
    flags.DEFINE_enum(
        "device",
        "model",
        DEVICES,
        "Of the server of `serve`; none: one that costs nothing, so that the limit of "
        "the host shows.",
    )
    flags.DEFINE_string("url", "", "For `serve`, ws://…/v1/stream of one that runs.")
    flags.DEFINE_string(
        "clips",
        "",
        "Folder of recordings that clients of `serve` play; empty: packaged.",
    )


def run(full: bool, threads: int) -> list[measure.Row]:
    """The bench, as the flags have it."""
    given: Any = flags.FLAGS
    settings = serve.Settings(
        model=given.model,
        device=given.device,
        url=given.url,
        clips=given.clips,
        streams=given.streams,
        seconds=given.seconds,
    )
    return serve.run(full, threads, settings)
