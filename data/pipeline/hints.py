"""Hints in the prompt of each training example, and the names expected in its answer.

Keywords are those that the sources carry (keyword_pool.py); who stands in which prompt
is drawn from (seed, epoch, example), so hosts, threads and restarts change nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nim4_jax.context import choose
from nim4_jax.context.choose import HintConfig
from nim4_jax.context.distractors import Distractors
from nim4_jax.context.keywords import occurs, spell
from nim4_jax.data.pipeline import transforms
from nim4_jax.data.pipeline.keyword_pool import KeywordPool
from nim4_jax.data.sources import examples
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
        pool: names that distractors are drawn from at most, a sample of S.
    """

    draw: HintConfig = HintConfig()
    names: str = ""
    important: str = ""
    suffix_tokens: int = 64
    wanted_tokens: int = 0
    pool: int = 20_000


@dataclass
class HintDrawer:
    """Example and epoch → ids of its prompt's end and of the names it should have.

    Attributes:
        config: shares and widths.
        pool: names, and the keywords of the examples that hold speech.
        tokenizer: path to a tokenizer.json.
        seed: of all draws.
    """

    config: HintData
    pool: KeywordPool
    tokenizer: str
    seed: int
    distractors: Distractors = field(init=False)
    important: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        self._tokenizer = Tokenizer.from_file(self.tokenizer)
        prompt.fit_hints(self._tokenizer, (), self.config.suffix_tokens)  # raises
        self.distractors = Distractors.build(self.pool.names)
        path = self.config.important
        listed = [name.text for name in names.read_names(path)] if path else []
        self.important = tuple(listed)

    @classmethod
    def open(
        cls, config: HintData, corpus: examples.Corpus, tokenizer: str | None, seed: int
    ) -> HintDrawer:
        """Sample S and index it.

        Raises:
            ValueError: no tokenizer, no such list, too few tokens for a prompt, or many
                texts without keywords.
        """
        if not tokenizer:
            raise ValueError("hints need tokens: put 'tokens' into data.needs.")
        listed = (
            [name.text for name in names.read_names(config.names)]
            if config.names
            else []
        )
        pool = KeywordPool.open(corpus, listed, config.pool, seed)
        return cls(config, pool, tokenizer, seed)

    def fingerprint(self) -> str:
        """Of all that the draws depend on."""
        known = (self.config, self.pool.names, self.important)
        return hashlib.sha256(repr(known).encode()).hexdigest()[:16]

    def draw(self, epoch: int, index: int) -> tuple[str, ...]:
        """Hints of an example in an epoch; one without speech has distractors only."""
        rng = np.random.default_rng((self.seed, _HINTS, epoch, index))
        spoken = index < len(self.pool.corpus)
        text, said = self.pool.read(index) if spoken else ("", ())
        hints = choose.choose_hints(
            text,
            said,
            self.pool.names,
            self.distractors,
            rng,
            self.config.draw,
        )
        return prompt.fit_hints(self._tokenizer, hints, self.config.suffix_tokens)

    def find_wanted(self, index: int, hints: Sequence[str]) -> tuple[str, ...]:
        """Hints that the example says, and the important names in it."""
        if index >= len(self.pool.corpus):
            return ()
        said = spell(self.pool.corpus.describe(index)["text"])
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
