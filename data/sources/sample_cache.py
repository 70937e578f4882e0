"""A cache of decoded audio in memory, shared by the threads of a loader."""

from __future__ import annotations

import threading

import numpy as np


class SampleCache:
    """Decoded int16 samples by example id, until `megabytes` are full.

    Nothing is ever evicted: epochs visit every example equally often, so that what came
    first is as good as anything else, and a full cache costs nothing.
    """

    def __init__(self, megabytes: float):
        self._free = int(megabytes * 1e6)
        self._samples: dict[int, np.ndarray] = {}
        self._lock = threading.Lock()

    def __getstate__(self) -> dict:
        # A worker process starts its own cache, empty, with its own lock.
        return {"megabytes": self._free / 1e6 + self.megabytes_used}

    def __setstate__(self, state: dict) -> None:
        self.__init__(state["megabytes"])

    @property
    def megabytes_used(self) -> float:
        """Size of what is kept."""
        return sum(samples.nbytes for samples in self._samples.values()) / 1e6

    def get(self, index: int) -> np.ndarray | None:
        """The samples of an example, None if they are not kept."""
        return self._samples.get(index)

    def put(self, index: int, samples: np.ndarray) -> None:
        """Keep the samples if they fit."""
        with self._lock:
            if index not in self._samples and samples.nbytes <= self._free:
                self._free -= samples.nbytes
                self._samples[index] = samples
