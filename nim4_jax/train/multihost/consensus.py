"""Decisions of host 0 broadcast to all hosts, and flags reduced over hosts.

What comes from outside of a run (files that others write, clocks) may look different to
each host. All hosts call each function here, in the same order; with one process they
only do what their argument says.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


def leads() -> bool:
    """Whether this is host 0, which writes the run's files."""
    return jax.process_index() == 0


def lead(decide: Callable[[], Any]) -> Any:
    """The value that host 0 computes, broadcast to all hosts.

    Args:
        decide: called on host 0 alone; its result is JSON-able.

    Raises:
        ValueError: `decide` raised one, or an OSError, on host 0.
    """
    if jax.process_count() == 1:
        return decide()
    told: dict[str, Any] = {}
    error: Exception | None = None
    if leads():
        try:
            told = {"value": decide()}
        except (OSError, ValueError) as raised:
            error, told = raised, {"error": f"host 0: {raised}"}
    told = json.loads(_broadcast(json.dumps(told).encode()))
    if error is not None:
        raise error
    if "error" in told:
        raise ValueError(told["error"])
    return told["value"]


def everywhere(condition: bool) -> bool:
    """Logical and of a flag over all hosts."""
    if jax.process_count() == 1:
        return condition
    return bool(np.all(multihost_utils.process_allgather(np.array(condition))))


def _broadcast(data: bytes) -> bytes:
    """Host 0's bytes, on every host."""
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(data))))
    # Buffers have the same shape on all hosts; only host 0's content counts.
    content = np.zeros(size, np.uint8)
    if leads():
        content = np.frombuffer(data, np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(content)).tobytes()
