"""Make a hotword database from a list of names.

nim4 build_hotwords --input=names.jsonl --out=hotwords
nim4 build_hotwords --input=names.jsonl --out=hotwords --near=scann
nim4 build_hotwords --out=hotwords --near=scann     # the index of what is there

The list: a name a line; or TSV, CSV or JSONL with text, pronunciation, weight, tag,
tenant. A name listed twice has the readings of both lines and the greater weight.
Names of a tenant come into a database of their own, OUT/tenants/TENANT, which nobody
else opens. A second build into the same folder keeps the readings that it finds there.
"""

from __future__ import annotations

import os

from absl import app, flags

from nim4_jax.launch import program
from nim4_jax.retrieval.gate import LATTICE, SCANN
from nim4_jax.serving import hotword_build


def define_flags() -> None:
    """The command's flags."""
    flags.DEFINE_string(
        "input", None, "List of names; with --near=scann it may be missing."
    )
    flags.DEFINE_string("out", None, "Folder of the database.", required=True)
    flags.DEFINE_string(
        "text",
        hotword_build._TEXTS,
        "Ordinary sentences (a source, or a text file) that tell how often a name's "
        "phonemes occur by chance.",
    )
    flags.DEFINE_enum(
        "near",
        LATTICE,
        (LATTICE, SCANN),
        "Where near matches can be looked for: the lattice of what was heard, which "
        "every database can, or ScaNN's index too, which is built beside it.",
    )
    flags.DEFINE_integer(
        "workers", os.cpu_count() or 1, "Processes that pronounce.", lower_bound=1
    )


def main(_) -> None:
    """Entry point of `nim4 build_hotwords`."""
    given = flags.FLAGS
    if given.input:
        hotword_build.run(given.input, given.out, given.text, given.workers, given.near)
    elif given.near == SCANN:
        hotword_build.add_indexes(given.out)
    else:
        raise app.UsageError(
            "--input=LIST is needed; without it, --near=scann adds an index to the "
            "database in --out."
        )


if __name__ == "__main__":
    program.launch(main, define_flags)
