"""Tables of the compile reports of full-size stages, as a Markdown page."""

from __future__ import annotations

from nim4_jax.aot import streaming
from nim4_jax.aot.compilation import Report

TITLES = {
    "stage1": "1 encoder",
    "stage2": "2 alignment",
    "stage4": "4 joint",
    "stage6": "6 RL, learning",
    "rollout": "6 RL, rollout",
    "tick": "streaming",
}


SHARE = "0.4"
"""Share of the peak at which the table tells speeds."""


def format_page(found: dict[tuple[str, str], list[Report]], command: str) -> str:
    """The page: what it is, the tables, and how to read them."""
    reports = [report for group in found.values() for report in group]
    titled = [
        (_title(stage, report), report)
        for (stage, _), group in found.items()
        for report in group
    ]
    parts = [INTRODUCTION.format(command=command)]
    for topology in dict.fromkeys(report.topology for report in reports):
        rows = [one for one in titled if one[1].topology == topology]
        parts.append(_format_table(topology, rows))
        ticks = [one for _, one in rows if one.program == "tick" and one.memory]
        if len(ticks) == 2:
            count = streaming.count_streams(*ticks)
            parts.append(f"By memory {count} streams fit one device.\n")
    missing = [f"stage {s} for {t}" for (s, t), group in found.items() if not group]
    if missing:
        parts.append(f"Not compiled: {', '.join(missing)}.\n")
    return "\n".join([*parts, NOTES])


def _title(stage: str, report: Report) -> str:
    name = f"stage{stage}" if report.program == "train_step" else report.program
    return TITLES.get(name, name)


def _format_table(topology: str, rows: list[tuple[str, Report]]) -> str:
    memory = next((r.memory for _, r in rows if r.memory is not None), None)
    room = f", {memory.available:.2f} GiB a device" if memory else ""
    lines = [
        f"## {topology}{room}",
        "",
        "| program | mesh | remat | utterances | peak GiB | parameters | optimizer "
        "| activations, gradients | Tflop a step | s a step | audio h/h | moved GiB "
        "| compiled in s |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: "
        "| ---: | ---: |",
    ]
    return "\n".join([*lines, *(_format_row(*row) for row in rows), ""])


def _format_row(title: str, report: Report) -> str:
    mesh = "×".join(str(size) for size in report.mesh.values())
    cells = [title, mesh, report.remat, str(report.rows)]
    memory = report.memory
    if memory is None:
        cells += ["does not fit"] + ["–"] * 3
    else:
        sizes = memory.peak, memory.parameters, memory.optimizer, memory.activations
        cells += [f"{size:.2f}" for size in sizes]
        if not report.fits:
            cells[4] += " (too much)"
    total = sum(report.flops.values())
    seconds = report.step_seconds[SHARE]
    if total:
        speed = report.audio_seconds / seconds
        cells += [f"{total / 1e12:.0f}", f"{seconds:.2f}", f"{speed:,.0f}"]
    else:
        cells += ["–"] * 3
    moved = sum(one["bytes"] for one in report.traffic.values()) / 2**30
    cells += [f"{moved:.1f}", f"{report.compile_seconds:.0f}"]
    return f"| {' | '.join(cells)} |"


INTRODUCTION = """# What the full size takes

Every program below was compiled for its devices by their own compiler, without having
them: libtpu for TPUs, JAX's CUDA plugin for the H100. Memory and collectives are what
the compilers say; no step was run. Compilation took so long on two cores with up to
two others and a test suite beside it. One command makes this page, from the reports in
[scale](scale) as far as they are there:

    {command}

An utterance has 15 s of audio and 256 tokens of text. Where a stage has a second row of
another batch, that is the largest one that fits.
"""


NOTES = """## How to read it

- *peak* is what a device holds at most: parameters, optimizer, batch, program and
  everything that lives within a step. Parameters and moments are float32, activations
  bfloat16.
- *Tflop a step* is counted by formula (`nim4_jax/train/flops.py`): for each token 6
  operations of a trained parameter, 4 of a frozen one that a gradient passes, 2 of one
  that it does not pass; attention too. What is computed again to save memory is not.
- *s a step* and *audio h/h* (hours of audio in an hour) are what the operations would
  take at 40 % of the peak. They are no measurement: with small batches the collectives
  (*moved GiB*: results on each device, loops included) may take longer.
- RL samples 8 transcripts an utterance. Where a step is too much, cut it by
  `config.micro_batches`; the update stays the same: in 4 parts, the one of 126.58 GiB
  takes 67.51 on an H100. A rollout's loop of tokens has no length that the compiler
  knows; its collectives are counted once.
- *streaming* is one chunk (640 ms) of that many streams at once on one device, weights
  in bfloat16; how many fit is foretold from two numbers of streams.
"""
