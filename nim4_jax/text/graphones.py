"""Training of the letter-to-sound model: alignment by EM, n-gram estimation.

A graphone is one letter with the 0–2 phonemes that it stands for: `x:K S`, `e:`. A word
is a row of graphones, so a model of rows of graphones is a model of pronunciation.

Source: Bisani & Ney 2008, "Joint-sequence models for grapheme-to-phoneme conversion";
Chen & Goodman 1999 for modified Kneser–Ney.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from nim4_jax.text.g2p import ARPABET

LETTER_SET = "abcdefghijklmnopqrstuvwxyz"
_PHONES = {name: i + 1 for i, name in enumerate(ARPABET)}
_WIDTH = len(ARPABET) + 1

Graphone = tuple[str, tuple[str, ...]]
Pair = tuple[str, tuple[str, ...]]


def _group_by_shape(pairs: Sequence[Pair]) -> dict[tuple[int, int], list[int]]:
    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index, (word, phonemes) in enumerate(pairs):
        if len(phonemes) <= 2 * len(word):
            groups[len(word), len(phonemes)].append(index)
    return groups


def _chunk_ids(phones: np.ndarray, end: int, length: int) -> np.ndarray:
    """Ids of the `length` phonemes before `end`: 0 none, a one, a·40 + b two."""
    if length == 0:
        return np.zeros(len(phones), np.int64)
    if length == 1:
        return phones[:, end - 1]
    return phones[:, end - 2] * _WIDTH + phones[:, end - 1]


class _Lattice:
    """All alignments of the words of one shape (letters × phonemes), in one batch."""

    def __init__(self, pairs: Sequence[Pair], indices: Sequence[int]) -> None:
        words = [pairs[i][0] for i in indices]
        self.indices = indices
        self.letters = np.array([[LETTER_SET.index(c) for c in w] for w in words])
        self.phones = np.array([[_PHONES[p] for p in pairs[i][1]] for i in indices])
        self.phones = self.phones.reshape(len(words), -1)
        self.shape = self.letters.shape[1], self.phones.shape[1]

    def arcs(self) -> list[tuple[int, int, int]]:
        """(letter index, phonemes used after it, phonemes it takes), in order."""
        n, m = self.shape
        return [
            (i, j, k)
            for i in range(n)
            for j in range(m + 1)
            for k in range(3)
            if k <= j <= 2 * (i + 1) and m - j <= 2 * (n - i - 1)
        ]

    def arc_ids(self, i: int, j: int, k: int) -> tuple[np.ndarray, np.ndarray]:
        return self.letters[:, i], _chunk_ids(self.phones, j, k)

    def expect(self, table: np.ndarray, counts: np.ndarray) -> None:
        """E step: add the posterior of every arc to `counts` (forward–backward)."""
        n, m = self.shape
        arcs = self.arcs()
        size = len(self.letters)
        forward = np.zeros((n + 1, m + 1, size))
        backward = np.zeros((n + 1, m + 1, size))
        forward[0, 0] = backward[n, m] = 1.0
        for i, j, k in arcs:
            forward[i + 1, j] += forward[i, j - k] * table[self.arc_ids(i, j, k)]
        for i, j, k in reversed(arcs):
            backward[i, j - k] += backward[i + 1, j] * table[self.arc_ids(i, j, k)]
        total = np.maximum(forward[n, m], 1e-300)
        for i, j, k in arcs:
            ids = self.arc_ids(i, j, k)
            mass = forward[i, j - k] * table[ids] * backward[i + 1, j] / total
            np.add.at(counts, ids, mass)

    def best(self, table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Viterbi: per word the phonemes taken by each letter, and the log-score."""
        n, m = self.shape
        size = len(self.letters)
        score = np.full((n + 1, m + 1, size), -np.inf)
        choice = np.zeros((n + 1, m + 1, size), np.int64)
        score[0, 0] = 0.0
        logs = np.log(np.maximum(table, 1e-12))
        for i, j, k in self.arcs():
            value = score[i, j - k] + logs[self.arc_ids(i, j, k)]
            better = value > score[i + 1, j]
            score[i + 1, j] = np.where(better, value, score[i + 1, j])
            choice[i + 1, j] = np.where(better, k, choice[i + 1, j])
        taken = np.zeros((size, n), np.int64)
        position = np.full(size, m)
        for i in range(n, 0, -1):
            taken[:, i - 1] = choice[i, position, np.arange(size)]
            position = position - taken[:, i - 1]
        return taken, score[n, m]


