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

import multiprocessing
import multiprocessing.pool
import os
from pathlib import Path
from typing import Any

from absl import app, flags
from tqdm import tqdm

from nim4_jax import whole_file
from nim4_jax.data import corpus, synthesis

OUT = flags.DEFINE_string("out", "corpus/commands", "Folder of the corpus.")
KIND = flags.DEFINE_enum("kind", "commands", sorted(corpus.PLANS), "Which corpus.")
HOURS = flags.DEFINE_float("hours", 1.0, "Hours of speech, both splits together.")
PROCESSES = flags.DEFINE_integer("processes", 2, "Processes, one thread each.")
SEED = flags.DEFINE_integer("seed", 0, "Another seed gives other utterances.")
CACHE = flags.DEFINE_string("cache", None, "Folder of the model (default ~/.cache).")
TFDS_DIR = flags.DEFINE_string("tfds_dir", None, "Also build the TFDS data set here.")

_SYNTHESIZER: synthesis.Synthesizer | None = None  # one per worker process


def _start_worker(model: Path, voices: Path) -> None:
    global _SYNTHESIZER
    _SYNTHESIZER = synthesis.Synthesizer(model, voices)


def _make(utterance: corpus.Utterance, out: Path) -> dict[str, Any]:
    """Speak one utterance into its file; returns its manifest record."""
    if _SYNTHESIZER is None:
        raise RuntimeError("the worker process was not started by _start_worker")
    command = utterance.command
    audio = _SYNTHESIZER.speak(command.text, command.lang, utterance.delivery)
    name = f"audio/{utterance.id}.ogg"
    whole_file.write_bytes(out / name, synthesis.encode_opus(audio))
    return utterance.describe(name, len(audio))


def make_corpus(
    out: Path, kind: str, hours: float, processes: int, seed: int, cache: Path
) -> list[dict[str, Any]]:
    """Synthesise until the corpus is complete, then write the manifests.

    Returns:
        The manifest's records.
    """
    (out / "audio").mkdir(parents=True, exist_ok=True)
    journal = corpus.Journal(out, seed, hours, kind)
    if not journal.complete:
        missing = synthesis.missing_packages()
        if missing:
            raise RuntimeError(
                f"not installed: {', '.join(missing)}; "
                "run pip install 'nim4-jax[corpus]'"
            )
        files = synthesis.fetch_model(cache)
        context = multiprocessing.get_context("spawn")
        with context.Pool(processes, _start_worker, files) as pool:
            _synthesise(pool, journal, corpus.PLANS[kind](seed), processes)
    corpus.write_manifests(out, journal.prefix)
    return journal.prefix


def _synthesise(
    pool: multiprocessing.pool.Pool, journal: corpus.Journal, plan: Any, ahead: int
) -> None:
    """Keep the pool a few utterances ahead, and journal each as it comes."""
    out = journal.path.parent
    wanted = (u for u in plan if u.index not in journal.spoken)
    pending = [pool.apply_async(_make, (next(wanted), out)) for _ in range(ahead + 2)]
    seconds = journal.seconds
    with tqdm(total=round(journal.wanted), initial=round(seconds), unit="s") as bar:
        while not journal.complete:
            record = pending.pop(0).get()
            pending.append(pool.apply_async(_make, (next(wanted), out)))
            journal.add(record)
            bar.update(round(seconds + record["duration"]) - round(seconds))
            seconds += record["duration"]


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    if HOURS.value <= 0 or PROCESSES.value < 1:
        raise app.UsageError("--hours and --processes must be positive")
    cache = Path(CACHE.value) if CACHE.value else synthesis.default_cache()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    out = Path(OUT.value)
    try:
        records = make_corpus(
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
        from nim4_jax.data import builders

        print(builders.build(builders.OF_KIND[KIND.value], out, Path(TFDS_DIR.value)))


if __name__ == "__main__":
    app.run(main)
