"""Distractors of a keyword: names that sound like it, nearest first.

Keys (phoneme sequences) of one length stand in a trie. The edit distance to all of them
is worked out along it, row by row: keys that begin alike share rows, and a branch that
can no longer come near is left. That finds what comparing all pairs finds.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator

import numba
import numpy as np
from jaxtyping import Float, Int

from nim4_jax.context.keywords import spell
from nim4_jax.text import articulation
from nim4_jax.text.phonemes import encode_phonemes

GAP = 0.7
"""Cost of a phoneme too many or too few."""
_UNALIKE = 2.0  # articulatory distance from which on two phonemes have cost 1
_SLACK = 1e-9  # no branch is left for a rounding error


@functools.cache
def costs() -> Float[np.ndarray, "P P"]:
    """Cost of hearing a phoneme for another: 0 for itself alone, 1 at most.

    c(a, b) = min(‖f(a) − f(b)‖ / 2, 1) with the articulatory coordinates f: another
    tone or voicing costs 0.1 to 0.35, a consonant for a vowel 1.
    """
    points = articulation.features()
    apart = np.linalg.norm(points[:, None] - points[None], axis=-1)
    return np.minimum(apart / _UNALIKE, 1.0)


def measure(text: str, other: str) -> float:
    """Phonetic distance of two texts, from 0, which is homophones, to 1.

    d = (cheapest edits from phonemes to phonemes) / (phonemes of the longer text); an
    edit replaces one at its cost or drops or adds one at GAP. d(a, b) = d(b, a). What
    cannot be pronounced is as far as can be from everything, itself excepted.
    """
    spoken, heard = _encode(text), _encode(other)
    if not len(spoken) or not len(heard):
        return 0.0 if text == other else 1.0
    cheapest = _compare(spoken, heard, costs())
    return min(float(cheapest) / max(len(spoken), len(heard)), 1.0)


def _encode(text: str) -> Int[np.ndarray, " L"]:
    return np.asarray(encode_phonemes(text), np.uint8)


@dataclasses.dataclass(frozen=True)
class Distractors:
    """K ways to say a name, in one trie a length, shorter ones first.

    Nodes stand in preorder: the branch of node n ends before node `after[n]`.

    Attributes:
        label: phoneme of each node, uint8.
        depth: phonemes up to and with it.
        after: the first node behind its branch.
        ends: the node where each key ends, ascending.
        lengths: phonemes of each key.
        names: what sounds like each key, ascending.
    """

    label: Int[np.ndarray, " M"]
    depth: Int[np.ndarray, " M"]
    after: Int[np.ndarray, " M"]
    ends: Int[np.ndarray, " K"]
    lengths: Int[np.ndarray, " K"]
    names: tuple[tuple[str, ...], ...]

    @classmethod
    def build(cls, names: Iterable[str]) -> Distractors:
        """Index the members of S; those that cannot be pronounced are left out."""
        sounds: dict[bytes, list[str]] = {}
        for name in sorted(set(names)):
            if key := bytes(encode_phonemes(name)):
                sounds.setdefault(key, []).append(name)
        keys = sorted(sounds, key=lambda key: (len(key), key))
        lengths = np.asarray([len(key) for key in keys], np.int64)
        spelled = np.frombuffer(b"".join(keys), np.uint8)
        tries = _plant(spelled, lengths)
        return cls(*tries, lengths, tuple(tuple(sounds[key]) for key in keys))

    def of(
        self, keyword: str, most: int = 10, max_distance: float = 0.25
    ) -> tuple[tuple[str, float], ...]:
        """Names that sound nearly like a keyword, the nearest first.

        Equally near ones ascend; none is the keyword itself in another spelling.

        Args:
            keyword: any text, of S or not.
            most: number of names.
            max_distance: of `measure`, which is in the result too.

        Raises:
            ValueError: a negative limit.
        """
        if most < 0 or not max_distance >= 0:
            raise ValueError(
                f"got most {most} and max_distance {max_distance}; expected 0 or more."
            )
        spoken, itself = _encode(keyword), spell(keyword)
        near = sorted(self._search(spoken, max_distance)) if len(spoken) else []
        named = ((name, distance) for distance, name in near if spell(name) != itself)
        return tuple(itertools.islice(named, most))

    def _search(
        self, spoken: Int[np.ndarray, " L"], max_distance: float
    ) -> Iterator[tuple[float, str]]:
        """Every name within a distance, in no order."""
        size, table = len(spoken), costs()
        for length in np.unique(self.lengths):
            longest = max(size, length)
            limit = max_distance * longest + _SLACK
            if GAP * abs(size - length) > limit:
                continue
            begin, end = np.searchsorted(self.lengths, (length, length + 1))
            nodes = (self.ends[begin] - length + 1, self.ends[end - 1] + 1)
            branches = (self.label, self.depth, self.after)
            room = end - begin
            found, cheapest = _walk(branches, nodes, length, spoken, table, limit, room)
            keys = np.searchsorted(self.ends, found)
            for key, cost in zip(keys.tolist(), (cheapest / longest).tolist()):
                if cost <= max_distance:
                    yield from ((min(cost, 1.0), name) for name in self.names[key])


_jit = numba.njit(cache=True, nogil=True)


@_jit
def _plant(spelled, lengths):
    """Nodes of the tries: label, depth, after; and where each key ends."""
    label = np.empty(len(spelled), np.uint8)
    depth = np.empty(len(spelled), np.int32)
    after = np.empty(len(spelled), np.int32)
    ends = np.empty(len(lengths), np.int64)
    longest = lengths[-1] if len(lengths) else 0
    path = np.empty(longest + 1, np.int64)
    count, begin, before = 0, 0, 0
    for key in range(len(lengths)):
        length, shared = lengths[key], 0
        if length == before:
            while spelled[begin + shared] == spelled[begin - length + shared]:
                shared += 1
        for place in range(shared, before):
            after[path[place]] = count
        for place in range(shared, length):
            label[count] = spelled[begin + place]
            depth[count] = place + 1
            path[place] = count
            count += 1
        ends[key] = count - 1
        begin, before = begin + length, length
    for place in range(before):
        after[path[place]] = count
    return label[:count], depth[:count], after[:count], ends


@_jit
def _add_row(rows, row, sound, spoken, table):
    """Costs of all beginnings of `spoken` against `row` phonemes, `sound` the last."""
    rows[row, 0] = rows[row - 1, 0] + GAP
    for place in range(len(spoken)):
        replaced = rows[row - 1, place] + table[sound, spoken[place]]
        skipped = min(rows[row - 1, place + 1], rows[row, place]) + GAP
        rows[row, place + 1] = min(replaced, skipped)


@_jit
def _first_row(length, size):
    rows = np.zeros((length + 1, size + 1))
    for place in range(size):
        rows[0, place + 1] = rows[0, place] + GAP
    return rows


@_jit
def _compare(spoken, heard, table):
    """Cost of the cheapest edits."""
    rows = _first_row(len(heard), len(spoken))
    for place in range(len(heard)):
        _add_row(rows, place + 1, heard[place], spoken, table)
    return rows[len(heard), len(spoken)]


@_jit
def _walk(branches, nodes, length, spoken, table, limit, room):
    """Where the keys within a cost end in the trie of one length, and that cost."""
    label, depth, after = branches
    size = len(spoken)
    rows = _first_row(length, size)
    found = np.empty(room, np.int64)
    cheapest = np.empty(room, np.float64)
    count, node = 0, nodes[0]
    while node < nodes[1]:
        row = depth[node]
        _add_row(rows, row, label[node], spoken, table)
        least = np.inf
        for place in range(size + 1):
            still = abs((length - row) - (size - place)) * GAP
            least = min(least, rows[row, place] + still)
        if least > limit:
            node = after[node]
            continue
        if row == length:
            found[count], cheapest[count] = node, rows[row, size]
            count += 1
        node += 1
    return found[:count], cheapest[:count]