def align(
    pairs: Sequence[Pair], iterations: int = 8, floor: float = -4.5
) -> list[list[Graphone]]:
    """Rows of graphones of (word, phonemes) pairs, aligned by EM.

    Args:
        pairs: words of a–z with their phonemes.
        iterations: EM steps.
        floor: least mean log-probability a letter; worse pairs (abbreviations such as
            "aaa" = triple A) are dropped.
    """
    lattices = [_Lattice(pairs, group) for group in _group_by_shape(pairs).values()]
    table = np.ones((len(LETTER_SET), _WIDTH * _WIDTH))
    table[:, _WIDTH:] = 0.05  # two phonemes for one letter are the exception
    table /= table.sum(axis=1, keepdims=True)
    for _ in range(iterations):
        counts = np.full_like(table, 1e-9)
        for lattice in lattices:
            lattice.expect(table, counts)
        table = counts / counts.sum()
    conditional = table / table.sum(axis=1, keepdims=True)
    rows: list[list[Graphone]] = []
    for lattice in lattices:
        taken, scores = lattice.best(conditional)
        for index, lengths, score in zip(lattice.indices, taken, scores):
            word, phonemes = pairs[index]
            if score < floor * len(word):
                continue
            ends = np.cumsum(lengths)
            rows.append(
                [
                    (letter, tuple(phonemes[end - size : end]))
                    for letter, end, size in zip(word, ends, lengths)
                ]
            )
    return rows


def prune_rare(rows: list[list[Graphone]], least: int) -> list[list[Graphone]]:
    """Drops rows with a graphone seen fewer than `least` times: mostly misspellings."""
    counts = Counter(graphone for row in rows for graphone in row)
    return [row for row in rows if all(counts[g] >= least for g in row)]


def _discounts(counts: Iterable[int]) -> tuple[float, float, float]:
    """Chen & Goodman's discounts for counts of 1, 2 and more, from counts of counts."""
    table = Counter(counts)
    ones, twos, threes, fours = (max(table[n], 1) for n in range(1, 5))
    base = ones / (ones + 2 * twos)
    return (
        1 - 2 * base * twos / ones,
        max(2 - 3 * base * threes / twos, 0.0),
        max(3 - 4 * base * fours / threes, 0.0),
    )


def count_ngrams(
    rows: Sequence[Sequence[int]], order: int, cutoffs: Sequence[int]
) -> list[dict[tuple[int, ...], float]]:
    """Discounted n-gram probabilities of interpolated modified Kneser–Ney.

    P(g | h) = max(c(h g) − D(c), 0) / c(h ·) + λ(h) P(g | h'), where h' drops the
    oldest graphone, c is the continuation count below the highest order, and λ(h) is
    the mass that is left, so entries may be pruned freely.

    Args:
        rows: id sequences, with START in front and END behind.
        order: longest n-gram.
        cutoffs: per order, the least raw count of an n-gram that is kept.

    Returns:
        For n = 1 … order: n-gram → its own term of the sum, (c − D) / c(h ·).
    """
    raw: list[Counter[tuple[int, ...]]] = [Counter() for _ in range(order)]
    for row in rows:
        for end in range(1, len(row) + 1):
            for n in range(1, min(order, end) + 1):
                raw[n - 1][tuple(row[end - n : end])] += 1
    tables = []
    start = rows[0][0]
    for n in range(1, order + 1):
        counts = raw[n - 1]
        if n < order:
            longer: Counter[tuple[int, ...]] = Counter(g[1:] for g in raw[n])
            # nothing stands before the start of a word: its raw count is all there is
            used = {g: c if g[0] == start else longer[g] for g, c in counts.items()}
        else:
            used = dict(counts)
        totals: Counter[tuple[int, ...]] = Counter()
        for gram, count in used.items():
            if gram != (start,):
                totals[gram[:-1]] += count
        discounts = _discounts(used.values()) if n > 1 else (0.0, 0.0, 0.0)
        tables.append(
            {
                gram: max(count - discounts[min(count, 3) - 1], 1e-9)
                / totals[gram[:-1]]
                for gram, count in used.items()
                if counts[gram] >= cutoffs[n - 1] and count and gram != (start,)
            }
        )
    tables[0][start,] = 0.0
    return tables
