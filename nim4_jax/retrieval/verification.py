"""Acoustic verification of approximate hits against the phoneme posteriors.

Each frame's posteriors are taken in relation to its best class, so the greedy path
scores 1 over any span, and a name's CTC forward score says how much less likely the
name is, with the greedy path before and behind it.

Source: Graves et al. 2006, with the greedy path as filler.
"""

from __future__ import annotations

import dataclasses

import numba
import numpy as np
from jaxtyping import Bool, Float, Int

from nim4_jax.retrieval.chance import PHONEMES_PER_HOUR, PhonemeBigrams
from nim4_jax.retrieval.rules import find_strongest
from nim4_jax.retrieval.windows import Windows

FRAMES = 192
"""Frames of a stream that are kept: a name that lasts longer is not found nearly."""

_TINY = 1e-30  # of a path that is as good as impossible; still smaller numbers are slow
_LENIENCE = 3.0  # nats, for the span may yet move and paths add up
_RATE = float(np.log(PHONEMES_PER_HOUR))
_SLACK = 1  # phonemes that may be heard behind a name before it is given up


@dataclasses.dataclass(frozen=True, eq=False)
class Acoustics:
    """Posteriors of a stream's last T frames and the R phonemes that begin in them.

    Attributes:
        ratios: posteriors over each frame's greatest one, float32.
        begin: number of the first of those frames.
        places: frame at which each phoneme begins.
        labels: the phonemes, uint8.
        position: number of the first of those phonemes.
    """

    ratios: Float[np.ndarray, "T P"]
    begin: int
    places: Int[np.ndarray, " R"]
    labels: Int[np.ndarray, " R"]
    position: int

    @classmethod
    def empty(cls, classes: int) -> Acoustics:
        """Before the first frame."""
        nothing = np.zeros((0, classes), np.float32)
        return cls(nothing, 0, np.zeros(0, np.int64), np.zeros(0, np.uint8), 0)

    @property
    def end(self) -> int:
        """Phonemes of the stream so far."""
        return self.position + len(self.places)

    def extend(
        self,
        posteriors: Float[np.ndarray, "U P"],
        places: Int[np.ndarray, " N"],
        labels: Int[np.ndarray, " N"],
    ) -> Acoustics:
        """With the next frames (natural log) and the phonemes that begin in them."""
        new = np.exp(posteriors - posteriors.max(axis=1, keepdims=True))
        joined = np.concatenate([self.ratios, new.astype(np.float32)])
        ratios = joined[-FRAMES:]
        begin = self.begin + len(joined) - len(ratios)
        all_places = np.concatenate([self.places, places])
        all_labels = np.concatenate([self.labels, labels])
        gone = np.searchsorted(all_places, begin)
        return Acoustics(
            ratios,
            begin,
            all_places[gone:],
            all_labels[gone:],
            self.position + int(gone),
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Demand:
    """What it takes for a key to be found.

    Speech in which nobody says a name sounds like one the more often, the commoner what
    was heard and the commoner the name's own phonemes are. So the evidence for a name
    is its log score, less half of the logs of how often an hour either is expected by
    chance.

    Attributes:
        rarity: the key's own part of its evidence; −inf for never.
        least: evidence that is needed.
        nats: most that the score may lose for each phoneme of the key.
        bigrams: what is expected.
    """

    rarity: Float[np.ndarray, " K"]
    least: float
    nats: float
    bigrams: PhonemeBigrams

    def measure(
        self, labels: Int[np.ndarray, " R"]
    ) -> tuple[Float[np.ndarray, " R"], Float[np.ndarray, " R"]]:
        """Log of how often an hour any piece of what was heard is expected.

        Returns:
            `opened` and `summed`: phonemes a … b − 1 have opened[a] + summed[b − 1].
        """
        steps = self.bigrams.pairs[labels[:-1], labels[1:]]
        summed = np.concatenate([np.zeros(min(len(labels), 1)), np.cumsum(steps)])
        rate = np.log(PHONEMES_PER_HOUR)
        return rate + self.bigrams.first[labels] - summed, summed


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
        evidence: see `Demand`.
    """

    keys: Int[np.ndarray, " V"]
    spans: Int[np.ndarray, "V 2"]
    frames: Int[np.ndarray, "V 2"]
    scores: Float[np.ndarray, " V"]
    evidence: Float[np.ndarray, " V"]

    def take(self, chosen: Bool[np.ndarray, " V"]) -> Verified:
        """Some of them."""
        fields = dataclasses.fields(self)
        return Verified(*(getattr(self, field.name)[chosen] for field in fields))

    def strongest(self) -> Verified:
        """Those that give way to none of the others."""
        starts, ends = self.spans.T
        near = np.zeros(len(self.keys), bool)
        return self.take(find_strongest(starts, ends, self.evidence, near))

    @classmethod
    def nothing(cls) -> Verified:
        """No key fits."""
        none, pairs = np.zeros(0, np.int64), np.zeros((0, 2), np.int64)
        return cls(none, pairs, pairs, np.zeros(0), np.zeros(0))


def verify(
    windows: Windows,
    rows: Int[np.ndarray, "Q K"],
    positions: Int[np.ndarray, " Q"],
    waiting: Candidates,
    acoustics: Acoustics,
    demand: Demand,
) -> tuple[Verified, Candidates]:
    """The keys behind some windows, checked against the acoustics.

    Args:
        windows: of the database.
        rows: windows that are near to what was heard.
        positions: first phoneme of the stream that each row of `rows` stands for.
        waiting: keys that had not ended the last time.
        acoustics: of the stream, up to now.
        demand: on the keys.

    Returns:
        What fits, and what has still to end.
    """
    if not len(acoustics.places):
        return Verified.nothing(), waiting
    places = acoustics.places - acoustics.begin
    text = windows.spelled, windows.lengths, windows.origins
    opened, summed = demand.measure(acoustics.labels)
    keys, starts = _list(
        windows.first,
        windows.keys,
        windows.places,
        rows,
        positions - acoustics.position,
        waiting.keys,
        waiting.starts - acoustics.position,
    )
    keys, starts = _sift(
        text,
        (keys, starts),
        _find_peaks(acoustics.ratios, places),
        (opened, summed),
        (demand.rarity, demand.least, demand.nats),
    )
    scores, frames = _score(*text, keys, starts, acoustics.ratios, places)
    # The phoneme that a frame belongs to began at it or before.
    spans = np.searchsorted(places, frames - [0, 1], side="right") - [1, 0]
    spans = np.maximum(spans, [0, 1])
    scores = np.minimum(scores, 0.0)
    lengths = windows.lengths[keys].astype(np.int64)
    expected = opened[spans[:, 0]] + summed[spans[:, 1] - 1]
    evidence = scores + demand.rarity[keys] - 0.5 * expected
    fits = (evidence >= demand.least) & (scores >= -demand.nats * lengths)
    # What fits already may fit better when its last phoneme has been heard.
    waits = starts + lengths + _SLACK > len(places)
    spans, frames = spans + acoustics.position, frames + acoustics.begin
    verified = Verified(keys, spans, frames, scores, evidence).take(fits)
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
def _list(first, marked, offsets, rows, positions, waiting, since):
    """Keys behind the rows and those that wait, and where each would have begun."""
    count = len(waiting)
    for query in range(len(rows)):
        for row in rows[query]:
            count += first[row + 1] - first[row]
    keys, starts = np.empty(count, np.int64), np.empty(count, np.int64)
    count = len(waiting)
    keys[:count], starts[:count] = waiting, since
    for query in range(len(rows)):
        for row in rows[query]:
            for mark in range(first[row], first[row + 1]):
                keys[count] = marked[mark]
                starts[count] = positions[query] - np.int64(offsets[mark])
                count += 1
    return keys, starts


@_jit
def _may_sound(labels, start, peaks, loss):
    """Whether what was heard of a key may cost less, the order of frames left aside."""
    product = np.exp(loss)
    # Of the last phoneme that was heard not all frames may be there.
    for place in range(min(len(labels), len(peaks) - 1 - start)):
        product *= peaks[start + place, labels[place]]
        if product < 1.0:
            return False
    return True


@_jit
def _sift(text, candidates, peaks, expectation, demand):
    """Distinct keys and starts that may fit."""
    spelled, lengths, origins = text
    keys, starts = candidates
    opened, summed = expectation
    rarity, least, nats = demand
    heard = len(peaks)
    losses = np.empty(len(keys))
    # Far memory is read here, where one read need not wait for the other.
    for index in range(len(keys)):
        key, start = keys[index], starts[index]
        labels = _labels(spelled, lengths, origins, key)
        losses[index] = -1.0
        if start < 0 or peaks[start, labels[0]] == 0.0:
            continue
        length, known = len(labels), min(len(labels), heard - start)
        expected = opened[start] + summed[start + known - 1]
        if known < length:  # and the rest like that
            expected -= (expected - _RATE) * (known - length) / known
        loss = rarity[key] - 0.5 * expected - least + _LENIENCE
        losses[index] = min(loss, nats * length)
    found = set()
    for index in range(len(keys)):
        key, start, loss = keys[index], starts[index], losses[index]
        if loss >= 0.0:
            labels = _labels(spelled, lengths, origins, key)
            if _may_sound(labels, start, peaks, loss):
                found.add((key, start))
    chosen = np.empty((2, len(found)), np.int64)
    for index, (key, start) in enumerate(sorted(found)):
        chosen[0, index], chosen[1, index] = key, start
    return chosen[0], chosen[1]


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
    """Log forward score of each key near where it should be, and its frames."""
    scores = np.full(len(keys), -np.inf)
    frames = np.zeros((len(keys), 2), np.int64)
    for index in range(len(keys)):
        key, start = keys[index], starts[index]
        labels = _labels(spelled, lengths, origins, key)
        if start + len(labels) > len(places) + _SLACK:
            continue
        behind = start + len(labels) + 1
        begin = places[start - 1] if start else 0
        end = places[behind] if behind < len(places) else len(ratios)
        score, frames[index, 0], frames[index, 1] = _forward(labels, ratios, begin, end)
        if score > 0.0:
            scores[index] = np.log(score)
    return scores, frames
