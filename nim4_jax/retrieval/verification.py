"""Whether a name that sounds like what was heard fits the acoustics too.

Each frame's posteriors are taken in relation to its best class, so the greedy path
scores 1 over any span, and a name's CTC forward score says how much less likely the
name is, with the greedy path before and behind it.

Source: Graves et al. 2006, with the greedy path as filler.
"""

from __future__ import annotations

import dataclasses

import numba
import numpy as np
from jaxtyping import Float, Int

from nim4_jax.retrieval.windows import Windows

FRAMES = 192
"""Frames of a stream that are kept: a name that lasts longer is not found nearly."""

_TINY = 1e-30  # of a path that is as good as impossible; still smaller numbers are slow
_LENIENCE = 3.0  # a sum over paths may be greater than the product of the peaks
_SLACK = 1  # phonemes that may be heard behind a name before it is given up


@dataclasses.dataclass(frozen=True, eq=False)
class Acoustics:
    """What a stream keeps of its last T frames and the R phonemes that begin in them.

    Attributes:
        ratios: posteriors over each frame's greatest one, float32.
        begin: number of the first of those frames.
        places: frame at which each phoneme begins.
        position: number of the first of those phonemes.
    """

    ratios: Float[np.ndarray, "T P"]
    begin: int
    places: Int[np.ndarray, " R"]
    position: int

    @classmethod
    def empty(cls, classes: int) -> Acoustics:
        """Before the first frame."""
        return cls(np.zeros((0, classes), np.float32), 0, np.zeros(0, np.int64), 0)

    @property
    def end(self) -> int:
        """Phonemes of the stream so far."""
        return self.position + len(self.places)

    def extend(
        self, posteriors: Float[np.ndarray, "U P"], places: Int[np.ndarray, " N"]
    ) -> Acoustics:
        """With the next frames (natural log) and the phonemes that begin in them."""
        new = np.exp(posteriors - posteriors.max(axis=1, keepdims=True))
        joined = np.concatenate([self.ratios, new.astype(np.float32)])
        ratios = joined[-FRAMES:]
        begin = self.begin + len(joined) - len(ratios)
        all_places = np.concatenate([self.places, places])
        kept = all_places[np.searchsorted(all_places, begin) :]
        return Acoustics(ratios, begin, kept, self.end + len(places) - len(kept))


@dataclasses.dataclass(frozen=True, eq=False)
class Candidates:
    """Keys and where each would have begun, in phonemes of the stream."""

    keys: Int[np.ndarray, " C"]
    starts: Int[np.ndarray, " C"]

    @classmethod
    def none(cls) -> Candidates:
        """Nothing to wait for."""
        return cls(np.zeros(0, np.int64), np.zeros(0, np.int64))


@dataclasses.dataclass(frozen=True, eq=False)
class Verified:
    """Keys that fit the acoustics.

    Attributes:
        keys: which.
        spans: first phoneme of the stream that each one covers, and one past the last.
        frames: first frame of each one, and one past the last.
        scores: natural log of the forward score, at most 0.
    """

    keys: Int[np.ndarray, " V"]
    spans: Int[np.ndarray, "V 2"]
    frames: Int[np.ndarray, "V 2"]
    scores: Float[np.ndarray, " V"]


def verify(
    windows: Windows,
    rows: Int[np.ndarray, "Q K"],
    positions: Int[np.ndarray, " Q"],
    waiting: Candidates,
    acoustics: Acoustics,
    floors: Float[np.ndarray, " K"],
) -> tuple[Verified, Candidates]:
    """The keys behind some windows, checked against the acoustics.

    Args:
        windows: of the database.
        rows: windows that are near to what was heard.
        positions: first phoneme of the stream that each row of `rows` stands for.
        waiting: keys that had not ended the last time.
        acoustics: of the stream, up to now.
        floors: least forward score of each key, above 1 for never.

    Returns:
        What fits, and what has still to end.
    """
    places = acoustics.places - acoustics.begin
    keys, starts = _sift(
        windows.first,
        windows.keys,
        windows.places,
        windows.spelled,
        windows.lengths,
        windows.origins,
        rows,
        positions - acoustics.position,
        waiting.keys,
        waiting.starts - acoustics.position,
        _find_peaks(acoustics.ratios, places),
        floors,
    )
    scores, frames = _score(
        windows.spelled,
        windows.lengths,
        windows.origins,
        keys,
        starts,
        acoustics.ratios,
        places,
    )
    fits = scores >= floors[keys]
    behind = starts + windows.lengths[keys]
    waits = ~fits & (behind + _SLACK > len(places))
    frames = frames[fits]
    # The phoneme that a frame belongs to began at it or before.
    spans = np.searchsorted(places, frames - [0, 1], side="right") - [1, 0]
    verified = Verified(
        keys=keys[fits],
        spans=np.maximum(spans, 0) + acoustics.position,
        frames=frames + acoustics.begin,
        scores=np.log(np.minimum(scores[fits], 1.0)),
    )
    return verified, Candidates(keys[waits], starts[waits] + acoustics.position)


