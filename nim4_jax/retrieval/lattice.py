"""Phoneme lattices from posteriors, and the windows of phonemes that they allow.

A phoneme that was taken for another one, lost, or made up still shows in the
posteriors. Between any two heard phonemes there are a few classes that the head
thought possible; all paths through them that are likely enough and spell a window of
the database are followed, depth first, the likelier branch first.
"""

from __future__ import annotations

import numba
import numpy as np
from jaxtyping import Int

from nim4_jax.retrieval.verification import Acoustics
from nim4_jax.retrieval.windows import WIDTH, Windows

FLOOR = 5e-4
"""Product of the ratios along a path, in relation to the greedy one."""
_WIDEST = 8  # classes that are tried in a place
_PATHS = 1500  # that are followed from a place at most
_BACK = WIDTH + 2  # places before the fresh ones that a window may begin at


def find_windows(
    windows: Windows, acoustics: Acoustics, fresh: int
) -> tuple[Int[np.ndarray, " Q"], Int[np.ndarray, " Q"]]:
    """Windows that end within the last phonemes.

    Args:
        windows: ascending.
        acoustics: of the stream.
        fresh: number of phonemes that are new in it.

    Returns:
        Rows of the windows, and the phoneme of the stream at which each begins.
    """
    count = len(acoustics.places)
    begin = max(count - fresh - 1 - _BACK, 0)
    places = acoustics.places[begin:] - acoustics.begin
    rows, starts = _walk(
        (windows.phonemes, windows.pairs),
        _describe(acoustics.ratios, places, FLOOR),
        max(count - fresh - 1, 0) - begin,
        FLOOR,
    )
    return rows, starts + begin + acoustics.position


_jit = numba.njit(cache=True, nogil=True)


@_jit
def _rank(peaks, classes, scores, floor):
    """The greatest of the peaks, descending; returns how many reach the floor."""
    count = 0
    for label in range(1, len(peaks)):
        score = peaks[label]
        if score < floor or (count == len(scores) and score <= scores[count - 1]):
            continue
        place = min(count, len(scores) - 1)
        while place > 0 and scores[place - 1] < score:
            classes[place], scores[place] = classes[place - 1], scores[place - 1]
            place -= 1
        classes[place], scores[place] = label, score
        count = min(count + 1, len(scores))
    return count


@_jit
def _describe(ratios, places, floor):
    """Of each place: classes all over it, classes behind its phoneme, price of none."""
    count = len(places)
    classes = np.zeros((2, count, _WIDEST), np.int64)
    scores = np.zeros((2, count, _WIDEST), np.float32)
    counts = np.zeros((2, count), np.int64)
    nothing = np.ones(count, np.float32)
    for index in range(count):
        end = places[index + 1] if index + 1 < count else len(ratios)
        peaks = np.zeros((2, ratios.shape[1]), np.float32)
        for frame in range(places[index], end):
            behind = ratios[frame, 0] >= 1.0
            nothing[index] = min(nothing[index], ratios[frame, 0])
            for label in range(1, ratios.shape[1]):
                score = ratios[frame, label]
                peaks[0, label] = max(peaks[0, label], score)
                if behind:
                    peaks[1, label] = max(peaks[1, label], score)
        for kind in range(2):
            counts[kind, index] = _rank(
                peaks[kind], classes[kind, index], scores[kind, index], floor
            )
    return classes, scores, counts, nothing


@_jit
def _bound(windows, low, high, depth, label):
    """First window of a range whose phoneme at a depth is not less than a label."""
    while low < high:
        middle = (low + high) // 2
        if windows[middle, depth] < label:
            low = middle + 1
        else:
            high = middle
    return low


@_jit
def _narrow(windows, pairs, low, high, depth, label):
    """The windows of a range, alike so far, that go on with a label."""
    if len(pairs) and depth == 0:
        return pairs[label << 8], pairs[(label + 1) << 8]
    if len(pairs) and depth == 1:
        pair = np.int64(windows[low, 0]) << 8 | label
        return pairs[pair], pairs[pair + 1]
    begin = _bound(windows, low, high, depth, label)
    return begin, _bound(windows, begin, high, depth, label + 1)


@_jit
def _walk(table, heard, fresh, floor):
    """Rows of windows that end at place `fresh` or later, and where each begins.

    A path goes from a place to the next one, or over one that was made up, or to a
    class behind the phoneme of its own place, where one was lost.
    """
    windows, pairs = table
    classes, scores, counts, nothing = heard
    found = [np.int64(0) for _ in range(0)]
    places = len(nothing)
    room = WIDTH * 3 * _WIDEST
    stack = np.empty((room, 5), np.int64)  # place, kind, depth, low, high
    products = np.empty(room)
    for start in range(places):
        stack[0] = (start - 1, 0, 0, 0, len(windows))
        products[0] = 1.0
        height, paths = 1, 0
        while height and paths < _PATHS:
            height -= 1
            paths += 1
            place, kind, depth, low, high = stack[height]
            product = products[height]
            for way in range(3):  # what is pushed last is followed first
                to, other, factor = place + 1, 0, product
                if way == 0:  # the next one was made up
                    to = place + 2
                elif way == 1:  # one behind this one was lost
                    to, other = place, 1
                if to >= places or (way < 2 and depth == 0) or (way == 1 and kind == 1):
                    continue
                if way == 0:
                    factor *= nothing[place + 1]
                if factor < floor:
                    continue
                for rank in range(counts[other, to] - 1, -1, -1):
                    score = factor * scores[other, to, rank]
                    if score < floor:
                        continue
                    label = classes[other, to, rank]
                    begin, end = _narrow(windows, pairs, low, high, depth, label)
                    if begin == end:
                        continue
                    if depth == WIDTH - 1:
                        if to >= fresh:
                            found.append(begin * places + start)
                        continue
                    stack[height] = (to, other, depth + 1, begin, end)
                    products[height] = score
                    height += 1
    distinct = np.unique(np.array(found, np.int64))
    return distinct // places, distinct % places
