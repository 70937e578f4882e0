"""Hints in the prompt of each training example, and names its transcript should have.

S, the keyword set, is that of the training transcripts; who stands in which prompt is
drawn from (seed, epoch, example), so hosts, threads and restarts change nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from absl import logging

from nim4_jax.context import choose, keywords
from nim4_jax.context.choose import HintConfig
from nim4_jax.context.distractors import Distractors
from nim4_jax.context.keywords import KeywordSet, occurs, spell
from nim4_jax.context.statistical import StatisticalExtractor
from nim4_jax.data import sources, transforms
from nim4_jax.retrieval import names
from nim4_jax.text import prompt
from nim4_jax.text.tokenizer import Tokenizer

_HINTS = 0x417  # stream of random numbers


@dataclass(frozen=True)
class HintData:
    """Which names there are, and how much room the prompt has.

    Attributes:
        draw: the shares of keywords and distractors.
        names: list of further members of S (text, TSV or JSONL); "" for none.
        important: list of names that a transcript should have whether the prompt names
            them or not, for rewards; "" for none.
        suffix_tokens: width of the prompt behind the speech; a hint without room is
            left out whole.
        wanted_tokens: width of the names that a transcript should have; 0 delivers
            none of them.
    """

    draw: HintConfig = HintConfig()
    names: str = ""
    important: str = ""
    suffix_tokens: int = 64
    wanted_tokens: int = 0


def collect(corpus: sources.Corpus, listed: Sequence[str]) -> KeywordSet:
    """S of the transcripts, and the keywords of each.

    Records bring their own where any record of their source does; in the transcripts of
    other sources the statistical extractor looks for them.
    """
    texts, own = [], []
    for number in range(len(corpus.sources)):
        records = [corpus[int(index)] for index in corpus.group(number)]
        texts += [record["text"] for record in records]
        given = [tuple(record["keywords"]) for record in records]
        own += given if any(given) else [None] * len(records)
    extractor = StatisticalExtractor.fit(texts, names=listed)
    return keywords.collect(texts, extractor, own=own, names=listed)


@dataclass
class HintDrawer:
    """Example and epoch → ids of its prompt's end and of the names it should have.

    Attributes:
        config: shares and widths.
        keyword_set: S, with the keywords of the examples that hold speech.
        texts: transcripts of these examples.
        tokenizer: path to a tokenizer.json.
        seed: of all draws.
    """

    config: HintData
    keyword_set: KeywordSet
    texts: tuple[str, ...]
    tokenizer: str
    seed: int
    distractors: Distractors = field(init=False)
    important: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        self._tokenizer = Tokenizer.from_file(self.tokenizer)
        prompt.fit_hints(self._tokenizer, (), self.config.suffix_tokens)  # raises
        self.distractors = Distractors.build(self.keyword_set.texts)
        path = self.config.important
        listed = [name.text for name in names.read_names(path)] if path else []
        self.important = tuple(listed)

    @classmethod
    def open(
        cls, config: HintData, corpus: sources.Corpus, tokenizer: str | None, seed: int
    ) -> HintDrawer:
        """Collect S and index it.

        Raises:
            ValueError: no tokenizer, no such list, or too few tokens for a prompt.
        """
        if not tokenizer:
            raise ValueError("hints need tokens: put 'tokens' into data.needs.")
        listed = (
            [name.text for name in names.read_names(config.names)]
            if config.names
            else []
        )
        found = collect(corpus, listed)
        logging.info("%s", found.summary())
        texts = tuple(corpus[index]["text"] for index in range(len(corpus)))
        return cls(config, found, texts, tokenizer, seed)

    def fingerprint(self) -> str:
        """Of all that the draws depend on."""
        known = (self.config, sorted(self.keyword_set.counts), self.important)
        return hashlib.sha256(repr(known).encode()).hexdigest()[:16]

    def draw(self, epoch: int, index: int) -> tuple[str, ...]:
        """Hints of an example in an epoch; one without speech has distractors only."""
        rng = np.random.default_rng((self.seed, _HINTS, epoch, index))
        spoken = index < len(self.texts)
        hints = choose.choose_hints(
            self.texts[index] if spoken else "",
            self.keyword_set.utterances[index] if spoken else (),
            self.keyword_set,
            self.distractors,
            rng,
            self.config.draw,
        )
        return prompt.fit_hints(self._tokenizer, hints, self.config.suffix_tokens)

    def find_wanted(self, index: int, hints: Sequence[str]) -> tuple[str, ...]:
        """Hints that the example says, and the important names in it."""
        if index >= len(self.texts):
            return ()
        said = spell(self.texts[index])
        named = dict.fromkeys((*hints, *self.important))
        return tuple(name for name in named if occurs(spell(name), said))

    def load(self, epoch: int, indices: np.ndarray) -> dict[str, Any]:
        """Arrays of a batch's rows: suffix, and wanted if asked for, with masks."""
        hints = [
            self.draw(epoch, int(index)) if index >= 0 else () for index in indices
        ]
        width = self.config.suffix_tokens
        suffix, mask = prompt.pack_suffixes(self._tokenizer, hints, width)
        arrays = {"suffix": suffix, "suffix_mask": mask}
        if width := self.config.wanted_tokens:
            rows = []
            for index, row in zip(indices, hints):
                wanted = self.find_wanted(int(index), row) if index >= 0 else ()
                ids = prompt.encode_names(self._tokenizer, wanted)
                rows.append(np.asarray(ids[:width], np.int32))
            values, mask = transforms.pad_rows(rows, width, np.int32)
            arrays |= {"wanted": values, "wanted_mask": mask}
        return arrays
