"""Hints in the prompt of each utterance during evaluation.

| mode       | hints of an utterance                                             |
| none       | none                                                              |
| said       | its keywords that the transcript says                             |
| misleading | `count` distractors: names that nobody says                       |
| both       | its keywords and `count` distractors                              |

Half of the distractors sound like the utterance's keywords, as far as there are such
names; the others are random. Draws depend on the seed and the utterance alone, so that
two models, or one model with other hints, are asked about the same names.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from nim4_jax import line_file
from nim4_jax.context.distractors import Distractors
from nim4_jax.context.keywords import KeywordSet, collect, spell
from nim4_jax.context.statistical import StatisticalExtractor
from nim4_jax.data.sources import opening
from nim4_jax.eval.measures import entities
from nim4_jax.retrieval import names as name_lists

MODES = ("none", "said", "misleading", "both")

_NEAREST = 5  # a distractor is one of so many names that sound most alike
_MAX_DISTANCE = 0.25  # how different it may sound, as in training
_TRIES = 4  # names drawn for each random distractor, as some are said already
_SOURCES = ("bundled:", "tfds:")


class NoNames(ValueError):
    """There is no name to draw distractors from."""


@dataclasses.dataclass(frozen=True)
class HintConfig:
    """How hints are chosen, and which names count.

    Attributes:
        mode: of `MODES`.
        count: distractors of an utterance; fewer where there are not so many names.
        names: further names to draw distractors from, beside the set's own keywords.
        find: look for keywords by counting words, in sets whose records have none.
        seen: transcripts of the training, by which a name is held out or not; None
            leaves that out.
        seed: of the draws.
    """

    mode: str = "none"
    count: int = 4
    names: tuple[str, ...] = ()
    find: bool = False
    seen: tuple[str, ...] | None = None
    seed: int = 0

    def __post_init__(self):
        if self.mode not in MODES:
            raise ValueError(
                f"unknown kind of hints {self.mode!r}; choose from {', '.join(MODES)}."
            )
        least = int(self.mode in ("misleading", "both"))
        if self.count < least:
            raise ValueError(
                f"hints {self.mode!r} with {self.count} distractors an utterance; "
                f"expected {least} or more."
            )

    @property
    def misleads(self) -> bool:
        """Whether there are distractors."""
        return self.mode in ("misleading", "both")


@dataclasses.dataclass(frozen=True)
class Fact:
    """What a record says about an utterance, its audio apart.

    Attributes:
        name: id in its set.
        text: transcript.
        lang: "en", "zh" or "mixed".
        keywords: that the record lists.
    """

    name: str
    text: str
    lang: str
    keywords: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Plan:
    """Names of every utterance of a set.

    Attributes:
        said: keywords that the transcript has.
        hints: names for the prompt.
        unseen: spellings of the keywords that are held out; None if nobody asked.
        names: all keywords that are said anywhere in the set, whatever the hints are.
    """

    said: tuple[tuple[str, ...], ...]
    hints: tuple[tuple[str, ...], ...]
    unseen: frozenset[str] | None
    names: tuple[str, ...] = ()


def plan(facts: Sequence[Fact], config: HintConfig) -> Plan:
    """Choose the hints of a set.

    Args:
        facts: of all its utterances, evaluated or not: their keywords are S.
        config: how.

    Raises:
        NoNames: distractors are wanted and there is no name to draw.
    """
    known = _collect(facts, config)
    said = tuple(
        entities.find_present(keywords, fact.text, fact.lang)
        for fact, keywords in zip(facts, known.utterances)
    )
    names = tuple(sorted({keyword for row in said for keyword in row}))
    unseen = None
    if config.seen is not None:
        unseen = entities.find_unseen(names, config.seen)
    if not config.misleads:
        hints = said if config.mode == "said" else ((),) * len(facts)
        return Plan(said, hints, unseen, names)
    if not known.texts:
        raise NoNames(
            f"hints {config.mode!r} need names, and the set's records have no "
            "keywords: give a list with --hint_names, or --find_keywords."
        )
    distractors = Distractors.build(known.texts)
    hints = []
    for fact, keywords in zip(facts, said):
        rng = np.random.default_rng((config.seed, zlib.crc32(fact.name.encode("utf8"))))
        drawn = _draw(fact, keywords, known, distractors, config.count, rng)
        listed = [*keywords, *drawn] if config.mode == "both" else drawn
        hints.append(tuple(listed[i] for i in rng.permutation(len(listed))))
    return Plan(said, tuple(hints), unseen, names)


def _collect(facts: Sequence[Fact], config: HintConfig) -> KeywordSet:
    """S and the keywords of each utterance: the records' own, or found by counting."""
    texts = [fact.text for fact in facts]
    own = [fact.keywords for fact in facts]
    if config.find and not any(own):
        fitted = [*texts, *(config.seen or ())]
        extractor = StatisticalExtractor.fit(fitted, config.names)
        return collect(texts, extractor, names=config.names)
    return collect(
        texts, lambda unknown: [()] * len(unknown), own=own, names=config.names
    )


