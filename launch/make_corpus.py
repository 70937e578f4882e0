"""Make the commands corpus: synthesise speech for the grammar of in-car commands.

    python launch/make_corpus.py --out=corpus/commands --hours=1.0

Needs the extra `corpus` (pip install 'nim4-jax[corpus]') and npm. May be killed at any
time: the same command continues, and one with more hours makes the corpus longer. The
test split comes first: 170 utterances, 0.11 h. What it leaves in --out:

    audio/*.ogg       16 kHz mono Ogg/Opus
    journal.jsonl     one line an utterance as it is made; what a rerun continues from
    manifest.jsonl    the finished corpus: both splits, in order
    train.jsonl, test.jsonl   the same, by split

With --kind=names it is a test set instead, of commands with names that no training text
has:

    python launch/make_corpus.py --kind=names --out=corpus/names --hours=0.1

With --tfds_dir=FOLDER the finished corpus is also written there as a TFDS data set.
"""

from __future__ import annotations

import os
from pathlib import Path

from absl import app, flags

from nim4_jax.data.corpora import corpus, making, synthesis

OUT = flags.DEFINE_string("out", "corpus/commands", "Folder of the corpus.")
KIND = flags.DEFINE_enum("kind", "commands", sorted(corpus.PLANS), "Which corpus.")
HOURS = flags.DEFINE_float("hours", 1.0, "Hours of speech, both splits together.")
PROCESSES = flags.DEFINE_integer("processes", 2, "Processes, one thread each.")
SEED = flags.DEFINE_integer("seed", 0, "Another seed gives other utterances.")
CACHE = flags.DEFINE_string("cache", None, "Folder of the model (default ~/.cache).")
TFDS_DIR = flags.DEFINE_string("tfds_dir", None, "Also build the TFDS data set here.")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    if HOURS.value <= 0 or PROCESSES.value < 1:
        raise app.UsageError("--hours and --processes must be positive")
    cache = Path(CACHE.value) if CACHE.value else synthesis.default_cache()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    out = Path(OUT.value)
    try:
        records = making.make_corpus(
            out, KIND.value, HOURS.value, PROCESSES.value, SEED.value, cache
        )
    except (RuntimeError, ValueError) as error:
        raise app.UsageError(str(error)) from error
    for split in sorted({r["split"] for r in records}):
        chosen = [r for r in records if r["split"] == split]
        seconds = sum(r["duration"] for r in chosen)
        print(f"{split}: {len(chosen)} utterances, {seconds / 3600:.2f} h")
    if TFDS_DIR.value:
        # TFDS is slow to import and only this needs it.
        from nim4_jax.data.sources import builders

        print(builders.build(builders.OF_KIND[KIND.value], out, Path(TFDS_DIR.value)))


if __name__ == "__main__":
    app.run(main)
