"""Forced alignment: the likeliest CTC path that spells given labels (Viterbi).

The states are blank, y₁, blank, y₂ … blank. A path may stay in a state, go to the next,
or skip a blank between two different labels; it starts in one of the first two states
and ends in one of the last two.

Source: Graves et al. 2006, with max in place of the sum.
"""

from __future__ import annotations

from collections.abc import Sequence

import numba
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
    path, total = _trace(steps, last)
    return path, float(total)


_jit = numba.njit(cache=True, nogil=True)


@_jit
def _search(emissions, states):
    """Backpointers [U, W] (how many states each step advanced), last frame's scores."""
    frames, count = emissions.shape
    steps = np.zeros((frames, count), np.int8)
    score = np.full(count, -np.inf)
    score[:2] = emissions[0, :2]
    for frame in range(1, frames):
        # From the last state on, so that what is read is of the frame before.
        for state in range(count - 1, -1, -1):
            best = score[state]
            if state > 0 and score[state - 1] > best:
                best, steps[frame, state] = score[state - 1], 1
            # Only a blank between two different labels may be skipped.
            skips = state % 2 == 1 and state > 1 and states[state] != states[state - 2]
            if skips and score[state - 2] > best:
                best, steps[frame, state] = score[state - 2], 2
            score[state] = best + emissions[frame, state]
    return steps, score


@_jit
def _trace(steps, last):
    """Walk the backpointers from the better of the two final states."""
    frames, count = steps.shape
    state = count - 1
    if count > 1 and last[count - 2] > last[count - 1]:
        state = count - 2
    total = last[state]
    path = np.empty(frames, np.int64)
    for frame in range(frames - 1, -1, -1):
        path[frame] = state // 2 if state % 2 else BLANK
        state -= steps[frame, state]
    return path, total
