"""Keywords of the training examples: each read with its example, a pool of them kept.

Looking for keywords takes about 1 ms and 2.5 kB a text, on every host at every start:
`nim4 keywords` does it once and writes them into the manifest. What is kept here does
not grow with the corpus: names to draw distractors from, a sample of S, and the
keywords of small sources that carry none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from absl import logging

from nim4_jax.context import keywords
from nim4_jax.context.keywords import KeywordSet
from nim4_jax.context.statistical import StatisticalExtractor
from nim4_jax.data.sources import examples

MOST_SEARCHED = 20_000
"""Texts without keywords, of all sources, that are looked through at the start."""

_VISITS = 4  # examples that are asked for their keywords, times the pool's size
_POOL = 0x9001  # stream of random numbers


@dataclass(frozen=True)
class KeywordPool:
    """Names to draw distractors from, and the keywords of each example.

    Attributes:
        names: S, or a sample of it, ascending.
        corpus: the examples.
        found: keywords by example, of those that had to be looked for and have any.
    """

    names: tuple[str, ...]
    corpus: examples.Corpus
    found: Mapping[int, tuple[str, ...]]

    @classmethod
    def open(
        cls, corpus: examples.Corpus, listed: Sequence[str], size: int, seed: int
    ) -> KeywordPool:
        """Ask a sample of the examples for their keywords.

        Args:
            corpus: the examples.
            listed: further names.
            size: names to be kept at most.
            seed: of the sample; the same names on every host.

        Raises:
            ValueError: a size below 1, or too many texts without keywords.
        """
        if size < 1:
            raise ValueError(f"data.hints.pool={size}; expected 1 or more names.")
        bare = _find_bare(corpus)
        rng = np.random.default_rng((seed, _POOL))
        indices = _choose(corpus, bare, _VISITS * size, rng)
        known = _collect(corpus, indices, bare, listed)
        logging.info("%s", _describe(known, len(corpus)))
        found = {
            int(index): said
            for index, said in zip(indices, known.utterances)
            if said and corpus.find_source(int(index)) in bare
        }
        names = known.texts
        if len(names) > size:
            kept = rng.choice(len(names), size, replace=False)
            names = tuple(names[int(place)] for place in np.sort(kept))
        return cls(names, corpus, found)

    def read(self, index: int) -> tuple[str, tuple[str, ...]]:
        """Transcript of an example, and its keywords, all of which are said in it."""
        record = self.corpus.describe(index)
        text = record["text"]
        named = self.found.get(index) or record["keywords"]
        return text, keywords.keep_said(named, text)


def _find_bare(corpus: examples.Corpus) -> frozenset[int]:
    """Numbers of the sources that carry no keywords.

    Raises:
        ValueError: they have too many texts to look through; names the command.
    """
    bare = [
        number
        for number, source in enumerate(corpus.sources)
        if not examples.carries_keywords(source)
    ]
    texts = sum(len(corpus.sources[number]) for number in bare)
    if texts <= MOST_SEARCHED:
        return frozenset(bare)
    named = "; ".join(_name(corpus.sources[number]) for number in bare)
    raise ValueError(
        f"{texts:,} texts have no keywords, of which hints are made ({named}); at most "
        f"{MOST_SEARCHED:,} are looked through at a start. Look for them once, nim4 "
        "keywords --input=MANIFEST.jsonl --out=NEW.jsonl, and name NEW.jsonl in "
        "data.sources (a TFDS data set carries them as a feature 'keywords'); or train "
        "without hints: --config.data.hints=None."
    )


def _name(source: examples.Source) -> str:
    """What messages call a source."""
    path = getattr(source, "path", None)
    return str(path or examples.describe(source, 0)["origin"].rpartition(":")[0])


def _choose(
    corpus: examples.Corpus,
    bare: frozenset[int],
    visits: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Examples to ask: all of bare sources, of the others at most `visits`.

    Returns:
        Global ids, int64 [N], ascending.
    """
    searched = [corpus.group(number) for number in sorted(bare)]
    total = len(corpus)
    if total <= visits:
        return np.arange(total)
    if bare:  # then words are counted in all texts that are asked
        visits = min(visits, MOST_SEARCHED)
    # With replacement: without, numpy's draw needs memory for the whole corpus.
    drawn = rng.integers(total, size=visits)
    return np.unique(np.concatenate([*searched, drawn]))


def _collect(
    corpus: examples.Corpus,
    indices: np.ndarray,
    bare: frozenset[int],
    listed: Sequence[str],
) -> KeywordSet:
    """S of some examples."""
    texts: list[str] = []
    own: list[tuple[str, ...] | None] = []
    for index in indices:
        record = corpus.describe(int(index))
        texts.append(record["text"])
        searched = corpus.find_source(int(index)) in bare
        own.append(None if searched else tuple(record["keywords"]))
    # Counting words takes long, and tells nothing where all keywords are known.
    fitted = texts[:] if bare else []
    extractor = StatisticalExtractor.fit(fitted, names=listed)
    return keywords.collect(texts, extractor, own=own, names=listed)


def _describe(known: KeywordSet, examples: int) -> str:
    """A line or four for the log."""
    summary = known.summary()
    asked = len(known.utterances)
    if asked < examples:
        summary += f"\nthat is of {asked:,} examples, a sample of {examples:,}"
    return summary
