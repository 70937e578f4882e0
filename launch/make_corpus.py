"""Make the commands corpus: synthesise speech for the grammar of in-car commands.

    python launch/make_corpus.py --out=corpus/commands --hours=1.0

Needs the extra `corpus` (pip install 'nim4-jax[corpus]') and npm. May be killed at any
time: the same command continues. What it leaves in --out:

    audio/*.ogg       16 kHz mono Ogg/Opus
    journal.jsonl     one line an utterance, in the order of completion, from the start
    manifest.jsonl    the finished corpus: both splits, in order
    train.jsonl, test.jsonl   the same, by split
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from absl import app, flags
from tqdm import tqdm

from nim4_jax.data import grammar, synthesis

OUT = flags.DEFINE_string("out", "corpus/commands", "Folder of the corpus.")
HOURS = flags.DEFINE_float("hours", 1.0, "Hours of speech, both splits together.")
PROCESSES = flags.DEFINE_integer("processes", 2, "Processes, one thread each.")
SEED = flags.DEFINE_integer("seed", 0, "Another seed gives other utterances.")
CACHE = flags.DEFINE_string("cache", None, "Folder of the model (default ~/.cache).")

TEST_PER_HOUR = 170  # test utterances for each hour of corpus: about a tenth of it
MAX_REPEATS = 3  # training utterances of one text: short commands are few


@dataclass(frozen=True)
class Utterance:
    """One planned utterance; everything about it follows from seed and index."""

    index: int
    split: str
    command: grammar.Command
    delivery: synthesis.Delivery

    @property
    def id(self) -> str:
        return f"commands-{self.index:06d}"


def plan_utterances(seed: int, hours: float) -> Iterator[Utterance]:
    """The endless list of utterances: the test split first, then training.

    Languages are dealt so that any stretch of the list has about the right shares.
    Test texts do not repeat; a training text is spoken at most MAX_REPEATS times.
    """
    test_count = math.ceil(TEST_PER_HOUR * hours)
    langs = _deal_languages()
    spoken: dict[str, int] = {}
    index = 0
    while True:
        split = "test" if index < test_count else "train"
        lang = next(langs)
        rng = np.random.default_rng([seed, index])
        limit = 1 if split == "test" else MAX_REPEATS
        while True:
            command = grammar.sample(rng, lang, held_out=split == "test")
            if spoken.get(command.text, 0) < limit:
                break
        spoken[command.text] = spoken.get(command.text, 0) + 1
        delivery = synthesis.sample_delivery(rng, lang, split)
        yield Utterance(index, split, command, delivery)
        index += 1


def _deal_languages() -> Iterator[str]:
    """Languages in the shares of LANGUAGE_MIX: always the one furthest behind."""
    dealt = dict.fromkeys(grammar.LANGUAGE_MIX, 0)
    while True:
        lang = min(dealt, key=lambda la: (dealt[la] + 1) / grammar.LANGUAGE_MIX[la])
        dealt[lang] += 1
        yield lang


_SYNTHESIZER: synthesis.Synthesizer | None = None  # one per worker process


def _start_worker(model: Path, voices: Path) -> None:
    global _SYNTHESIZER
    _SYNTHESIZER = synthesis.Synthesizer(model, voices)


def _make(job: tuple[Utterance, Path]) -> dict[str, object]:
    """Speak one utterance into its file; returns its manifest record."""
    utterance, out = job
    assert _SYNTHESIZER is not None, "the worker was not started"
    command = utterance.command
    audio = _SYNTHESIZER.speak(command.text, command.lang, utterance.delivery)
    name = f"audio/{utterance.id}.ogg"
    synthesis.write_atomically(out / name, synthesis.encode_opus(audio))
    return {
        "id": utterance.id,
        "index": utterance.index,
        "audio": name,
        "text": command.text,
        "lang": command.lang,
        "keywords": list(command.keywords),
        "split": utterance.split,
        "duration": round(len(audio) / synthesis.SAMPLE_RATE, 3),
        **{k: asdict(utterance.delivery)[k] for k in ("voice", "speed", "level")},
    }


def read_journal(out: Path, seed: int, hours: float) -> dict[int, dict]:
    """What earlier runs finished; a line cut short by a kill is dropped.

    Raises:
        ValueError: the journal is another seed's or another size's.
    """
    journal = out / "journal.jsonl"
    if not journal.exists():
        journal.write_text(json.dumps({"seed": seed, "hours": hours}) + "\n")
        return {}
    lines = journal.read_text(encoding="utf8").split("\n")
    made_for = json.loads(lines[0])
    if made_for != {"seed": seed, "hours": hours}:
        raise ValueError(
            f"{journal} belongs to a run with {made_for}, asked for seed {seed} and "
            f"hours {hours}: name another --out or pass the same flags"
        )
    whole = "\n".join(lines[:-1]) + "\n"
    if lines[-1]:
        synthesis.write_atomically(journal, whole.encode("utf8"))
    records = [json.loads(line) for line in lines[1:-1]]
    return {r["index"]: r for r in records if (out / r["audio"]).exists()}


def choose_prefix(done: dict[int, dict], hours: float) -> list[dict] | None:
    """The shortest gapless prefix of the plan that lasts `hours`, if it is there."""
    total, prefix = 0.0, []
    while len(prefix) in done:
        prefix.append(done[len(prefix)])
        total += prefix[-1]["duration"]
        if total >= hours * 3600:
            return prefix
    return None


def make_corpus(
    out: Path, hours: float, processes: int, seed: int, cache: Path
) -> list[dict]:
    """Synthesise until the plan's prefix lasts `hours`, then write the manifests."""
    (out / "audio").mkdir(parents=True, exist_ok=True)
    done = read_journal(out, seed, hours)
    if choose_prefix(done, hours) is None:
        model, voices = synthesis.fetch_model(cache)
        jobs = ((u, out) for u in plan_utterances(seed, hours) if u.index not in done)
        context = multiprocessing.get_context("spawn")
        with context.Pool(processes, _start_worker, (model, voices)) as pool:
            _synthesise(pool, jobs, done, out / "journal.jsonl", hours, processes)
    prefix = choose_prefix(done, hours)
    assert prefix is not None, "synthesis ended before the corpus was complete"
    write_manifests(out, prefix)
    return prefix


