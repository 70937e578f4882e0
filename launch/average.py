"""Average models: nim4 average --models=runs/a@4000,runs/a@6000 --out=FILE.

Of checkpoints of one run, the mean hears better than each. Of an encoder before and
after it was adapted, it keeps more of what the first one knew (WiSE-FT, arXiv
2109.01903): --models=adapted,original --weights=0.6,0.4. A part that only some of the
models have is the mean of theirs.
"""

from __future__ import annotations

from absl import flags

from nim4_jax.launch import program
from nim4_jax.model_files import averaging


def define_flags() -> None:
    """The command's flags."""
    flags.DEFINE_list(
        "models", None, "Workdirs, WORKDIR@STEP, or snapshots.", required=True
    )
    flags.DEFINE_list("weights", [], "A number for each model; empty: all alike.")
    flags.DEFINE_string("out", None, "File to write, *.safetensors.", required=True)
    flags.DEFINE_enum("dtype", "bfloat16", ["bfloat16", "float32"], "Of matrices.")


def main(_) -> None:
    """Entry point of `nim4 average`."""
    given = flags.FLAGS
    try:
        weights = [float(weight) for weight in given.weights]
    except ValueError as error:
        raise ValueError(f"--weights={','.join(given.weights)}: {error}.") from error
    averaging.run(given.models, weights, given.out, given.dtype)


if __name__ == "__main__":
    program.launch(main, define_flags)
