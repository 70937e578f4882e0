"""Compile every stage for TPUs and GPUs that are not here; tabulate memory and speed.

python launch/scale.py --topologies=v5e-16 --stages=4 --out=page.md

Each program is compiled in a process of its own, by `nim4 train --compile_only`, and
its report kept in --reports: what is there is not compiled again.
"""

from __future__ import annotations

import sys
from pathlib import Path

from absl import flags, logging

from nim4_jax import whole_file
from nim4_jax.aot import scale_page, scale_reports
from nim4_jax.launch import program

_UNTOLD = ("reports", "compile", "out")


def define_flags() -> None:
    """The command's flags."""
    flags.DEFINE_list(
        "stages", ["1", "2", "4", "6", "stream"], "Stages to compile; stream: the tick."
    )
    flags.DEFINE_list(
        "topologies", ["v5e-16", "v5p-8", "v6e-8", "h100"], "For these devices."
    )
    flags.DEFINE_string("size", "2b3", "Size of the model.")
    flags.DEFINE_integer("rows", 64, "Utterances of a step.", lower_bound=1)
    flags.DEFINE_list("largest", ["4"], "Stages whose largest batch is found, too.")
    flags.DEFINE_bool("compile", True, "Compile what --reports lacks.")
    flags.DEFINE_string("reports", "docs/scale", "Folder of reports.")
    flags.DEFINE_string("out", "docs/scale.md", "The page.")


def main(_) -> None:
    """Entry point of `nim4 scale`."""
    given = flags.FLAGS
    wanted = scale_reports.Wanted(
        given.stages,
        given.topologies,
        given.size,
        given.rows,
        given.largest,
        given.compile,
    )
    found = scale_reports.compile_all(Path(given.reports), wanted)
    page = scale_page.format_page(found, " ".join(["nim4 scale", *_differing()]))
    whole_file.write_text(given.out, page)
    logging.info("%s written", given.out)


def _differing() -> list[str]:
    """Flags of this command that were given."""
    own = flags.FLAGS.flags_by_module_dict().get(sys.argv[0], [])
    told = [flag for flag in own if flag.present and flag.name not in _UNTOLD]
    return [flag.serialize() for flag in told]


if __name__ == "__main__":
    program.launch(main, define_flags)
