"""Thread-safe buffer of a stream's audio, read by sample position."""

from __future__ import annotations

import collections
import threading

import numpy as np
from jaxtyping import Float

from nim4_jax.features import SAMPLE_RATE

_BLOCK = SAMPLE_RATE  # samples that are copied at once, however long a packet is


class StreamError(ValueError):
    """A packet or a hint that cannot be taken; nothing of it is, the stream goes on."""


class AudioBuffer:
    """Packets in, samples by their place in the stream out.

    Any thread may call `append` and `close`. All else belongs to one reader, for whom
    the stream stands still between two calls of `receive`: its length and whether it
    has ended never contradict each other.

    Attributes:
        end: samples of the stream that the reader knows of.
        ended: whether no more will come, as the reader knows.
    """

    def __init__(self):
        """A stream before its first sample."""
        self.end = 0
        self.ended = False
        self._lock = threading.Lock()
        self._packets: list[np.ndarray] = []  # not received yet
        self._sent = 0
        self._refusal = ""  # why nothing more is taken
        self._blocks: collections.deque[np.ndarray] = collections.deque()
        self._samples = np.zeros(0, np.float32)
        self._first = 0  # place of the first of these samples

    def __len__(self) -> int:
        """Samples that are held."""
        waiting = sum(map(len, (*self._packets, *self._blocks)))
        return waiting + len(self._samples)

    @property
    def sent(self) -> int:
        """Samples that were appended, received or not."""
        return self._sent

    @property
    def closed(self) -> bool:
        """Whether no more is taken."""
        return bool(self._refusal)

    def append(self, samples: Float[np.ndarray, " S"], most: int) -> None:
        """Take a copy of a packet.

        Args:
            samples: float32.
            most: place in the stream that may not be passed: who sends faster than is
                read has to wait.

        Raises:
            StreamError: the stream has ended, or is too far ahead of its reader.
        """
        begins = range(0, len(samples), _BLOCK)
        blocks = [samples[begin : begin + _BLOCK].copy() for begin in begins]
        with self._lock:
            if self._refusal:
                raise StreamError(f"{len(samples)} samples came {self._refusal}")
            if self._sent + len(samples) > most:
                raise StreamError(
                    f"a packet of {len(samples) / SAMPLE_RATE:.1f} s would end "
                    f"{self._sent + len(samples) - most} samples beyond the audio that "
                    "may wait in a stream; nothing of it was taken. Send it again when "
                    "`Session.backlog` is less, or allow more in `Limits.waiting`."
                )
            self._packets += blocks
            self._sent += len(samples)

    def close(self, refusal: str) -> None:
        """Nothing more is taken; the first reason that was given stays.

        Args:
            refusal: goes on after "so many samples came".
        """
        with self._lock:
            self._refusal = self._refusal or refusal

    def receive(self) -> None:
        """Let the reader know of all that was appended."""
        with self._lock:
            self._blocks += self._packets
            self._packets = []
            self.end, self.ended = self._sent, bool(self._refusal)

    def read(self, begin: int, end: int) -> Float[np.ndarray, " S"]:
        """Samples by their places.

        Raises:
            RuntimeError: they were let go already, or have not come.
        """
        # Only as much as is asked for: to join an hour anew for each packet is slow.
        missing, joined = end - self._first - len(self._samples), [self._samples]
        while missing > 0 and self._blocks:
            joined.append(self._blocks.popleft())
            missing -= len(joined[-1])
        if len(joined) > 1:
            self._samples = np.concatenate(joined)
        if not self._first <= begin <= end <= self._first + len(self._samples):
            raise RuntimeError(
                f"samples {begin} to {end} of a stream are not in its buffer, which "
                f"holds {len(self._samples)} from {self._first} on."
            )
        return self._samples[begin - self._first : end - self._first]

    def forget(self, place: int) -> None:
        """Samples before a place that was read already are not needed again."""
        gone = min(place - self._first, len(self._samples))
        if gone > len(self._samples) // 2:
            self._samples = self._samples[gone:].copy()
            self._first += gone
