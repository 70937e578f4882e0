"""Forced alignment: the likeliest CTC path that spells given labels (Viterbi).

The states are blank, y₁, blank, y₂ … blank. A path may stay in a state, go to the next,
or skip a blank between two different labels; it starts in one of the first two states
and ends in one of the last two.

Source: Graves et al. 2006, with max in place of the sum.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

BLANK = -1
"""What a path holds at frames that belong to no label."""


def count_needed_frames(labels: Sequence[int]) -> int:
    """Frames of the shortest path: one a label, a blank between equal neighbours."""
    ids = np.asarray(labels, np.int64)
    return len(ids) + int(np.count_nonzero(ids[1:] == ids[:-1]))


def align(
    log_probs: Float[np.ndarray, "U P"], labels: Sequence[int]
) -> tuple[Int[np.ndarray, " U"], float]:
    """The likeliest path through the frames that collapses to `labels`.

    Args:
        log_probs: natural log of the class posteriors of each frame, class 0 the blank.
        labels: ids in 1 … P − 1.

    Returns:
        Which label each frame belongs to (0 … L − 1, BLANK for none), and the path's
        log probability in nats.

    Raises:
        ValueError: too few frames, or an id out of range.
    """
    ids = np.asarray(labels, np.int64)
    frames, classes = log_probs.shape
    if len(ids) and not (ids.min() >= 1 and ids.max() < classes):
        raise ValueError(f"labels {list(labels)} must lie in 1 … {classes - 1}.")
    if frames < count_needed_frames(labels):
        raise ValueError(
            f"{len(ids)} labels need {count_needed_frames(labels)} frames, there are "
            f"{frames}; check that the text belongs to the audio."
        )
    if frames == 0:
        return np.zeros(0, np.int64), 0.0
    states = np.zeros(2 * len(ids) + 1, np.int64)
    states[1::2] = ids
    steps, last = _search(log_probs[:, states].astype(np.float64), states)
    return _trace(steps, last)


def _search(
    emissions: Float[np.ndarray, "U W"], states: Int[np.ndarray, " W"]
) -> tuple[Int[np.ndarray, "U W"], Float[np.ndarray, " W"]]:
    """Backpointers (how many states each step advanced) and the last frame's scores."""
    frames, count = emissions.shape
    barred = np.ones(count, bool)  # states that may not be entered by a skip
    barred[3::2] = states[3::2] == states[1:-2:2]
    steps = np.zeros((frames, count), np.int8)
    score = np.full(count, -np.inf)
    score[:2] = emissions[0, :2]
    ways = np.full((3, count), -np.inf)
    columns = np.arange(count)
    for frame in range(1, frames):
        ways[0] = score
        ways[1, 1:] = score[:-1]
        ways[2, 2:] = score[:-2]
        ways[2, barred] = -np.inf
        best = np.argmax(ways, axis=0)
        steps[frame] = best
        score = ways[best, columns] + emissions[frame]
    return steps, score


def _trace(
    steps: Int[np.ndarray, "U W"], last: Float[np.ndarray, " W"]
) -> tuple[Int[np.ndarray, " U"], float]:
    """Walk the backpointers from the better of the two final states."""
    frames, count = steps.shape
    state = count - 1
    if count > 1 and last[count - 2] > last[count - 1]:
        state = count - 2
    total = float(last[state])
    path = np.empty(frames, np.int64)
    for frame in range(frames - 1, -1, -1):
        path[frame] = state // 2 if state % 2 else BLANK
        state -= int(steps[frame, state])
    return path, total
