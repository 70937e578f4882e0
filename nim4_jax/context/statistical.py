"""Keyword extraction by statistics: rare word sequences, capitals, parts of speech."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

from nim4_jax.context import words
from nim4_jax.context.keywords import Finder, Span, keep_longest
from nim4_jax.context.words import Text, Word
from nim4_jax.text import numbers

_FORM_TAGS = frozenset("c d e f h k m o p q r u y".split())  # no noun, verb, adjective
_FUNCTION_WORDS = frozenset(
    """a about above after again against all also am an and any are as at back be
    because been before being below between both but by can could did do does doing
    down during each few for from further get go going got had has have having he her
    here hers him his how i if in into is it its just let like make me more most much
    my need no nor not now of off ok okay on once only or other our ours out over
    please quite really same say see she should so some such take than thank thanks
    that the their theirs them then there these they this those through to too under
    until up us very want was we well were what when where which while who whom why
    will with would yes yet you your yours""".split()
)
_CONNECTORS = frozenset("of the de la le du da van von der del di el".split())
# No name begins or ends with one of these, however often it stands there.
_LINKS = frozenset(
    "and as at by for from in of on or to with".split()
    + "的 地 得 了 着 是 在 和 跟 给 到 从 把".split()
)
_NUMERALS = frozenset(
    word
    for number in (*range(20), *range(20, 100, 10), 100, 1000, 10**6, 10**9)
    for word in numbers.name_english(number)
)
_FEWEST = 3  # occurrences that tell what belongs to a run
_UNSEEN = 1e-6  # share of a neighbour that no other run has
_START, _END = "<start>", "<end>"  # no word has such a form


@dataclasses.dataclass(frozen=True)
class Rarity:
    """How often the words of a keyword may occur.

    Attributes:
        least: texts that a word must be in; 2 leaves out most slips of the pen.
        most: times √N, of N texts in its script, that it may be in: 36 in 8,000 texts,
            400 in a million.
        always: share of its occurrences in which a word stands beside a name that it
            belongs to.
        nats: how surprising that must be if neighbours came by chance.
    """

    least: int = 2
    most: float = 0.4
    always: float = 0.9
    nats: float = 7.0

    def __post_init__(self):
        if self.least < 1 or self.most <= 0 or not 0 < self.always <= 1:
            raise ValueError(
                f"got {self}; expected least ≥ 1, most > 0 and 0 < always ≤ 1."
            )


Run = tuple[str, ...]
_Place = tuple[Sequence[Word], int, int]
"""The words of a text and where a run is: first, one past the last."""


@dataclasses.dataclass(frozen=True)
class StatisticalExtractor:
    """Keywords of texts by what a whole corpus says about its words.

    - In text with case: runs of capitalised words, "Bank of America" with its "of".
    - Elsewhere: runs of rare words. What always stands beside a run belongs to it
      ("dust and diamonds"); a run that always begins or ends a text is no name but the
      form of a sentence ("set the volume to").
    - Chinese words that jieba takes for names, rare or not.
    - Names of a list, before all others.

    Attributes:
        rare: words that may make up a keyword.
        proper: forms that are mostly capitalised within sentences.
        beside: run → the words before and behind that belong to it; None where the
            run is the form of a sentence.
        listed: finds the names of the list.
    """

    rare: frozenset[str]
    proper: frozenset[str]
    beside: Mapping[Run, tuple[Run, Run] | None]
    listed: Finder

    @classmethod
    def fit(
        cls,
        texts: Iterable[str],
        names: Iterable[str] = (),
        rarity: Rarity | None = None,
    ) -> StatisticalExtractor:
        """Count the words of a corpus.

        Args:
            texts: of the corpus, English, Chinese or both.
            names: that are keywords wherever they are said.
            rarity: limits; the default ones if None.
        """
        rarity = rarity or Rarity()
        parsed = [words.parse(text) for text in texts]
        rare = _find_rare(parsed, rarity)
        beside = _find_company(_find_runs(parsed, rare), rarity)
        return cls(rare, _find_proper(parsed), beside, Finder(names))

    def __call__(self, texts: Sequence[str]) -> list[tuple[str, ...]]:
        """Keywords of each text, as written there, in order, each once."""
        return [
            tuple(dict.fromkeys(text[start:end] for start, end in self.find(text)))
            for text in texts
        ]

    def find(self, text: str) -> list[Span]:
        """Where the keywords of a text are."""
        listed = self.listed.find(text)
        parsed = words.parse(text)
        places = [*self._find_capitalised(parsed), *self._find_rare(parsed)]
        spans = [
            (parsed.words[first].start, parsed.words[last - 1].end)
            for first, last in places
        ]
        apart = [
            (start, end)
            for start, end in keep_longest(spans)
            if end - start > 1
            and all(end <= other[0] or start >= other[1] for other in listed)
        ]
        return sorted([*listed, *apart])

    def _find_capitalised(self, text: Text) -> list[Span]:
        flags = [
            text.cased and word.capital and (not word.opens or word.form in self.proper)
            for word in text.words
        ]
        return _link(text.words, words.find_runs(text.words, flags))

    def _find_rare(self, text: Text) -> Iterator[Span]:
        forms = tuple(word.form for word in text.words)
        for first, last in words.find_runs(text.words, _flag(text, self.rare)):
            company = self.beside.get(forms[first:last], ((), ()))
            if company is None and not any(w.is_name for w in text.words[first:last]):
                continue
            before, behind = company or ((), ())
            start, end = max(first - len(before), 0), last + len(behind)
            if forms[start:first] != before or not _joined(text, start, first + 1):
                start = first
            if forms[last:end] != behind or not _joined(text, last - 1, end):
                end = last
            yield start, end


def _joined(text: Text, first: int, last: int) -> bool:
    """Whether nothing stands between some words."""
    return all(word.joined for word in text.words[first + 1 : last])


def _is_open(text: Text, word: Word) -> bool:
    """Whether a word is a keyword for its rarity; where case tells, case decides."""
    return bool(word.tag) or not text.cased


def _flag(text: Text, rare: frozenset[str]) -> list[bool]:
    return [
        word.is_name or (word.form in rare and _is_open(text, word))
        for word in text.words
    ]


def _link(found: Sequence[Word], runs: Iterable[Span]) -> list[Span]:
    """Runs with a connector or two between as one: Bank + of + America."""
    linked: list[Span] = []
    for first, last in runs:
        between = found[linked[-1][1] : first + 1] if linked else ()
        forms = [word.form for word in between[:-1]]
        joined = all(word.joined for word in between)
        if joined and 0 < len(forms) <= 2 and _CONNECTORS.issuperset(forms):
            linked[-1] = (linked[-1][0], last)
        else:
            linked.append((first, last))
    return linked


def _find_proper(texts: Iterable[Text]) -> frozenset[str]:
    """Forms that have a capital in most of their places within sentences."""
    balance: collections.Counter[str] = collections.Counter()
    for text in texts:
        for word in text.words:
            if text.cased and not word.tag and not word.opens:
                balance[word.form] += 1 if word.capital else -1
    return frozenset(form for form, count in balance.items() if count > 0)


def _find_rare(texts: Sequence[Text], rarity: Rarity) -> frozenset[str]:
    """Words within the limits that are no mere form of sentences."""
    counts: collections.Counter[str] = collections.Counter()
    sizes: collections.Counter[bool] = collections.Counter()
    tags: dict[str, str] = {}
    for text in texts:
        counted = {word.form: word.tag for word in text.words if _is_open(text, word)}
        counts.update(counted.keys())
        sizes.update({bool(tag) for tag in counted.values()})
        tags |= counted
    most = {han: math.ceil(rarity.most * math.sqrt(n)) for han, n in sizes.items()}
    rare = {
        form
        for form, tag in tags.items()
        if rarity.least <= counts[form] <= most[bool(tag)]
        and tag not in _FORM_TAGS
        and form not in _FUNCTION_WORDS
        and any(c.isalpha() for c in form)
        and not _NUMERALS.issuperset(form.split("-"))
    }
    places: dict[Run, list[_Place]] = collections.defaultdict(list)
    for text in texts:
        for place, word in enumerate(text.words):
            if word.form in rare and _is_open(text, word):
                places[word.form,].append((text.words, place, place + 1))
    shares = _share(places)
    framing = {
        form
        for (form,), found in places.items()
        if {_START, _END} & {_find_constant(found, s, shares, rarity) for s in (0, 1)}
    }
    return frozenset(rare - framing)


def _find_runs(texts: Sequence[Text], rare: frozenset[str]) -> dict[Run, list[_Place]]:
    """Where each run of rare words is."""
    places: dict[Run, list[_Place]] = collections.defaultdict(list)
    for text in texts:
        for first, last in words.find_runs(text.words, _flag(text, rare)):
            run = tuple(word.form for word in text.words[first:last])
            places[run].append((text.words, first, last))
    return places


def _before(place: _Place) -> str:
    """The form before a run; a blank one if something else is between."""
    around, first, _ = place
    if not first:
        return _START
    return around[first - 1].form if around[first].joined else ""


def _behind(place: _Place) -> str:
    around, _, last = place
    if last == len(around):
        return _END
    return around[last].form if around[last].joined else ""


_SIDES = (_before, _behind)


def _share(places: Mapping[Run, Sequence[_Place]]) -> list[dict[str, float]]:
    """How often each form stands before a run, and how often behind one."""
    shares = []
    for look in _SIDES:
        beside = collections.Counter(
            look(p) for every in places.values() for p in every
        )
        shares.append({form: n / beside.total() for form, n in beside.items()})
    return shares


def _find_constant(
    found: Sequence[_Place],
    side: int,
    shares: Sequence[Mapping[str, float]],
    rarity: Rarity,
) -> str:
    """What stands before (side 0) or behind a run too often for chance; else "".

    It is there nearly always, and n · ln(1 / p) is at least `rarity.nats`, where p is
    its share of the neighbours of all runs.
    """
    form, count = collections.Counter(map(_SIDES[side], found)).most_common(1)[0]
    surprise = -count * math.log(shares[side].get(form, _UNSEEN))
    constant = count >= max(rarity.always * len(found), _FEWEST)
    return form if constant and surprise >= rarity.nats else ""


def _find_company(
    places: Mapping[Run, Sequence[_Place]], rarity: Rarity
) -> dict[Run, tuple[Run, Run] | None]:
    """What belongs to runs beside their own words; None for forms of sentences."""
    shares = _share(places)
    company = {run: _grow(found, shares, rarity) for run, found in places.items()}
    return {run: grown for run, grown in company.items() if grown != ((), ())}


def _grow(
    found: Sequence[_Place], shares: Sequence[Mapping[str, float]], rarity: Rarity
) -> tuple[Run, Run] | None:
    """The words before and behind; None if they reach a border of the text."""
    before: Run = ()
    behind: Run = ()
    side, waited = 0, 0
    while waited < 2:
        form = _find_constant(found, side, shares, rarity)
        if form in (_START, _END):
            return None
        kept = [place for place in found if form and _SIDES[side](place) == form]
        if form and side:
            behind = (*behind, form)
            found = [(around, first, last + 1) for around, first, last in kept]
        elif form:
            before = (form, *before)
            found = [(around, first - 1, last) for around, first, last in kept]
        side, waited = 1 - side, 0 if form else waited + 1
    while before and before[0] in _LINKS:
        before = before[1:]
    while behind and behind[-1] in _LINKS:
        behind = behind[:-1]
    return before, behind
