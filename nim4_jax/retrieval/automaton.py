"""Exact retrieval: Aho–Corasick over phoneme ids, in flat arrays that map from disk.

States are numbered breadth first, so the children of a state are neighbours and the
trie needs no pointers but `first`. A stream's whole state is one integer.

Source: Aho & Corasick 1975.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numba
import numpy as np
from jaxtyping import Bool, Int, Shaped

ROOT = 0
"""State of a stream that has heard nothing."""

NO_KEY = -1
_ROOM = 64  # matches that a scan has room for before it is run again with more
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

    def take(self, chosen: Shaped[np.ndarray, " N"]) -> Matches:
        """Some of them, by index or by mask."""
        return Matches(self.keys[chosen], self.starts[chosen], self.ends[chosen])

    def longest(self) -> Matches:
        """Those that no longer one overlaps; of equally long ones all stay.

        "NIO" inside "NIO House" goes, and so does a name that only shares phonemes with
        a longer one.
        """
        order = np.argsort(self.starts - self.ends, kind="stable")
        kept: list[int] = []
        for index in order:
            start, end = self.starts[index], self.ends[index]
            if all(
                end <= self.starts[k]
                or start >= self.ends[k]
                or end - start == self.ends[k] - self.starts[k]
                for k in kept
            ):
                kept.append(int(index))
        return self.take(np.asarray(sorted(kept), np.int64))


@dataclasses.dataclass(frozen=True)
class Automaton:
    """The machine; S states, K keys. Build it with `build`.

    Attributes:
        first: children of state s are states first[s] … first[s + 1] − 1.
        symbol: phoneme on the way into each state.
        fail: state of the longest proper suffix that is also a state.
        output: key that ends at each state, NO_KEY for none.
        link: nearest state along `fail` at which a key ends, ROOT for none.
        lengths: phonemes of each key.
    """

    first: Int[np.ndarray, " S1"]
    symbol: Int[np.ndarray, " S"]
    fail: Int[np.ndarray, " S"]
    output: Int[np.ndarray, " S"]
    link: Int[np.ndarray, " S"]
    lengths: Int[np.ndarray, " K"]

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
        allowed: Bool[np.ndarray, " K"] | None = None,
    ) -> tuple[int, Matches]:
        """All keys that end within the next phonemes of a stream.

        Args:
            state: what the last call returned, ROOT for a new stream.
            phonemes: uint8 ids.
            position: number of phonemes that the stream had before these.
            allowed: keys that may match; None for all.

        Returns:
            The new state, and every match, overlapping ones too.
        """
        everything = allowed is None
        mask = _NOTHING if allowed is None else allowed
        room = _ROOM
        while True:
            found = np.empty((2, room), np.int64)
            after, count = _scan(
                self.first,
                self.symbol,
                self.fail,
                self.output,
                self.link,
                everything,
                mask,
                state,
                phonemes,
                found,
            )
            if count <= room:
                break
            room = count
        keys, ends = found[0, :count], found[1, :count] + position
        return after, Matches(keys, ends - self.lengths[keys], ends)


_NOTHING = np.zeros(0, bool)


def build(keys: Sequence[bytes]) -> Automaton:
    """The automaton of distinct phoneme sequences; key k is keys[k].

    Args:
        keys: one byte a phoneme, sorted, none empty, none twice.

    Raises:
        ValueError: an empty key, or keys that are not sorted and distinct.
    """
    if keys and not keys[0]:
        raise ValueError("a key without phonemes matches everywhere; leave it out.")
    lengths = np.fromiter(map(len, keys), np.int64, len(keys))
    text = np.frombuffer(b"".join(keys), np.uint8)
    offsets = np.zeros(len(keys) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    shared = _shared_prefixes(text, offsets)
    if (shared < 0).any():
        place = int(np.flatnonzero(shared < 0)[0])
        raise ValueError(
            f"keys must be sorted and distinct, but key {place} does not come after "
            f"key {place - 1}."
        )
    states = 1 + int((lengths - shared).sum())
    if states >= 2**31:
        raise ValueError(f"{states} states do not fit 32 bits; split the list of names.")
    first, symbol, output, parent = _grow(text, offsets, states)
    fail, link = _connect(first, symbol, output, parent)
    return Automaton(first, symbol, fail, output, link, lengths.astype(np.int32))


_jit = numba.njit(cache=True, nogil=True)


@_jit
def _child(first, symbol, state, phoneme):
    """The child of a state on a phoneme, −1 for none; children are sorted."""
    low, high = first[state], first[state + 1]
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
def _scan(
    first, symbol, fail, output, link, everything, allowed, state, phonemes, found
):
    """New state and number of matches; writes as many as there is room for."""
    count, room = 0, found.shape[1]
    for place in range(len(phonemes)):
        phoneme = phonemes[place]
        child = _child(first, symbol, state, phoneme)
        while child < 0 and state != 0:
            state = fail[state]
            child = _child(first, symbol, state, phoneme)
        state = child if child >= 0 else 0
        ending = state if output[state] >= 0 else link[state]
        while ending != 0:
            key = output[ending]
            if everything or allowed[key]:
                if count < room:
                    found[0, count] = key
                    found[1, count] = place + 1
                count += 1
            ending = link[ending]
    return state, count


@_jit
def _shared_prefixes(text, offsets):
    """Phonemes that each key shares with the one before; −1 where not greater."""
    count = len(offsets) - 1
    shared = np.zeros(count, np.int64)
    for key in range(1, count):
        before, own = offsets[key - 1], offsets[key]
        most = min(own - before, offsets[key + 1] - own)
        same = 0
        while same < most and text[before + same] == text[own + same]:
            same += 1
        longer = same < offsets[key + 1] - own
        if not longer or (
            same < own - before and text[before + same] > text[own + same]
        ):
            same = -1
        shared[key] = same
    return shared


@_jit
def _grow(text, offsets, states):
    """The trie, level by level: first, symbol, output, parent."""
    keys = len(offsets) - 1
    first = np.zeros(states + 1, np.int32)
    symbol = np.zeros(states, np.uint8)
    output = np.full(states, -1, np.int32)
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
                first[above + 1] += 1
                before, last = above, phoneme
                made += 1
            place[key] = made - 1
            if offsets[key] + depth + 1 == offsets[key + 1]:
                output[made - 1] = key
            else:
                active[left] = key
                left += 1
        active = active[:left]
        depth += 1
    first[0] = 1
    for state in range(states):
        first[state + 1] += first[state]
    return first, symbol, output, parent


@_jit
def _connect(first, symbol, output, parent):
    """Failure states and output links, breadth first."""
    states = len(symbol)
    fail = np.zeros(states, np.int32)
    link = np.zeros(states, np.int32)
    for state in range(1, states):
        above = parent[state]
        if above != 0:
            other, child = fail[above], -1
            child = _child(first, symbol, other, symbol[state])
            while child < 0 and other != 0:
                other = fail[other]
                child = _child(first, symbol, other, symbol[state])
            fail[state] = child if child >= 0 else 0
        suffix = fail[state]
        link[state] = suffix if output[suffix] >= 0 else link[suffix]
    return fail, link
