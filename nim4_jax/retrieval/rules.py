"""Resolution of overlapping hits: which of several names are kept."""

from __future__ import annotations

import numba
import numpy as np
from jaxtyping import Bool, Float, Int


@numba.njit(cache=True, nogil=True)
def find_strongest(
    starts: Int[np.ndarray, " N"],
    ends: Int[np.ndarray, " N"],
    strengths: Float[np.ndarray, " N"],
    exact: Bool[np.ndarray, " N"],
) -> Bool[np.ndarray, " N"]:
    """Hits that no stronger one overlaps.

    An exact hit gives way to a longer exact one ("NIO" inside "NIO House"); equally
    long ones all stay. A near hit gives way to an exact one that is not shorter, and to
    a near one that is stronger.

    Args:
        starts: first phoneme of each hit.
        ends: one past the last of each.
        strengths: of the near hits; the greater, the surer.
        exact: which are exact hits.

    Returns:
        True for those that stay.
    """
    lengths = ends - starts
    kept = np.zeros(len(starts), np.bool_)
    # Exact ones first, the longest before; then near ones, the strongest before.
    rank = np.where(exact, -1e9 - lengths, -strengths)
    for index in np.argsort(rank):
        free = True
        for other in np.flatnonzero(kept):
            if ends[index] <= starts[other] or starts[index] >= ends[other]:
                continue
            if exact[index]:
                beaten = lengths[other] > lengths[index]
            elif exact[other]:
                beaten = lengths[other] >= lengths[index]
            else:
                beaten = strengths[other] > strengths[index]
            if beaten:
                free = False
                break
        kept[index] = free
    return kept