def _synthesise(pool, jobs, done, journal: Path, hours: float, processes: int) -> None:
    """Feed the pool a few jobs ahead, and journal each utterance as it comes."""
    seconds = sum(record["duration"] for record in done.values())
    pending = [pool.apply_async(_make, (next(jobs),)) for _ in range(processes + 2)]
    bar = tqdm(total=round(hours * 3600), initial=round(seconds), unit="s")
    with journal.open("a", encoding="utf8") as lines, bar:
        while choose_prefix(done, hours) is None:
            record = pending.pop(0).get()
            pending.append(pool.apply_async(_make, (next(jobs),)))
            lines.write(json.dumps(record, ensure_ascii=False) + "\n")
            lines.flush()
            done[record["index"]] = record
            bar.update(round(seconds + record["duration"]) - round(seconds))
            seconds += record["duration"]


def write_manifests(out: Path, records: list[dict]) -> None:
    """Write manifest.jsonl and one manifest for each split."""
    for name in ("manifest", "train", "test"):
        chosen = [r for r in records if name in ("manifest", r["split"])]
        lines = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in chosen)
        synthesis.write_atomically(out / f"{name}.jsonl", lines.encode("utf8"))


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    missing = synthesis.missing_packages()
    if missing:
        raise app.UsageError(
            f"not installed: {', '.join(missing)}; run pip install 'nim4-jax[corpus]'"
        )
    if HOURS.value <= 0 or PROCESSES.value < 1:
        raise app.UsageError("--hours and --processes must be positive")
    cache = Path(CACHE.value) if CACHE.value else synthesis.default_cache()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    out = Path(OUT.value)
    records = make_corpus(out, HOURS.value, PROCESSES.value, SEED.value, cache)
    for split in ("train", "test"):
        chosen = [r for r in records if r["split"] == split]
        seconds = sum(r["duration"] for r in chosen)
        print(f"{split}: {len(chosen)} utterances, {seconds / 3600:.2f} h")


if __name__ == "__main__":
    app.run(main)
