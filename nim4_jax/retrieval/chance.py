"""Background probability of a name's phonemes: how often they match by chance.

Phonemes know no word border: "an" is in "and", "banana" and "can". A trigram model of
phonemes in ordinary text tells how often a sequence is to be expected.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
from jaxtyping import Float

from nim4_jax.text import phonemes

PHONEMES_PER_HOUR = 12 * 3600
"""Of fast speech."""

_COUNT = len(phonemes.INVENTORY)
_DISCOUNT = 0.75


_SURPRISE = 4.4  # nats of a phoneme of which nothing is known


@dataclasses.dataclass(frozen=True, eq=False)
class PhonemeBigrams:
    """How likely phonemes follow each other in ordinary text.

    Attributes:
        first: natural log of the probability of each phoneme by itself, float32.
        pairs: the same of each second phoneme behind each first one.
    """

    first: Float[np.ndarray, " P"]
    pairs: Float[np.ndarray, "P P"]

    @classmethod
    def flat(cls) -> PhonemeBigrams:
        """Where there is no text to learn from: every phoneme alike."""
        return cls(
            np.full(_COUNT, -_SURPRISE, np.float32),
            np.full((_COUNT, _COUNT), -_SURPRISE, np.float32),
        )

    @property
    def bigrams(self) -> PhonemeBigrams:
        """Itself."""
        return self

    def expect(self, keys: Sequence[bytes]) -> Float[np.ndarray, " K"]:
        """Occurrences an hour of each phoneme sequence, by chance."""
        if not keys:
            return np.zeros(0, np.float32)
        ids = np.frombuffer(b"".join(keys), np.uint8)
        begins = np.cumsum([0, *map(len, keys[:-1])])
        logs = np.append(0.0, self.pairs[ids[:-1], ids[1:]])
        logs[begins] = self.first[ids[begins]]
        rates = np.exp(np.add.reduceat(logs, begins)) * PHONEMES_PER_HOUR
        return rates.astype(np.float32)


class Background(Protocol):
    """The interface of background models of phonemes."""

    @property
    def bigrams(self) -> PhonemeBigrams:
        """The part of it that goes with a database."""
        ...

    def expect(self, keys: Sequence[bytes]) -> Float[np.ndarray, " K"]:
        """Occurrences an hour of each phoneme sequence."""
        ...


class PhonemeTrigrams:
    """Interpolated trigrams with absolute discounting.

    Source: Ney, Essen & Kneser 1994.
    """

    def __init__(self, texts: Iterable[str]):
        """Counts the phonemes of the texts; each text stands for itself."""
        triples = np.zeros((_COUNT, _COUNT, _COUNT), np.int32)
        for text in texts:
            ids = np.asarray([0, 0, *phonemes.encode_phonemes(text)])
            np.add.at(triples, (ids[:-2], ids[1:-1], ids[2:]), 1)
        if not triples.any():
            raise ValueError("the texts hold no phonemes; give ordinary sentences.")
        singles = triples.sum((0, 1)) + 0.5
        singles[0] = 1e-9  # the blank is never in a text
        self._first = singles / singles.sum()
        second = _smooth(triples.sum(0)[None], self._first[None, None])[0]
        self._second = second.astype(np.float32)
        self._third = _smooth(triples, second[None]).astype(np.float32)

    @property
    def bigrams(self) -> PhonemeBigrams:
        """What phonemes do to the next one only."""
        return PhonemeBigrams(
            np.log(self._first).astype(np.float32), np.log(self._second)
        )

    def expect(self, keys: Sequence[bytes]) -> Float[np.ndarray, " K"]:
        """Occurrences an hour of each phoneme sequence, by chance."""
        lengths = np.fromiter(map(len, keys), np.int64, len(keys))
        expected = np.zeros(len(keys))
        for length in np.unique(lengths):
            chosen = np.flatnonzero(lengths == length)
            text = b"".join(keys[index] for index in chosen.tolist())
            ids = np.frombuffer(text, np.uint8).reshape(-1, length)
            logs = np.log(self._first[ids[:, 0]])
            if length > 1:
                logs = logs + np.log(self._second[ids[:, 0], ids[:, 1]])
            for place in range(2, length):
                context = ids[:, place - 2], ids[:, place - 1], ids[:, place]
                logs = logs + np.log(self._third[context])
            expected[chosen] = np.exp(logs)
        return (expected * PHONEMES_PER_HOUR).astype(np.float32)


def _smooth(counts: np.ndarray, lower: np.ndarray) -> np.ndarray:
    """P(last | before) from counts [..., P], what is discounted going to `lower`."""
    total = counts.sum(-1, keepdims=True)
    spared = _DISCOUNT * (counts > 0).sum(-1, keepdims=True)
    kept = np.maximum(counts - _DISCOUNT, 0.0)
    share = np.where(total > 0, spared / np.maximum(total, 1), 1.0)
    return kept / np.maximum(total, 1) + share * lower