_jit = numba.njit(cache=True, nogil=True)


@_jit
def _find_peaks(ratios, places):
    """Greatest ratio of each class from the phoneme before to the one behind."""
    count = len(places)
    peaks = np.zeros((count, ratios.shape[1]), np.float32)
    for index in range(count):
        begin = places[index - 1] if index else 0
        end = places[index + 2] if index + 2 < count else len(ratios)
        for frame in range(begin, end):
            for label in range(ratios.shape[1]):
                peaks[index, label] = max(peaks[index, label], ratios[frame, label])
    return peaks


@_jit
def _labels(spelled, lengths, origins, key):
    """Phonemes of a key."""
    length = np.int64(lengths[key])
    begin = origins[length] + length * key
    return spelled[begin : begin + length]


@_jit
def _may_fit(labels, start, peaks, floor):
    """Whether what was heard of a key leaves it a chance, the order left aside."""
    if start < 0 or floor > 1.0:
        return False
    product = _LENIENCE
    # Of the last phoneme that was heard not all frames may be there.
    for place in range(min(len(labels), len(peaks) - 1 - start)):
        product *= peaks[start + place, labels[place]]
        if product < floor:
            return False
    return True


@_jit
def _sift(
    first,
    marked,
    offsets,
    spelled,
    lengths,
    origins,
    rows,
    positions,
    waiting,
    since,
    peaks,
    floors,
):
    """Distinct keys and starts that may fit, those waiting first."""
    found = set()
    for index in range(len(waiting)):
        key, start = waiting[index], since[index]
        labels = _labels(spelled, lengths, origins, key)
        if _may_fit(labels, start, peaks, floors[key]):
            found.add((key, start))
    for query in range(len(rows)):
        for row in rows[query]:
            for mark in range(first[row], first[row + 1]):
                key = np.int64(marked[mark])
                start = positions[query] - np.int64(offsets[mark])
                labels = _labels(spelled, lengths, origins, key)
                if _may_fit(labels, start, peaks, floors[key]):
                    found.add((key, start))
    keys = np.empty(len(found), np.int64)
    starts = np.empty(len(found), np.int64)
    for index, (key, start) in enumerate(sorted(found)):
        keys[index], starts[index] = key, start
    return keys, starts


@_jit
def _forward(labels, ratios, begin, end):
    """Best of the forward scores that end at a frame, its first frame and one past."""
    states = 2 * len(labels) - 1
    alpha = np.zeros(states)
    since = np.zeros(states, np.int64)
    best, best_begin, best_end = 0.0, begin, begin
    for frame in range(begin, end):
        for state in range(states - 1, -1, -1):
            label = labels[state // 2] if state % 2 == 0 else 0
            total, source, most = alpha[state], since[state], alpha[state]
            if state == 0:
                total += 1.0
                if most < 1.0:
                    source = frame
            else:
                total += alpha[state - 1]
                if alpha[state - 1] > most:
                    source, most = since[state - 1], alpha[state - 1]
            if state > 1 and state % 2 == 0 and label != labels[state // 2 - 1]:
                total += alpha[state - 2]
                if alpha[state - 2] > most:
                    source = since[state - 2]
            total *= ratios[frame, label]
            alpha[state] = total if total > _TINY else 0.0
            since[state] = source
        if alpha[states - 1] > best:
            best, best_begin, best_end = alpha[states - 1], since[states - 1], frame + 1
    return best, best_begin, best_end


@_jit
def _score(spelled, lengths, origins, keys, starts, ratios, places):
    """Forward score of each key near where it should be, and its frames."""
    scores = np.zeros(len(keys))
    frames = np.zeros((len(keys), 2), np.int64)
    for index in range(len(keys)):
        key, start = keys[index], starts[index]
        labels = _labels(spelled, lengths, origins, key)
        if start + len(labels) > len(places) + _SLACK:
            continue
        behind = start + len(labels) + 1
        begin = places[start - 1] if start else 0
        end = places[behind] if behind < len(places) else len(ratios)
        scores[index], frames[index, 0], frames[index, 1] = _forward(
            labels, ratios, begin, end
        )
    return scores, frames
