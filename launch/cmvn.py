"""Measure the mean and variance of the features of a corpus.

python launch/cmvn.py --source=train.jsonl --out=cmvn.json
"""

from __future__ import annotations

from absl import app, flags

from nim4_jax.launch import program
from nim4_jax.runs import feature_statistics


def define_flags() -> None:
    """The command's flags."""
    flags.DEFINE_list("source", None, "Sources, by commas: manifest.jsonl, …")
    flags.DEFINE_string("out", None, "JSON file to write.")
    flags.DEFINE_integer("num_mels", 80, "Mel channels.", lower_bound=1)


def main(_) -> None:
    """Entry point of `launch/cmvn.py` and `nim4 cmvn`."""
    given = flags.FLAGS
    if not given.source or not given.out:
        raise app.UsageError("--source=SOURCE,… and --out=FILE are needed.")
    statistics = feature_statistics.run(given.source, given.out, given.num_mels)
    print(f"{given.out}: {statistics['frames']} frames of {given.num_mels} channels")


if __name__ == "__main__":
    program.launch(main, define_flags)
