"""Exact retrieval: Aho–Corasick over phoneme ids, in memory-mapped flat arrays.

States are numbered breadth first, so the children of a state are neighbours and the
trie needs no pointers but `first`, and keys are numbered as they end. A stream's whole
state is one integer.

Source: Aho & Corasick 1975.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable

import numba
import numpy as np
from jaxtyping import Bool, Int, Shaped

from nim4_jax.retrieval.rules import find_strongest

ROOT = 0
"""State of a stream that has heard nothing."""
_ROOM = 64  # matches that a scan has room for before it is run again with more
_LENGTH = np.uint8  # of the lengths of keys
_LINEAR = 8  # children that are looked through one by one


@dataclasses.dataclass(frozen=True)
class Matches:
    """Occurrences of keys, in the order in which they end.

    Attributes:
        keys: which key.
        starts: first phoneme of each, counted as the caller counts.
        ends: one past the last phoneme.
    """

    keys: Int[np.ndarray, " M"]
    starts: Int[np.ndarray, " M"]
    ends: Int[np.ndarray, " M"]

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def columns(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Keys, starts and ends."""
        return self.keys, self.starts, self.ends

    def take(self, chosen: Shaped[np.ndarray, " N"]) -> Matches:
        """Some of them, by index or by mask."""
        return Matches(self.keys[chosen], self.starts[chosen], self.ends[chosen])

    def longest(self) -> Matches:
        """Those that no longer one overlaps; of equally long ones all stay.

        "NIO" inside "NIO House" goes, and so does a name that only shares phonemes with
        a longer one.
        """
        exact = np.ones(len(self), bool)
        nothing = np.zeros(len(self))
        return self.take(find_strongest(self.starts, self.ends, nothing, exact))


@dataclasses.dataclass(frozen=True)
class Automaton:
    """The machine; S states, K keys. Build it with `build`.

    Attributes:
        states: (first, fail, link) of each state side by side, for a step reads all
            three; one more row at the end. Children of state s are states first[s] …
            first[s + 1] − 1; fail is the state of the longest proper suffix that is
            also a state; link is the nearest state along fail at which a key ends, ROOT
            for none, and its complement (~) where a key ends at the state itself.
        symbol: phoneme on the way into each state.
        ends: state at which each key ends, ascending.
        lengths: phonemes of each key.
    """

    states: Int[np.ndarray, "S1 3"]
    symbol: Int[np.ndarray, " S"]
    ends: Int[np.ndarray, " K"]
    lengths: Int[np.ndarray, " K"]

    @functools.cached_property
    def _tables(self) -> tuple[np.ndarray, ...]:
        """What a scan reads: all arrays, and the state after each phoneme at ROOT."""
        after = np.zeros(256, np.int32)
        children = np.arange(self.states[0, 0], self.states[1, 0])
        after[self.symbol[children]] = children
        return self.states, self.symbol, self.ends, self.lengths, after

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(
            getattr(self, field.name).nbytes for field in dataclasses.fields(self)
        )

    def scan(
        self,
        state: int,
        phonemes: Int[np.ndarray, " N"],
        *,
        position: int = 0,
        allowed: Bool[np.ndarray, " S"] | None = None,
    ) -> tuple[int, Matches]:
        """All keys that end within the next phonemes of a stream.

        Args:
            state: what the last call returned, ROOT for a new stream.
            phonemes: uint8 ids.
            position: number of phonemes that the stream had before these.
            allowed: states at which a match may end, from `allow`; None for all.

        Returns:
            The new state, and every match, overlapping ones too.
        """
        mask = _EVERYTHING if allowed is None else allowed
        room = _ROOM
        while True:
            found = np.empty((3, room), np.int64)
            after, count = _scan(self._tables, mask, state, phonemes, position, found)
            if count == 0:
                return after, _NO_MATCHES
            if count <= room:
                return after, Matches(*found[:, :count])
            room = count

    def allow(self, keys: Bool[np.ndarray, " K"]) -> Bool[np.ndarray, " S"]:
        """What `scan` takes to find some keys only."""
        allowed = np.zeros(len(self.symbol), bool)
        allowed[self.ends] = keys
        return allowed

    def spell(self, key: int) -> bytes:
        """Phonemes of a key."""
        return _spell(self.states, self.symbol, self.ends[key]).tobytes()

    def spell_all(self) -> tuple[Int[np.ndarray, " Z"], Int[np.ndarray, " K1"]]:
        """Phonemes of all keys one after the other, and where each key begins."""
        begins = np.zeros(len(self.lengths) + 1, np.int64)
        np.cumsum(self.lengths, out=begins[1:])
        return _spell_all(self.states, self.symbol, self.ends, begins), begins


_EVERYTHING = np.zeros(0, bool)
_NO_MATCHES = Matches(*np.zeros((3, 0), np.int64))


