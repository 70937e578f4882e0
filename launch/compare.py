r"""Compare two evaluations of the same sets: is b better than a, or is it luck?

nim4 compare --a=runs/demo/evaluation --b=runs/other/evaluation [--out=FILE.json]

Each figure comes with the difference b − a, its 95 % interval by resampling utterances
(paired bootstrap), and a verdict.
"""

from __future__ import annotations

import json
from pathlib import Path

from absl import app, flags

from nim4_jax import whole_file
from nim4_jax.eval.measures import bootstrap
from nim4_jax.eval.reports import comparison
from nim4_jax.launch import program


def define_flags() -> None:
    """The command's flags."""
    flags.DEFINE_string("a", None, "Folder of an evaluation: the one before.")
    flags.DEFINE_string("b", None, "Folder of an evaluation: the one after.")
    flags.DEFINE_string("out", None, "JSON file to write the figures to.")
    flags.DEFINE_integer(
        "resamples", bootstrap.RESAMPLES, "Draws of the bootstrap.", lower_bound=1
    )
    flags.DEFINE_integer("seed", 0, "Of the draws.", lower_bound=0)


def run(
    a: str,
    b: str,
    out: str | None = None,
    *,
    resamples: int = bootstrap.RESAMPLES,
    seed: int = 0,
) -> comparison.Comparison:
    """Compare two folders that `nim4 evaluate` wrote.

    Args:
        a: the one before.
        b: the one after.
        out: JSON file of the figures; None writes none.
        resamples: draws of the bootstrap.
        seed: of the draws.

    Raises:
        ValueError: no evaluation there, or none of the same utterances.
    """
    rows = [comparison.read_rows(folder) for folder in (a, b)]
    made = comparison.compare(*rows, resamples=resamples, seed=seed)
    if out:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        figures = {"a": a, "b": b, **comparison.to_json(made)}
        text = json.dumps(figures, ensure_ascii=False, indent=1) + "\n"
        whole_file.write_text(Path(out), text)
    return made


def main(_) -> None:
    """Entry point of `launch/compare.py` and `nim4 compare`."""
    given = flags.FLAGS
    if not given.a or not given.b:
        raise app.UsageError("--a=FOLDER and --b=FOLDER are needed.")
    made = run(given.a, given.b, given.out, resamples=given.resamples, seed=given.seed)
    print(comparison.to_markdown(made), end="")


if __name__ == "__main__":
    program.launch(main, define_flags)