def _draw(
    fact: Fact,
    keywords: Sequence[str],
    known: KeywordSet,
    distractors: Distractors,
    count: int,
    rng: np.random.Generator,
) -> list[str]:
    """Different names that the transcript does not have."""
    drawn: dict[str, str] = {}

    def take(name: str) -> bool:
        """Add a name, if it is no other one's spelling and not said."""
        spelled = spell(name)
        new = spelled and spelled not in drawn
        if not new or entities.is_present(name, fact.text, fact.lang):
            return False
        drawn[spelled] = name
        return True

    near = []
    for keyword in keywords:
        alike = distractors.of(keyword, _NEAREST, _MAX_DISTANCE)
        near.append([alike[i][0] for i in rng.permutation(len(alike))])
    # Turn by turn, so that no keyword takes all the room.
    while any(near) and len(drawn) < (count + 1) // 2:
        for names in near:
            while names and len(drawn) < (count + 1) // 2 and not take(names.pop()):
                pass
    pool = known.texts
    most = min(len(pool), _TRIES * count)
    for index in rng.choice(len(pool), most, replace=False):
        if len(drawn) == count:
            break
        take(pool[int(index)])
    return list(drawn.values())


def configure(
    *,
    mode: str = "none",
    count: int = 4,
    names: str | None = None,
    find: bool = False,
    seen: Sequence[str] | None = None,
    seed: int = 0,
) -> HintConfig:
    """Hints with names and transcripts read from where they are.

    Args:
        mode: one of MODES.
        count: misleading names an utterance.
        names: place of further misleading names, see `read_names`; None for none.
        find: whether names are found by counting words where no record lists any.
        seen: places of the transcripts of the training, see `read_texts`.
        seed: of the draws.

    Raises:
        ValueError: a list of names or transcripts that cannot be read.
    """
    return HintConfig(
        mode=mode,
        count=count,
        names=read_names(names) if names else (),
        find=find,
        seen=read_texts(seen) if seen else None,
        seed=seed,
    )


def read_names(place: str) -> tuple[str, ...]:
    """Names to draw distractors from.

    Args:
        place: a list as `nim4 build_hotwords` takes it (a name a line, TSV or JSONL),
            or a source (bundled:…, tfds:…), of which the keywords are taken.

    Raises:
        ValueError: no such list or source, or a line that does not fit.
    """
    if not place.startswith(_SOURCES):
        return tuple(dict.fromkeys(n.text for n in name_lists.read_names(place)))
    records = opening.open_source(place)
    listed = (k for i in range(len(records)) for k in records[i]["keywords"])
    return tuple(dict.fromkeys(listed))


def read_texts(places: Sequence[str]) -> tuple[str, ...]:
    """Transcripts of the training.

    Args:
        places: text files with a transcript a line, manifests, and other sources.

    Raises:
        ValueError: no such file or source.
    """
    return tuple(dict.fromkeys(text for place in places for text in _read(place)))


def _read(place: str) -> Iterator[str]:
    if Path(place).is_file() and not place.endswith((".json", ".jsonl")):
        yield from (line.strip() for _, line in line_file.read(place))
        return
    records = opening.open_source(place)
    for index in range(len(records)):
        yield records[index]["text"]
