"""The contract of a source of records, and several sources joined into a corpus."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

Record = dict[str, Any]


LANGS = ("en", "zh", "mixed", "auto")


class Source(Protocol):
    """A random-access sequence of records."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...


Opener = Callable[[str], Source]
"""From a specification to a source; raises ValueError where there is none."""


def describe(source: Source, index: int) -> Record:
    """A record for all but its audio, which a source that makes audio may leave out."""
    describe_record = getattr(source, "describe", None)
    return describe_record(index) if describe_record else source[index]


def carries_keywords(source: Source) -> bool:
    """Whether the records of a source bring keywords.

    Then they count as complete: a record without any says none. A manifest carries
    them where any record has the key, other sources where any record has a keyword.
    """
    known = getattr(source, "has_keywords", None)
    if known is not None:
        return known
    return any(describe(source, index)["keywords"] for index in range(len(source)))


class Corpus:
    """Several sources as one sequence; an index is an example's global id."""

    def __init__(self, sources: Sequence[Source]):
        self.sources = tuple(sources)
        self.starts = np.cumsum([0, *(len(source) for source in self.sources)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, index: int) -> Record:
        source, place = self._locate(index)
        return source[place]

    def describe(self, index: int) -> Record:
        """A record for all but its audio, see `describe`."""
        return describe(*self._locate(index))

    def find_source(self, index: int) -> int:
        """Number of the source that an example is of."""
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        return int(np.searchsorted(self.starts, index, side="right")) - 1

    def _locate(self, index: int) -> tuple[Source, int]:
        number = self.find_source(index)
        return self.sources[number], index - int(self.starts[number])

    def group(self, number: int) -> np.ndarray:
        """Global ids of the examples of one source, int64."""
        return np.arange(self.starts[number], self.starts[number + 1])
