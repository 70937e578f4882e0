"""The plan of the commands corpus, and the journal of utterances synthesised so far."""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nim4_jax import whole_file
from nim4_jax.data.corpora import grammar, open_names, synthesis

TEST_COUNT = 170  # utterances, whatever the corpus's size: figures stay comparable
_NAMES = 0x4A3E  # stream of random numbers of the names corpus
MAX_REPEATS = 3  # training utterances of one text: short commands are few


@dataclass(frozen=True)
class Utterance:
    """One planned utterance; everything about it follows from seed and index."""

    index: int
    split: str
    command: grammar.Command
    delivery: synthesis.Delivery
    corpus: str = "commands"

    @property
    def id(self) -> str:
        return f"{self.corpus}-{self.index:06d}"

    def describe(self, audio: str, samples: int) -> dict[str, Any]:
        """Its manifest record.

        Args:
            audio: path of the audio file, relative to the manifest.
            samples: number of samples at 16 kHz.
        """
        return {
            "id": self.id,
            "index": self.index,
            "audio": audio,
            "text": self.command.text,
            "lang": self.command.lang,
            "keywords": list(self.command.keywords),
            "split": self.split,
            "duration": round(samples / synthesis.SAMPLE_RATE, 3),
            "voice": self.delivery.voice,
            "speed": self.delivery.speed,
            "level": self.delivery.level,
        }


def plan_utterances(seed: int) -> Iterator[Utterance]:
    """The endless list of utterances: the test split first, then training.

    A longer corpus of the same seed begins with the shorter one.
    Languages are dealt so that any stretch of the list has about the right shares.
    Test texts do not repeat; a training text is spoken at most MAX_REPEATS times.
    """
    langs = _deal_languages()
    spoken: dict[str, int] = {}
    index = 0
    while True:
        split = "test" if index < TEST_COUNT else "train"
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


def plan_names(seed: int) -> Iterator[Utterance]:
    """The endless list of test utterances whose names training never meets.

    Not in the lists, not in the open names of a warm-up; in each there is one at least.
    """
    langs = _deal_languages()
    draw_name = functools.partial(open_names.sample, held_out=True)
    for index in itertools.count():
        lang = next(langs)
        rng = np.random.default_rng([seed, index, _NAMES])
        while True:
            command = grammar.sample(rng, lang, draw_name=draw_name)
            words = {word for name in command.keywords for word in name.split()}
            if words and not words & _load_listed():
                break
        delivery = synthesis.sample_delivery(rng, lang, "test")
        yield Utterance(index, "test", command, delivery, "names")


@functools.cache
def _load_listed() -> frozenset[str]:
    """Words of English names and whole Chinese names that the lists hold."""
    names = (
        name for lists in grammar.WORDLISTS for name in grammar.load_wordlist(lists)
    )
    return frozenset(word for name in names for word in name.split())


def _deal_languages() -> Iterator[str]:
    """Languages in the shares of LANGUAGE_MIX: always the one furthest behind."""
    dealt = dict.fromkeys(grammar.LANGUAGE_MIX, 0)
    while True:
        lang = min(dealt, key=lambda la: (dealt[la] + 1) / grammar.LANGUAGE_MIX[la])
        dealt[lang] += 1
        yield lang


class Journal:
    """Append-only record of the utterances synthesised so far; survives a kill.

    The first line names the plan; each further line is a manifest record. The corpus
    is the shortest gapless prefix of the plan that lasts long enough, so it does not
    depend on the number of processes or on where a run was killed; with more hours
    the same journal goes on to a longer corpus.
    """

    def __init__(
        self, out: Path, seed: int, hours: float, kind: str = "commands"
    ) -> None:
        """Open or begin the journal of a corpus folder.

        Raises:
            ValueError: the journal belongs to another seed or kind of corpus.
        """
        self.path = out / "journal.jsonl"
        self.wanted = hours * 3600
        self.spoken: dict[int, dict[str, Any]] = {}
        self.prefix: list[dict[str, Any]] = []
        self.prefix_seconds = 0.0
        plan = {"seed": seed} | ({"kind": kind} if kind != "commands" else {})
        out.mkdir(parents=True, exist_ok=True)
        if not self.path.exists():
            content = json.dumps(plan) + "\n"
            whole_file.write_text(self.path, content)
            return
        *lines, cut = self.path.read_text(encoding="utf8").split("\n")
        found = json.loads(lines[0])
        if found != plan:
            raise ValueError(
                f"{self.path} belongs to the plan {found}, asked for {plan}: pass the "
                "same --seed and --kind, or another --out"
            )
        if cut:  # the line that a kill cut short
            content = "".join(f"{line}\n" for line in lines)
            whole_file.write_text(self.path, content)
        for record in map(json.loads, lines[1:]):
            if (out / record["audio"]).exists():
                self._take(record)

    @property
    def complete(self) -> bool:
        """Whether the prefix lasts as long as was asked for."""
        return self.prefix_seconds >= self.wanted

    @property
    def seconds(self) -> float:
        """How much has been spoken, s."""
        return sum(record["duration"] for record in self.spoken.values())

    def add(self, record: dict[str, Any]) -> None:
        """Write down one utterance whose audio file is in place."""
        with self.path.open("a", encoding="utf8") as lines:
            lines.write(json.dumps(record, ensure_ascii=False) + "\n")
        self._take(record)

    def _take(self, record: dict[str, Any]) -> None:
        self.spoken[record["index"]] = record
        while len(self.prefix) in self.spoken and not self.complete:
            self.prefix.append(self.spoken[len(self.prefix)])
            self.prefix_seconds += self.prefix[-1]["duration"]


PLANS = {"commands": plan_utterances, "names": plan_names}


def write_manifests(out: Path, records: list[dict[str, Any]]) -> None:
    """Write manifest.jsonl and one manifest for each split."""
    splits = sorted({record["split"] for record in records})
    for name in ("manifest", *splits):
        chosen = [r for r in records if name in ("manifest", r["split"])]
        lines = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in chosen)
        whole_file.write_text(out / f"{name}.jsonl", lines)
