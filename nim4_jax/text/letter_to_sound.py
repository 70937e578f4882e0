"""Pronunciation of words that no dictionary has: an n-gram model of graphones.

The model is a trie of n-grams (see graphones.py). Its child weights are the terms
(c − D) / c(h ·) of interpolated Kneser–Ney, in 8-bit logarithms; a context's back-off
weight is the mass that its children leave.
"""

from __future__ import annotations

import io
import json
import lzma
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import resources

import numpy as np

_STEPS_PER_NAT = 20.0
_LEAST_BACKOFF = 1e-5
END = "</s>"
START = "<s>"


def _add_logs(a: float, b: float) -> float:
    """ln(e^a + e^b)."""
    high, low = max(a, b), min(a, b)
    return high + math.log1p(math.exp(low - high))


@dataclass(frozen=True)
class LetterToSound:
    """A trained model.

    Attributes:
        letters: per graphone its letter; START and END are the first two.
        phonemes: per graphone the phonemes it stands for.
        order: longest n-gram.
        first: int32 [nodes + 1]; children of node n are first[n] … first[n + 1] − 1,
            numbered from 1 (node 0 is the root).
        symbols: uint16 [nodes]; graphone of each node, ascending among siblings.
        weights: uint8 [nodes]; −20 ln of the node's own probability term.
    """

    letters: tuple[str, ...]
    phonemes: tuple[tuple[str, ...], ...]
    order: int
    first: np.ndarray
    symbols: np.ndarray
    weights: np.ndarray
    _cache: dict = field(default_factory=dict, repr=False, compare=False)

    def _child(self, node: int, symbol: int) -> int:
        """The child of a node along a graphone; −1 if the n-gram was never seen."""
        low, high = self.first[node], self.first[node + 1]
        place = low + int(np.searchsorted(self.symbols[low:high], symbol))
        return place if place < high and self.symbols[place] == symbol else -1

    def _distribution(self, contexts: tuple[int, ...]) -> np.ndarray:
        """ln P(graphone | context), the context as the nodes of its suffixes."""
        known = self._cache.get(contexts)
        if known is not None:
            return known
        values = np.zeros(len(self.letters))
        for node in contexts:
            low, high = self.first[node], self.first[node + 1]
            terms = np.exp(self.weights[low:high] / -_STEPS_PER_NAT)
            values = values * max(1.0 - float(terms.sum()), _LEAST_BACKOFF)
            values[self.symbols[low:high]] += terms
        logs = np.log(np.maximum(values, 1e-12))
        if len(self._cache) > 20000:
            self._cache.clear()
        self._cache[contexts] = logs
        return logs

    def _extend(self, contexts: tuple[int, ...], symbol: int) -> tuple[int, ...]:
        nodes = [0]
        for node in contexts[: self.order - 1]:
            child = self._child(node, symbol)
            if child < 0:
                break
            nodes.append(child)
        return tuple(nodes)

    def predict(self, word: str, beam: int = 12) -> tuple[str, ...]:
        """The likeliest phonemes of a word, by beam search over graphones.

        Hypotheses that spell the same phonemes in the same context are summed.

        Args:
            word: letters a–z; other characters are skipped.
            beam: hypotheses kept after each letter.
        """
        choices = self._graphones_by_letter()
        start = self._extend((0,), 0)
        hypotheses: list[tuple[float, tuple[int, ...], tuple[str, ...]]]
        hypotheses = [(0.0, start, ())]
        for letter in word:
            if letter not in choices:
                continue
            merged: dict[tuple[tuple[int, ...], tuple[str, ...]], float] = {}
            for score, contexts, spoken in hypotheses:
                logs = self._distribution(contexts)[choices[letter]]
                best = np.argsort(logs)[: -beam - 1 : -1]
                for place in best:
                    symbol = int(choices[letter][place])
                    key = (
                        self._extend(contexts, symbol),
                        spoken + self.phonemes[symbol],
                    )
                    value = score + float(logs[place])
                    merged[key] = _add_logs(merged.get(key, -math.inf), value)
            ranked = sorted(merged.items(), key=lambda item: -item[1])[:beam]
            hypotheses = [(value, *key) for key, value in ranked]
        totals: dict[tuple[str, ...], float] = {}
        for score, contexts, spoken in hypotheses:
            value = score + float(self._distribution(contexts)[1])
            totals[spoken] = _add_logs(totals.get(spoken, -math.inf), value)
        return max(totals, key=lambda spoken: totals[spoken])

    def _graphones_by_letter(self) -> dict[str, np.ndarray]:
        known = self._cache.get("letters")
        if known is None:
            owners = np.array(self.letters)
            known = {
                letter: np.flatnonzero(owners == letter)
                for letter in sorted(set(self.letters[2:]))
            }
            self._cache["letters"] = known
        return known

    def to_bytes(self) -> bytes:
        """The model as one xz-compressed file."""
        header = {
            "order": self.order,
            "graphones": [
                [letter, " ".join(spoken)]
                for letter, spoken in zip(self.letters, self.phonemes)
            ],
        }
        sizes = np.diff(self.first).astype(np.uint16)
        stream = io.BytesIO()
        stream.write(json.dumps(header).encode() + b"\n")
        np.save(stream, sizes)
        np.save(stream, self.symbols.astype(np.uint16))
        np.save(stream, self.weights)
        return lzma.compress(stream.getvalue(), preset=9 | lzma.PRESET_EXTREME)

    @classmethod
    def from_bytes(cls, content: bytes) -> LetterToSound:
        """The inverse of `to_bytes`."""
        stream = io.BytesIO(lzma.decompress(content))
        header = json.loads(stream.readline())
        sizes, symbols, weights = (np.load(stream) for _ in range(3))
        first = np.concatenate([[1], 1 + np.cumsum(sizes, dtype=np.int64)])
        return cls(
            letters=tuple(letter for letter, _ in header["graphones"]),
            phonemes=tuple(tuple(p.split()) for _, p in header["graphones"]),
            order=header["order"],
            first=first,
            symbols=symbols,
            weights=weights,
        )

    @classmethod
    def build(
        cls,
        graphones: Sequence[tuple[str, tuple[str, ...]]],
        tables: Sequence[dict[tuple[int, ...], float]],
    ) -> LetterToSound:
        """A model from n-gram terms (graphones.count_ngrams), level by level.

        Every prefix of an n-gram must be among the n-grams of one order less.
        """
        sizes: list[int] = []
        symbols, weights = [0], [0]
        level: list[tuple[int, ...]] = [()]
        for table in tables:
            children: dict[tuple[int, ...], list[int]] = {}
            for gram in table:
                children.setdefault(gram[:-1], []).append(gram[-1])
            following = []
            for parent in level:
                own = sorted(children.get(parent, ()))
                sizes.append(len(own))
                for symbol in own:
                    gram = (*parent, symbol)
                    following.append(gram)
                    symbols.append(symbol)
                    term = max(table[gram], 1e-9)
                    weights.append(min(255, round(-np.log(term) * _STEPS_PER_NAT)))
            level = following
        sizes += [0] * len(level)
        first = np.concatenate([[1], 1 + np.cumsum(sizes, dtype=np.int64)])
        return cls(
            letters=tuple(letter for letter, _ in graphones),
            phonemes=tuple(spoken for _, spoken in graphones),
            order=len(tables),
            first=first,
            symbols=np.array(symbols, np.uint16),
            weights=np.array(weights, np.uint8),
        )


@lru_cache(maxsize=1)
def load_model() -> LetterToSound:
    """The shipped model, trained by launch/train_g2p.py from the packaged CMUdict."""
    file = resources.files("nim4_jax.text") / "resources" / "letter_to_sound.xz"
    return LetterToSound.from_bytes(file.read_bytes())
