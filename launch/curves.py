r"""Draw metrics of runs over their steps, a panel each, a line a run.

nim4 curves --runs=runs/rl/seed0,runs/rl/seed1 --metrics=train/reward,train/kl \
    --out=rl.png
"""

from __future__ import annotations

from absl import app, flags

from nim4_jax.eval.reports import curves
from nim4_jax.launch import program


def define_flags() -> None:
    """The command's flags."""
    flags.DEFINE_list("runs", None, "Workdirs that hold a metrics.jsonl, by commas.")
    flags.DEFINE_list("metrics", None, "Names of metrics, by commas.")
    flags.DEFINE_string("out", None, "PNG to write.")


def main(_) -> None:
    """Entry point of `launch/curves.py` and `nim4 curves`."""
    given = flags.FLAGS
    if not given.runs or not given.metrics or not given.out:
        raise app.UsageError("--runs=DIR,… --metrics=NAME,… and --out=FILE are needed.")
    print(curves.plot_metrics(given.runs, given.metrics, given.out))


if __name__ == "__main__":
    program.launch(main, define_flags)
