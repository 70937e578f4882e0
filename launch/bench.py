"""Measure speed against peers: python launch/bench.py NAME [--json] [--full].

Medians of interleaved runs in one process, with the same threads, on the same data,
warm. With --json the last line is one JSON object; ratio > 1 means that we are better.
"""

from __future__ import annotations

from collections.abc import Callable

from absl import flags

from nim4_jax.eval.speed import (
    ctc,
    decode,
    encoder,
    features,
    grpo,
    input_pipeline,
    int8,
    measure,
    retrieval,
    streaming,
    train_step,
    whisper_encoder,
)
from nim4_jax.launch import program, serve_bench


def _find_names(full: bool, threads: int) -> list[measure.Row]:
    return retrieval.run(full, threads, flags.FLAGS.entries)


def _time_rollout(full: bool, threads: int) -> list[measure.Row]:
    return grpo.run(full, threads, flags.FLAGS.model)


def _time_streams(full: bool, threads: int) -> list[measure.Row]:
    given = flags.FLAGS
    settings = streaming.Settings(given.model, given.streams, given.seconds)
    return streaming.run(full, threads, settings)


BENCHES: dict[str, Callable[[bool, int], list[measure.Row]]] = {
    "features": features.run,
    "ctc": ctc.run,
    "train_step": train_step.run,
    "decode": decode.run,
    "encoder": encoder.run,
    "int8": int8.run,
    "grpo": _time_rollout,
    "retrieval": _find_names,
    "stream": _time_streams,
    "input": input_pipeline.run,
    "whisper_encoder": whisper_encoder.run,
    "serve": serve_bench.run,
}

_ONE_CORE = ("input",)  # benches whose figures are those of one core


def define_flags() -> None:
    """The command's flags."""
    flags.DEFINE_bool("json", False, "One JSON object on the last line, no table.")
    flags.DEFINE_bool("full", False, "More runs; the quick form ends within a minute.")
    flags.DEFINE_integer(
        "entries", 1_000_000, "Names in the database of `retrieval`.", lower_bound=1
    )
    flags.DEFINE_string(
        "model",
        "",
        "Stage 4 model for `stream` and `serve`, which need one, and `grpo`; empty: "
        "packaged parts, random adaptor.",
    )
    flags.DEFINE_integer(
        "streams", 32, "Most streams that `stream` and `serve` try.", lower_bound=2
    )
    flags.DEFINE_float(
        "seconds",
        0.0,
        "Audio for each number of streams of `stream` (0: 6, with --full 60) and "
        "`serve` (0: 15, with --full 120).",
        lower_bound=0.0,
    )
    flags.DEFINE_integer("threads", 2, "Cores for each side.", lower_bound=1)
    serve_bench.define_flags()


def find_bench(names: list[str]) -> str:
    """The one name given.

    Raises:
        ValueError: none, several or an unknown one.
    """
    if len(names) != 1 or names[0] not in BENCHES:
        raise ValueError(f"name one of {', '.join(BENCHES)}; got {names or 'nothing'}.")
    return names[0]


def main(arguments: list[str]) -> None:
    """Entry point of `nim4 bench`."""
    given = flags.FLAGS
    name = find_bench(arguments[1:])
    threads = measure.limit_cores(1 if name in _ONE_CORE else given.threads)
    rows = BENCHES[name](given.full, threads)
    if given.json:
        print(measure.format_json(name, rows, threads))
    else:
        print(measure.format_table(rows))


if __name__ == "__main__":
    program.launch(main, define_flags)
