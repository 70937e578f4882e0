"""Pronunciation of words that no dictionary has: an n-gram model of graphones.

The model is a trie of n-grams (see graphones.py). Its child weights are the terms
(c − D) / c(h ·) of interpolated Kneser–Ney, in 8-bit logarithms; a context's back-off
weight is the mass that its children leave.
"""

from __future__ import annotations

import io
import itertools
import json
import lzma
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib import resources
from typing import NamedTuple

import numba
import numpy as np

_STEPS_PER_NAT = 20.0
_LEAST_BACKOFF = 1e-5
_LEAST_PROBABILITY = 1e-12
END = "</s>"
START = "<s>"


class _Tables(NamedTuple):
    """What the search reads; G graphones, N nodes, L letters.

    Attributes:
        first: [N + 1], as in the model.
        symbols: [N], as in the model.
        weights: [N], as in the model.
        terms: [256]; the probability term that each weight stands for.
        backoffs: [N]; the mass that each node's children leave to shorter contexts.
        runs: [L + 1]; graphones of letter l are runs[l] … runs[l + 1] − 1. START is
            letter 0, END is letter 1.
        phonemes: [G, longest]; ids of each graphone's phonemes, padded with zeros.
        lengths: [G]; how many of them count.
        order: longest n-gram.
    """

    first: np.ndarray
    symbols: np.ndarray
    weights: np.ndarray
    terms: np.ndarray
    backoffs: np.ndarray
    runs: np.ndarray
    phonemes: np.ndarray
    lengths: np.ndarray
    order: int


class _Beam(NamedTuple):
    """Hypotheses; B rows.

    Attributes:
        masses: [B]; probabilities, up to a factor that all share.
        contexts: [B, order]; the nodes of the context's suffixes, from the root (the
            empty one) to longer ones, up to the first −1.
        spoken: [B]; what each has said, a node of `_Speech`.
    """

    masses: np.ndarray
    contexts: np.ndarray
    spoken: np.ndarray


class _Speech(NamedTuple):
    """A trie of the phonemes that hypotheses say; node 0 is silence.

    Attributes:
        parents: node of all phonemes but the last.
        phonemes: id of the last phoneme.
        heads: newest child of each node; 0 for none.
        others: next older child of the same parent; 0 for none.
        size: [1]; nodes so far.
    """

    parents: np.ndarray
    phonemes: np.ndarray
    heads: np.ndarray
    others: np.ndarray
    size: np.ndarray


