"""Anchor windows of names: the phoneme n-grams that approximate search looks up.

A name heard with errors still has four phonemes in a row that came through nearly
right. Each key is found by its rarest window, and by a second one well apart from it
where it is long enough.
"""

from __future__ import annotations

import dataclasses
import functools

import numba
import numpy as np
from jaxtyping import Int

from nim4_jax.retrieval.automaton import Automaton

WIDTH = 4
"""Phonemes of a window; a shorter key has none."""
LONGEST = 48
"""Phonemes of the longest key that is looked for nearly."""
_FEW = 1 << 12  # windows that are found by halving, not by a table of half a MiB
_COMMON = 64  # a second window that is in more places than this tells too little


@dataclasses.dataclass(frozen=True)
class Windows:
    """M distinct windows, and the keys that each one marks.

    Attributes:
        phonemes: uint8 ids of the windows.
        first: marks of window m are first[m] … first[m + 1] − 1.
        keys: key of each mark.
        places: phonemes before the window in its key.
        spelled: uint8 phonemes of all keys, one after the other. Keys are numbered by
            length, so `origins` and `lengths` tell where each begins.
        lengths: phonemes of each key.
    """

    phonemes: Int[np.ndarray, "M W"]
    first: Int[np.ndarray, " M1"]
    keys: Int[np.ndarray, " Q"]
    places: Int[np.ndarray, " Q"]
    spelled: Int[np.ndarray, " Z"]
    lengths: Int[np.ndarray, " K"]

    def __len__(self) -> int:
        return len(self.phonemes)

    @functools.cached_property
    def origins(self) -> Int[np.ndarray, " L"]:
        """Key k of length n begins at origins[n] + n · k in `spelled`."""
        sizes = np.arange(256)
        counts = np.bincount(self.lengths, minlength=256)
        before = np.cumsum(counts * sizes) - counts * sizes
        return before - (np.cumsum(counts) - counts) * sizes

    @functools.cached_property
    def pairs(self) -> Int[np.ndarray, " C"]:
        """First window that begins with phonemes a, b or greater ones, at 256 a + b.

        Empty where there are so few windows that the table would be larger than they.
        """
        if len(self) < _FEW:
            return np.zeros(0, np.int64)
        heads = self.phonemes[:, 0].astype(np.int64) << 8 | self.phonemes[:, 1]
        return np.searchsorted(heads, np.arange(256 * 257))


def mark(machine: Automaton) -> Windows:
    """Windows of all keys of WIDTH … LONGEST phonemes, in ascending order."""
    spelled, begins = machine.spell_all()
    grams = _grams(spelled, begins)
    distinct, counts = np.unique(grams[grams > 0], return_counts=True)
    common = np.zeros(len(spelled), np.int32)
    inside = grams > 0
    common[inside] = counts[np.searchsorted(distinct, grams[inside])]
    keys, places = _choose(common, begins)
    chosen = grams[begins[keys] + places]
    order = np.argsort(chosen, kind="stable")
    windows, counts = np.unique(chosen, return_counts=True)
    return Windows(
        phonemes=windows.astype(">u4").view(np.uint8).reshape(-1, WIDTH),
        first=_offsets(counts),
        keys=keys[order].astype(np.uint32),
        places=places[order].astype(np.uint8),
        spelled=spelled,
        lengths=machine.lengths,
    )


def _offsets(counts: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.uint32)


_jit = numba.njit(cache=True, nogil=True)


@_jit
def _grams(spelled, begins):
    """The window that begins at each phoneme as one number; 0 where a key ends."""
    grams = np.zeros(len(spelled), np.uint32)
    for key in range(len(begins) - 1):
        length = begins[key + 1] - begins[key]
        if WIDTH <= length <= LONGEST:
            for start in range(begins[key], begins[key + 1] - WIDTH + 1):
                gram = np.uint32(0)
                for place in range(start, start + WIDTH):
                    gram = gram << np.uint32(8) | np.uint32(spelled[place])
                grams[start] = gram
    return grams


@_jit
def _choose(common, begins):
    """Key and place of each mark: the rarest window, then the rarest one well apart."""
    keys = np.empty(2 * len(begins), np.int64)
    places = np.empty(2 * len(begins), np.int64)
    count = 0
    for key in range(len(begins) - 1):
        length = int(begins[key + 1]) - int(begins[key])
        if length < WIDTH or length > LONGEST:
            continue
        starts = length - WIDTH + 1
        here = common[begins[key] : begins[key] + starts]
        # Of equally rare ones the last: the name is then nearly over when it is found.
        best = starts - 1
        for start in range(starts - 1, -1, -1):
            if here[start] < here[best]:
                best = start
        keys[count], places[count] = key, best
        count += 1
        apart = min(WIDTH, max(best, starts - 1 - best))
        if apart < 2:
            continue
        other = -1
        for start in range(starts - 1, -1, -1):
            if abs(start - best) >= apart and (other < 0 or here[start] < here[other]):
                other = start
        if here[other] <= _COMMON:
            keys[count], places[count] = key, other
            count += 1
    return keys[:count], places[:count]
