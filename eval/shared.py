"""Types that evaluations share: the System protocol, samples, what was heard."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Protocol

import numpy as np

from nim4_jax.data.sources.skips import SkipReport
from nim4_jax.decode.recogniser import Transcript
from nim4_jax.text.tokenizer import Tokenizer
from nim4_jax.types import Frames

Samples = tuple[int, np.ndarray]
"""Index of an utterance in its set, and its audio: float32 [S], 16 kHz."""

Read = Callable[[SkipReport], Iterator[Samples]]


class System(Protocol):
    """Whatever turns audio into text: a model, a model that streams, a peer."""

    @property
    def writes(self) -> bool:
        """Whether it gives transcripts."""
        ...

    @property
    def tokenizer(self) -> Tokenizer | None:
        """Of its LLM; None where there are no programs, compiled for a shape each."""
        ...

    def check_writes(self) -> None:
        """Raise ValueError if it gives no transcripts."""

    def hear_phonemes(self, audio: Frames) -> list[tuple[int, ...]]:
        """Phoneme ids of each row."""
        ...

    def transcribe(
        self,
        audio: Frames,
        *,
        hints: Sequence[Sequence[str]] | None = None,
        timings: bool = True,
    ) -> Sequence[Transcript]:
        """Transcripts of a batch, as `BatchRecogniser.transcribe`."""
        ...


class HeldAudio:
    """The recordings of the set that was read last, if there is room for them."""

    def __init__(self, most_bytes: int = 2 << 30):
        """Of a larger set nothing is held: it is read again when it is asked for."""
        self._most = most_bytes
        self._key: Hashable = None
        self._held: list[Samples] = []
        self._report = SkipReport()

    def read(self, key: Hashable, read: Read) -> tuple[Iterator[Samples], SkipReport]:
        """The recordings of a set.

        Args:
            key: whatever the recordings depend on.
            read: reads them, and reports what is left out.

        Returns:
            The recordings, and the report, which is complete when they have ended.
        """
        if key == self._key:
            return iter(self._held), self._report
        self._key, self._held = None, []
        report = SkipReport()
        return self._hold(key, read(report), report), report

    def _hold(
        self, key: Hashable, samples: Iterator[Samples], report: SkipReport
    ) -> Iterator[Samples]:
        held, size = [], 0
        for one in samples:
            size += one[1].nbytes
            if size <= self._most:
                held.append(one)
            else:
                held.clear()
            yield one
        if size <= self._most:
            self._key, self._held, self._report = key, held, report


@dataclasses.dataclass
class Shared:
    """State kept between evaluations of one recogniser.

    Attributes:
        warm: shapes whose programs are compiled.
        audio: of the set that was read last.
    """

    warm: set[tuple[int, ...]] = dataclasses.field(default_factory=set)
    audio: HeldAudio = dataclasses.field(default_factory=HeldAudio)
