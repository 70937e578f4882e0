"""Train a list of stages, each from the last; skips what is finished.

python launch/pipeline.py --config=configs/pipeline.py:nano --workdir=runs/nano

Stages of one group train together: the first one publishes encoders, the others follow
them; --config.mode says how (parallel, interleaved or sequential). Exit codes are those
of launch/train.py; 75 ends the whole pipeline, and the same command goes on.
"""

from __future__ import annotations

from absl import app, flags
from ml_collections import config_flags

from nim4_jax.launch import program
from nim4_jax.runs import pipeline, restart, start


def define_flags() -> None:
    """The command's flags."""
    flags.DEFINE_string(
        "workdir", None, "Folder; each stage gets a folder of its name inside."
    )
    config_flags.DEFINE_config_file("config", lock_config=True)
    restart.define_flags()


def main(_) -> None:
    """Entry point of `launch/pipeline.py` and `nim4 pipeline`."""
    given = flags.FLAGS
    if not given.workdir:
        raise app.UsageError("--workdir=DIR is needed: the stages' folders go there.")
    with start.begun(given.config, given.workdir) as (stop, allowed):
        pipeline.run(given.config, given.workdir, stop=stop, allowed=allowed)


if __name__ == "__main__":
    program.launch(main, define_flags)