@dataclass(frozen=True)
class LetterToSound:
    """A trained model.

    Attributes:
        letters: per graphone its letter, equal ones side by side; START and END are
            the first two.
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

    def __post_init__(self) -> None:
        changes = sum(a != b for a, b in itertools.pairwise(self.letters))
        if changes >= len(set(self.letters)):
            raise ValueError("graphones of one letter are apart; sort them by letter.")

    @cached_property
    def _codes(self) -> dict[str, int]:
        """Letter → its number among the letters."""
        return {letter: i for i, letter in enumerate(dict.fromkeys(self.letters))}

    @cached_property
    def _names(self) -> tuple[str, ...]:
        """Phoneme of each id."""
        return tuple(sorted({name for spoken in self.phonemes for name in spoken}))

    @cached_property
    def _tables(self) -> _Tables:
        terms = np.exp(np.arange(256) / -_STEPS_PER_NAT)
        sums = np.zeros(len(self.symbols))
        parents = np.flatnonzero(np.diff(self.first))
        sums[parents] = np.add.reduceat(terms[self.weights], self.first[parents])
        lengths = np.array([len(spoken) for spoken in self.phonemes])
        phonemes = np.zeros((len(lengths), lengths.max()), np.int64)
        for row, names in zip(phonemes, self.phonemes):
            row[: len(names)] = [self._names.index(name) for name in names]
        return _Tables(
            first=self.first,
            symbols=self.symbols,
            weights=self.weights,
            terms=terms,
            backoffs=np.maximum(1.0 - sums, _LEAST_BACKOFF),
            runs=np.cumsum([0, *Counter(self.letters).values()]),
            phonemes=phonemes,
            lengths=lengths,
            order=self.order,
        )

    def predict(self, word: str, beam: int = 12) -> tuple[str, ...]:
        """The likeliest phonemes of a word, by beam search over graphones.

        Hypotheses that spell the same phonemes in the same context are summed.

        Args:
            word: letters a–z; other characters are skipped.
            beam: hypotheses kept after each letter.

        Raises:
            ValueError: a beam that keeps nothing.
        """
        if beam < 1:
            raise ValueError(f"beam={beam} keeps no hypothesis; it must be 1 or more.")
        codes = self._codes
        inner = [codes[letter] for letter in word if letter in codes]
        letters = np.array([codes[START], *inner, codes[END]])
        names = self._names
        return tuple(names[i] for i in _search(self._tables, letters, beam))

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
        first = np.cumsum(np.concatenate([[1], sizes]), dtype=np.int32)
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
        first = np.cumsum(np.concatenate([[1], sizes]), dtype=np.int32)
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


_jit = numba.njit(cache=True, nogil=True)


@_jit
def _search(tables, letters, beam):
    """Phoneme ids of the likeliest reading of letters, START and END among them."""
    runs, order = tables.runs, tables.order
    room = beam * np.diff(runs).max()
    masses = np.empty(room)
    children = np.empty((room, order), np.int32)
    ranked = np.empty(beam, np.int64)
    speech = _fall_silent(len(letters) * beam * tables.phonemes.shape[1])
    old, new = _make_beam(beam, order), _make_beam(beam, order)
    count = 1
    for letter in letters:
        size = runs[letter + 1] - runs[letter]
        for row in range(count):
            own = slice(row * size, (row + 1) * size)
            context = old.contexts[row]
            _interpolate(tables, context, letter, masses[own], children[own])
            _prune(masses[own], beam)
            for place in range(row * size, (row + 1) * size):
                masses[place] *= old.masses[row]
            for other in range(row):
                if old.spoken[other] == old.spoken[row]:
                    _merge(masses, children, row * size, other * size, size)
        count = _rank(masses[: count * size], ranked)
        for row in range(count):
            place = ranked[row]
            before, graphone = place // size, runs[letter] + place % size
            new.masses[row] = masses[place] / masses[ranked[0]]
            for depth in range(1, order):
                new.contexts[row, depth] = children[place, depth - 1]
            new.spoken[row] = _say(speech, old.spoken[before], tables, graphone)
        old, new = new, old
    totals = np.zeros(speech.size[0])
    for row in range(count):
        totals[old.spoken[row]] += old.masses[row]
    return _spell_out(speech, totals.argmax())


@_jit
def _make_beam(beam, order):
    """Hypotheses that have said nothing, in the empty context."""
    contexts = np.full((beam, order), -1, np.int32)
    contexts[:, 0] = 0
    return _Beam(np.ones(beam), contexts, np.zeros(beam, np.int64))


@_jit
def _interpolate(tables, context, letter, values, children):
    """P(graphone | context) of each graphone of a letter.

    Writes values [graphones] and children [graphones, order]: the child, along each
    graphone, of each of the context's nodes; −1 if the n-gram was never seen.
    """
    first, symbols, weights = tables.first, tables.symbols, tables.weights
    begin, end = tables.runs[letter], tables.runs[letter + 1]
    for place in range(end - begin):
        values[place] = 0.0
        for depth in range(len(context)):
            children[place, depth] = -1
    longest = 0
    while longest + 1 < len(context) and context[longest + 1] >= 0:
        longest += 1
    share = 1.0
    for depth in range(longest, -1, -1):
        node = context[depth]
        high = first[node + 1]
        child = _seek(symbols, first[node], high, begin)
        while child < high and symbols[child] < end:
            place = symbols[child] - begin
            values[place] += share * tables.terms[weights[child]]
            children[place, depth] = child
            child += 1
        share *= tables.backoffs[node]
    for place in range(end - begin):
        values[place] = max(values[place], _LEAST_PROBABILITY)


@_jit
def _seek(symbols, low, high, symbol):
    """The first of the ascending symbols low … high − 1 that is not below `symbol`."""
    while low < high:
        middle = (low + high) // 2
        if symbols[middle] < symbol:
            low = middle + 1
        else:
            high = middle
    return low


@_jit
def _prune(masses, beam):
    """Zeroes all but the greatest `beam` masses."""
    for _ in range(len(masses) - beam):
        least = -1
        for place in range(len(masses)):
            if masses[place] > 0.0 and (least < 0 or masses[place] < masses[least]):
                least = place
        masses[least] = 0.0


@_jit
def _merge(masses, children, own, other, size):
    """Moves masses own … own + size − 1 to other … where they lead to one context."""
    for _ in range(size):
        if _is_one_context(children[own], children[other]):
            masses[other] += masses[own]
            masses[own] = 0.0
        own, other = own + 1, other + 1


@_jit
def _is_one_context(a, b):
    for depth in range(len(a) - 1):
        if a[depth] != b[depth]:
            return False
        if a[depth] < 0:
            break
    return True


@_jit
def _rank(masses, ranked):
    """Places of the greatest masses above zero, best first; returns how many fit."""
    count, least = 0, 0.0
    for place in range(len(masses)):
        mass = masses[place]
        if mass <= least:
            continue
        slot = min(count, len(ranked) - 1)
        count = slot + 1
        while slot > 0 and masses[ranked[slot - 1]] < mass:
            ranked[slot] = ranked[slot - 1]
            slot -= 1
        ranked[slot] = place
        if count == len(ranked):
            least = masses[ranked[count - 1]]
    return count


@_jit
def _fall_silent(room):
    """A trie of silence, with room for so many phonemes."""
    nodes = np.zeros((4, room + 1), np.int64)
    return _Speech(nodes[0], nodes[1], nodes[2], nodes[3], np.ones(1, np.int64))


@_jit
def _say(speech, node, tables, graphone):
    """The node of a node's phonemes and those of a graphone after them."""
    for i in range(tables.lengths[graphone]):
        phoneme = tables.phonemes[graphone, i]
        child = speech.heads[node]
        while child > 0 and speech.phonemes[child] != phoneme:
            child = speech.others[child]
        if child == 0:
            child = speech.size[0]
            speech.size[0] += 1
            speech.parents[child], speech.phonemes[child] = node, phoneme
            speech.others[child], speech.heads[node] = speech.heads[node], child
        node = child
    return node


@_jit
def _spell_out(speech, node):
    """All phonemes of a node, first to last."""
    phonemes = []
    while node > 0:
        phonemes.append(speech.phonemes[node])
        node = speech.parents[node]
    return phonemes[::-1]
