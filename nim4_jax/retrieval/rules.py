"""Which of several names that were heard in one place are kept."""

from __future__ import annotations

import numba
import numpy as np
from jaxtyping import Bool, Float, Int

MARGIN = 0.8
"""A near hit stays beside a stronger one that is not stronger than 1 / MARGIN times."""


@numba.njit(cache=True, nogil=True)
def find_strongest(
    starts: Int[np.ndarray, " N"],
    ends: Int[np.ndarray, " N"],
    strengths: Float[np.ndarray, " N"],
    exact: Bool[np.ndarray, " N"],
    names: Int[np.ndarray, " N"],
) -> Bool[np.ndarray, " N"]:
    """Hits that no stronger one overlaps.

    An exact hit gives way to an exact one only; as its strength is its length, that is
    a longer one ("NIO" inside "NIO House"), and equally long ones all stay. A near hit
    gives way to an exact one that is as strong, to a near one that is much stronger,
    and to the same name heard better.

    Args:
        starts: of the hits.
        ends: one past the last of each.
        strengths: the greater, the surer.
        exact: which are exact hits.
        names: equal for equal names.

    Returns:
        True for those that stay.
    """
    kept = np.zeros(len(starts), np.bool_)
    # Of equally strong ones the exact come first.
    order = np.argsort(-strengths - 1e-6 * exact)
    for index in order:
        free = True
        for other in np.flatnonzero(kept):
            if ends[index] <= starts[other] or starts[index] >= ends[other]:
                continue
            if exact[index]:
                beaten = exact[other] and strengths[other] > strengths[index]
            elif exact[other] or names[other] == names[index]:
                beaten = True
            else:
                beaten = strengths[other] * MARGIN > strengths[index]
            if beaten:
                free = False
                break
        kept[index] = free
    return kept
