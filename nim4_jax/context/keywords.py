"""The keyword set S of a training corpus, and the keywords of each utterance.

Who finds them is pluggable: anything that turns texts into keywords is an `Extractor`.

Source: NIM4-ASR §2.2.4.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from nim4_jax.text.normalise import normalise, split_units

HAN = "\u3007\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff"
_UNIT = re.compile(rf"[{HAN}]|[^\W_{HAN}]+")
_GAP = re.compile(r"[\s'’.&·-]*")  # between the units of one name
_SHOWN = 5

Span = tuple[int, int]
"""First character and one past the last."""


class Extractor(Protocol):
    """Whatever finds keywords."""

    def __call__(self, texts: Sequence[str]) -> list[tuple[str, ...]]:
        """Keywords of each text, as they are written there, in their order."""
        ...


@functools.lru_cache(maxsize=65536)
def spell(text: str) -> str:
    """Units of a text as they are scored, a space between; equal: the same to a reader.

    Chinese rules hold for every text, so that a name is spelled alone as in a sentence.
    """
    return " ".join(split_units(normalise(text, "mixed"), "mixed"))


def occurs(keyword: str, text: str) -> bool:
    """Whether a keyword is said in a text, both as `spell` gives them."""
    return bool(keyword) and f" {keyword} " in f" {text} "


class Finder:
    """Finds the members of a list of names in texts, whatever their case."""

    def __init__(self, names: Iterable[str]):
        """Index names by their units: Chinese characters, words and numbers."""
        keys = {tuple(unit[0] for unit in _units(name)) for name in names} - {()}
        self._keys = frozenset(keys)
        lengths: dict[str, set[int]] = collections.defaultdict(set)
        for key in keys:
            lengths[key[0]].add(len(key))
        self._lengths = {unit: tuple(sizes) for unit, sizes in lengths.items()}

    def find(self, text: str) -> list[Span]:
        """Where names are said, in order; of overlapping ones the longest."""
        units = _units(text)
        whole = _join(text, units)
        found = []
        for first, (form, start, _) in enumerate(units):
            for size in self._lengths.get(form, ()):
                last = first + size - 1
                if last >= len(units) or whole[last] > first:
                    continue
                if tuple(unit[0] for unit in units[first : last + 1]) in self._keys:
                    found.append((start, units[last][2]))
        return keep_longest(found)


def _units(text: str) -> list[tuple[str, int, int]]:
    """(lower-case form, start, end) of every unit."""
    return [(m[0].lower(), m.start(), m.end()) for m in _UNIT.finditer(text)]


def _join(text: str, units: Sequence[tuple[str, int, int]]) -> list[int]:
    """For each unit the first one that punctuation does not part from it."""
    first: list[int] = []
    for index, (_, start, _) in enumerate(units):
        joined = index and _GAP.fullmatch(text, units[index - 1][2], start)
        first.append(first[-1] if joined else index)
    return first


def keep_longest(spans: Iterable[Span]) -> list[Span]:
    """Spans in order of place, of overlapping ones the longest, then the first."""
    kept: list[Span] = []
    for start, end in sorted(set(spans), key=lambda s: (s[0] - s[1], s[0])):
        if all(end <= other[0] or start >= other[1] for other in kept):
            kept.append((start, end))
    return sorted(kept)


@dataclasses.dataclass(frozen=True)
class KeywordSet:
    """S and the keywords of each utterance.

    Attributes:
        counts: every keyword, in ascending order, with the number of utterances that
            say it. One name in several spellings is there once, in its usual one.
        utterances: keywords of each utterance, as they are written there.
        misplaced: how many keywords were listed for an utterance that lacks them.
    """

    counts: Mapping[str, int]
    utterances: tuple[tuple[str, ...], ...]
    misplaced: int = 0

    def __len__(self) -> int:
        return len(self.counts)

    @functools.cached_property
    def texts(self) -> tuple[str, ...]:
        """The keywords of S, ascending."""
        return tuple(self.counts)

    @functools.cached_property
    def unheard(self) -> tuple[str, ...]:
        """Those that no transcript says; they serve as distractors only."""
        return tuple(text for text, count in self.counts.items() if not count)

    def summary(self) -> str:
        """A line or three for the log."""
        having = sum(bool(keywords) for keywords in self.utterances)
        lines = [
            f"{len(self):,} keywords; {having:,} of {len(self.utterances):,} "
            "utterances say one or more"
        ]
        if self.unheard:
            shown = ", ".join(self.unheard[:_SHOWN])
            lines.append(f"{len(self.unheard):,} are in no transcript, such as {shown}")
        if self.misplaced:
            lines.append(
                f"{self.misplaced:,} were listed for an utterance that lacks them"
            )
        return "\n".join(lines)


def collect(
    texts: Sequence[str],
    extractor: Extractor,
    *,
    own: Sequence[Sequence[str] | None] | None = None,
    names: Iterable[str] = (),
) -> KeywordSet:
    """S of a corpus, and which of its members each utterance says.

    What the extractor finds anywhere is looked for everywhere, the longest first; so
    are the keywords of other utterances and the listed names.

    Args:
        texts: transcripts.
        extractor: finds the keywords of utterances that bring none of their own.
        own: keywords that each record carries. They count as complete: () says that
            there are none, None that nobody looked.
        names: further members of S.

    Raises:
        ValueError: `own` and `texts` differ in length.
    """
    own = [None] * len(texts) if own is None else own
    if len(own) != len(texts):
        raise ValueError(
            f"got keywords of {len(own)} records for {len(texts)} texts; give one "
            "entry a text, None where nobody looked for keywords."
        )
    unknown = [text for text, given in zip(texts, own) if given is None]
    found = _confirm(unknown, extractor(unknown))
    given = [k for keywords in own for k in keywords or ()]
    names = list(names)
    finder = Finder([*found, *given, *names] if unknown else ())
    utterances, misplaced = [], 0
    for text, listed in zip(texts, own):
        named = listed
        if named is None:
            named = [text[start:end] for start, end in finder.find(text)]
        said = keep_said(named, text)
        if listed is not None:
            misplaced += len(_distinct(listed)) - len(said)
        utterances.append(said)
    counts = _count(utterances, [*found, *given, *names])
    return KeywordSet(counts, tuple(utterances), misplaced)


def keep_said(keywords: Iterable[str], text: str) -> tuple[str, ...]:
    """Those that a text says, in their order, one of each spelling."""
    said = spell(text)
    return _distinct(k for k in keywords if occurs(spell(k), said))


def _confirm(texts: Sequence[str], extracted: Sequence[Sequence[str]]) -> list[str]:
    """Keywords that were taken for one in half of the texts that say them, or more.

    The others are ordinary words that were taken for a keyword by mistake.
    """
    taken = collections.Counter(
        keyword.lower() for keywords in extracted for keyword in {*keywords}
    )
    finder = Finder(taken)
    said: collections.Counter[str] = collections.Counter()
    for text in texts:
        said.update({text[start:end].lower() for start, end in finder.find(text)})
    return [
        keyword
        for keywords in extracted
        for keyword in keywords
        if 2 * taken[keyword.lower()] >= said[keyword.lower()]
    ]


def _distinct(keywords: Iterable[str]) -> tuple[str, ...]:
    """One of each spelling, in order; none that has nothing to say."""
    first: dict[str, str] = {}
    for keyword in keywords:
        first.setdefault(spell(keyword), " ".join(keyword.split()))
    return tuple(keyword for spelled, keyword in first.items() if spelled)


def _count(
    utterances: Iterable[tuple[str, ...]], others: Iterable[str]
) -> dict[str, int]:
    """Utterances of each keyword, of equally spelled ones under the most frequent."""
    forms: dict[str, collections.Counter[str]] = {}
    for keyword in _distinct(others):
        forms[spell(keyword)] = collections.Counter({keyword: 0})
    for keywords in utterances:
        for keyword in keywords:
            forms.setdefault(spell(keyword), collections.Counter())[keyword] += 1
    usual = {
        min(counter, key=lambda text: (-counter[text], text)): counter.total()
        for counter in forms.values()
    }
    return dict(sorted(usual.items()))
