"""Synthesis of a corpus by a pool of processes, resumable until it is complete."""

from __future__ import annotations

import multiprocessing
import multiprocessing.pool
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nim4_jax import whole_file
from nim4_jax.data.corpora import corpus, synthesis

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
