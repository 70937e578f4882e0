"""Prompt suffixes with hints for streams, tokenised once and padded to a fixed size."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence

import numpy as np

from nim4_jax.retrieval import hints as retrieval_hints
from nim4_jax.retrieval.hotwords import Hit
from nim4_jax.text import prompt
from nim4_jax.text.tokenizer import Tokenizer
from nim4_jax.types import Labels

_JOINED = 3  # tokens that a name may save by merging with its neighbours


class Prompter:
    """Prompts of a fixed size behind the speech."""

    def __init__(self, tokenizer: Tokenizer, size: int):
        """Prompts of at most `size` tokens.

        Raises:
            ValueError: they hold no prompt, even without names.
        """
        self._tokenizer, self._size = tokenizer, size
        self._bare = len(prompt.encode_suffix(tokenizer))
        if self._bare > size:
            raise ValueError(
                f"suffix_tokens={size} hold no prompt: it has {self._bare} tokens "
                "without hotwords."
            )
        self._encode = functools.lru_cache(4096)(self._encode_names)
        self._fit = functools.lru_cache(4096)(self._fit_names)
        self._measure = functools.lru_cache(1 << 14)(self._measure_name)

    def choose(self, own: Iterable[str], hits: Sequence[Hit]) -> tuple[str, ...]:
        """Names that there is room for: a stream's own, then those that were heard."""
        names = tuple(name.strip() for name in own if name.strip())
        if hits:
            found = retrieval_hints.select_hints(
                hits, self._tokenizer, budget=self._size - self._bare
            )
            names = tuple(dict.fromkeys((*names, *found)))
        return self._fit(names)

    def count(self, names: tuple[str, ...]) -> int:
        """Tokens of the prompt with these names."""
        return len(self._encode(names))

    def pack(self, rows: Sequence[tuple[str, ...]]) -> Labels:
        """Prompts of rows that were chosen.

        Returns:
            Labels [rows, size].
        """
        ids = np.zeros((len(rows), self._size), np.int32)
        mask = np.zeros(ids.shape, bool)
        for row, names in enumerate(rows):
            tokens = self._encode(names)
            ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, True
        return Labels(ids, mask)

    def _encode_names(self, names: tuple[str, ...]) -> tuple[int, ...]:
        return tuple(prompt.encode_suffix(self._tokenizer, names))

    def _measure_name(self, name: str) -> int:
        """Tokens of a name behind another one."""
        return len(self._tokenizer.encode(f", {name}"))

    def _fit_names(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """As `prompt.fit_hints`; most names that have no room cost a look-up."""
        fitting, length = (), self._bare
        for name in names:
            if length >= self._size:
                break
            if length + self._measure(name) - _JOINED > self._size:
                continue
            longer = (*fitting, name)
            if (count := len(prompt.encode_suffix(self._tokenizer, longer))) <= (
                self._size
            ):
                fitting, length = longer, count
        return fitting
