"""Train one stage.

python launch/train.py --config=configs/stage2.py:nano --workdir=DIR

Running the same command again resumes from the last checkpoint. Exit codes: 0 done, 2
wrong input, 75 interrupted and saved, 76 a host hung; after the last two the same
command goes on.
"""

from __future__ import annotations

from absl import app, flags
from ml_collections import config_flags

from nim4_jax.launch import compile_only, program
from nim4_jax.runs import (
    restart,
    start,
    training,
)


def define_flags() -> None:
    """The command's flags; not at import, because launchers import each other."""
    flags.DEFINE_string("workdir", None, "Folder of checkpoints and metrics.")
    config_flags.DEFINE_config_file("config", lock_config=True)
    flags.DEFINE_string("profile", "", "Steps to trace, FIRST:LAST, as in 100:105.")
    restart.define_flags()
    compile_only.define_flags()


def main(_) -> None:
    """Entry point of `launch/train.py` and `nim4 train`."""
    given = flags.FLAGS
    if given.compile_only:
        return compile_only.main(given.config)
    if not given.workdir:
        raise app.UsageError(
            "--workdir=DIR is needed: checkpoints and metrics go there."
        )
    with start.begun(given.config, given.workdir) as (stop, allowed):
        training.run(
            given.config,
            given.workdir,
            stop=stop,
            allowed=allowed,
            profile=given.profile,
        )


if __name__ == "__main__":
    program.launch(main, define_flags)
