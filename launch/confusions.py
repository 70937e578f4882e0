"""Measure what a phoneme head hears for what is said, for the warm-up of an LLM.

python launch/confusions.py --model=package:base_stage1.safetensors --limit=150 \
    --sets=train.jsonl,noisy:10:train.jsonl --chunk_ms=0,640 --out=confusions.json

The warm-up draws its errors from the file: --config.loss.confusions=confusions.json
"""

from __future__ import annotations

from absl import app, flags

from nim4_jax.eval import confusions
from nim4_jax.launch import program


def define_flags() -> None:
    """The command's flags."""
    flags.DEFINE_string("model", None, "Workdir, .safetensors file or package:FILE.")
    flags.DEFINE_list(
        "sets", None, "Sources, by commas: manifest.jsonl, noisy:SNR:SOURCE, …"
    )
    flags.DEFINE_string("out", None, "JSON file to write.")
    flags.DEFINE_integer("limit", 0, "Utterances per set, 0 for all.", lower_bound=0)
    flags.DEFINE_list("chunk_ms", ["0"], "Lengths of chunks, 0 for the full pass.")
    flags.DEFINE_integer("left", 4, "Chunks seen to the left of a chunk's own.")


def main(_) -> None:
    """Entry point of `launch/confusions.py` and `nim4 confusions`."""
    given = flags.FLAGS
    if not given.model or not given.sets or not given.out:
        raise app.UsageError("--model, --sets=SOURCE,… and --out=FILE are needed.")
    try:
        lengths = [int(length) for length in given.chunk_ms]
    except ValueError as error:
        raise app.UsageError(f"--chunk_ms={given.chunk_ms}: no numbers") from error
    made = confusions.measure(
        given.model,
        given.sets,
        given.out,
        limit=given.limit,
        chunk_ms=lengths,
        left=given.left,
    )
    for row in made["sets"]:
        heard = f"{row['chunk_ms']} ms" if row["chunk_ms"] else "whole"
        print(
            f"{row['set']}, {heard}: {row['utterances']} utterances, "
            f"{row['phonemes']} phonemes, {100 * row['error_rate']:.1f} % wrong"
        )


if __name__ == "__main__":
    program.launch(main, define_flags)