def build(keys: Iterable[bytes]) -> tuple[Automaton, list[bytes]]:
    """The automaton of phoneme sequences.

    Args:
        keys: one byte a phoneme; equal ones are one.

    Returns:
        The automaton, and its keys by number: by length, then by phonemes.

    Raises:
        ValueError: an empty key, one of more than 255 phonemes, or more states than 32
            bits can number.
    """
    sorted_keys = sorted(set(keys))
    if sorted_keys and not sorted_keys[0]:
        raise ValueError("a key without phonemes matches everywhere; leave it out.")
    text = np.frombuffer(b"".join(sorted_keys), np.uint8)
    offsets = np.zeros(len(sorted_keys) + 1, np.int64)
    lengths = np.fromiter(map(len, sorted_keys), np.int64, len(sorted_keys))
    np.cumsum(lengths, out=offsets[1:])
    states = _count_states(text, offsets)
    if len(lengths) and lengths.max() > np.iinfo(_LENGTH).max:
        raise ValueError(
            f"a key of {lengths.max()} phonemes; at most {np.iinfo(_LENGTH).max} fit."
        )
    if states >= 2**31:
        raise ValueError(
            f"{states} states do not fit 32 bits; split the list of names."
        )
    table, symbol, final, parent = _grow(text, offsets, states)
    _connect(table, symbol, final, parent)
    ends = np.flatnonzero(final).astype(np.int32)
    # Breadth first means by length; the sort is stable, so by phonemes within.
    numbered = sorted(sorted_keys, key=len)
    lengths = np.sort(lengths).astype(_LENGTH)
    return Automaton(table, symbol, ends, lengths), numbered


_jit = numba.njit(cache=True, nogil=True)


@_jit
def _child(states, symbol, state, phoneme):
    """The child of a state on a phoneme, −1 for none; children are sorted."""
    low, high = states[state, 0], states[state + 1, 0]
    while high - low > _LINEAR:
        middle = (low + high) // 2
        if symbol[middle] <= phoneme:
            low = middle
        else:
            high = middle
    for child in range(low, high):
        if symbol[child] == phoneme:
            return child
    return -1


@_jit
def _scan(tables, allowed, state, phonemes, position, found):
    """New state and number of matches; writes as many as there is room for."""
    states, symbol, ends, lengths, root = tables
    count, room, everything = 0, found.shape[1], len(allowed) == 0
    for place in range(len(phonemes)):
        phoneme = phonemes[place]
        child = -1
        while state != 0:
            child = _child(states, symbol, state, phoneme)
            if child >= 0:
                break
            state = states[state, 1]
        state = child if child >= 0 else root[phoneme]
        ending = state if states[state, 2] < 0 else states[state, 2]
        while ending != 0:
            if everything or allowed[ending]:
                if count < room:
                    key = np.searchsorted(ends, ending)
                    end = position + place + 1
                    found[0, count] = key
                    found[1, count] = end - np.int64(lengths[key])
                    found[2, count] = end
                count += 1
            ending = ~states[ending, 2]
    return state, count


@_jit
def _spell(states, symbol, state):
    """Symbols from the root to a state; parents are found by their children."""
    backwards = []
    while state != 0:
        backwards.append(symbol[state])
        state = np.searchsorted(states[:, 0], state, side="right") - 1
    spelled = np.empty(len(backwards), np.uint8)
    for place in range(len(backwards)):
        spelled[place] = backwards[len(backwards) - 1 - place]
    return spelled


@_jit
def _spell_all(states, symbol, ends, begins):
    """Symbols of all keys; every parent is noted once."""
    parent = np.zeros(len(symbol), np.int32)
    for state in range(len(symbol)):
        parent[states[state, 0] : states[state + 1, 0]] = state
    spelled = np.empty(begins[-1], np.uint8)
    for key in range(len(ends)):
        state = ends[key]
        for place in range(begins[key + 1] - 1, begins[key] - 1, -1):
            spelled[place] = symbol[state]
            state = parent[state]
    return spelled


@_jit
def _count_states(text, offsets):
    """States of the trie of sorted keys: what each adds to the one before it."""
    count = 1
    for key in range(len(offsets) - 1):
        own, end = offsets[key], offsets[key + 1]
        same = 0
        if key:
            before = offsets[key - 1]
            most = min(own - before, end - own)
            while same < most and text[before + same] == text[own + same]:
                same += 1
        count += end - own - same
    return count


@_jit
def _grow(text, offsets, states):
    """The trie, level by level: table of states, symbol, whether a key ends, parent."""
    keys = len(offsets) - 1
    table = np.zeros((states + 1, 3), np.int32)
    symbol = np.zeros(states, np.uint8)
    final = np.zeros(states, np.bool_)
    parent = np.zeros(states, np.int32)
    active = np.arange(keys)
    place = np.zeros(keys, np.int32)  # state that each key has reached
    made, depth = 1, 0
    while len(active):
        left = 0
        before, last = -1, -1
        for index in range(len(active)):
            key = active[index]
            above, phoneme = place[key], text[offsets[key] + depth]
            if above != before or phoneme != last:
                symbol[made] = phoneme
                parent[made] = above
                table[above + 1, 0] += 1
                before, last = above, phoneme
                made += 1
            place[key] = made - 1
            if offsets[key] + depth + 1 == offsets[key + 1]:
                final[made - 1] = True
            else:
                active[left] = key
                left += 1
        active = active[:left]
        depth += 1
    table[0, 0] = 1
    for state in range(states):
        table[state + 1, 0] += table[state, 0]
    return table, symbol, final, parent


@_jit
def _connect(table, symbol, final, parent):
    """Fill in failure states and output links, breadth first."""
    for state in range(1, len(symbol)):
        other, child = parent[state], -1
        while other != 0 and child < 0:
            other = table[other, 1]
            child = _child(table, symbol, other, symbol[state])
        suffix = child if child >= 0 else 0
        nearest = suffix if final[suffix] else table[suffix, 2]
        table[state, 1] = suffix
        table[state, 2] = ~nearest if final[state] else nearest
