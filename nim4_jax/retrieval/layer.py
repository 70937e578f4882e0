"""Names that change while they are served: a large base, and what was added since.

Both are immutable and change by replacing one reference, so a reader sees the whole of
one moment.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterable

import numpy as np
from jaxtyping import Bool, Int

from nim4_jax.retrieval import database, lattice
from nim4_jax.retrieval.database import Database, Gate
from nim4_jax.retrieval.names import Name
from nim4_jax.retrieval.phonetic_index import PhoneticIndex
from nim4_jax.retrieval.pronunciation import pronounce
from nim4_jax.retrieval.verification import Acoustics, Demand


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """A database and what of it may be found.

    Attributes:
        database: the names.
        allowed: states of its machine at which an exact match may end.
        demand: what a near match must fulfil.
        index: where its windows are looked for; None: in the lattice of what was heard.
    """

    database: Database
    allowed: Bool[np.ndarray, " S"]
    demand: Demand
    index: PhoneticIndex | None = None

    @classmethod
    def of(cls, base: Database, gate: Gate, index: PhoneticIndex | None = None) -> Part:
        """All that a gate lets through."""
        allowed = base.machine.allow(base.allow(gate))
        return cls(base, allowed, base.demand(gate), index)

    def find_windows(
        self, acoustics: Acoustics, fresh: int
    ) -> tuple[Int[np.ndarray, "Q K"], Int[np.ndarray, " Q"]]:
        """Windows that may end within the last phonemes.

        Returns:
            Rows of its database's windows, and the phoneme at which each row of rows
            begins.
        """
        if self.index is not None:
            return self.index.find(acoustics, fresh)
        rows, starts = lattice.find_windows(self.database.windows, acoustics, fresh)
        return rows[:, None], starts


@dataclasses.dataclass(frozen=True, eq=False)
class Served:
    """What a layer holds at one moment: base, additions, and texts taken out."""

    base: Part
    added: Part
    removed: frozenset[str]


_NO_NAMES = database.build([], {})


class Layer:
    """Names that may be added and removed while streams read them.

    Any thread may call any method. The base is never rebuilt here: what was added is,
    which is quick while it is small; `size` tells when to merge.
    """

    def __init__(self, base: Database | None = None, gate: Gate | None = None):
        """A layer over a database, or an empty one."""
        self.gate = gate or Gate()
        self._lock = threading.Lock()
        self._names: dict[str, Name] = {}
        self._readings: dict[str, tuple[bytes, ...]] = {}
        part = Part.of(_NO_NAMES if base is None else base, self.gate)
        self._served = Served(part, Part.of(_NO_NAMES, self.gate), frozenset())

    @property
    def served(self) -> Served:
        """What streams see from now on."""
        return self._served

    @property
    def size(self) -> int:
        """Names that were added to the base."""
        return len(self._names)

    def add(self, names: Iterable[Name]) -> list[Name]:
        """Serve more names; a known text takes the new weight and tag.

        Returns:
            Those that cannot be pronounced and were left out.
        """
        listed = list(names)
        readings = {name.text: pronounce(name) for name in listed}
        with self._lock:
            for name in listed:
                if readings[name.text]:
                    self._names[name.text] = name
                    self._readings[name.text] = readings[name.text]
            # What is in both is served as it was added last.
            self._replace(self._served.base, self._served.removed | readings.keys())
        return [name for name in listed if not readings[name.text]]

    def remove(self, texts: Iterable[str]) -> None:
        """Stop serving names; unknown ones are no error."""
        gone = frozenset(texts)
        with self._lock:
            for text in gone:
                self._names.pop(text, None)
            self._replace(self._served.base, self._served.removed | gone)

    def merge(self, base: Database, contained: Iterable[Name]) -> None:
        """Serve a new base, rebuilt elsewhere, that contains additions.

        Args:
            base: to be served.
            contained: additions in it, as they were when it was built. What was removed
                or changed since stays so.
        """
        with self._lock:
            settled = {n.text for n in contained if self._names.get(n.text) == n}
            for text in settled:
                del self._names[text]
            self._replace(Part.of(base, self.gate), self._served.removed - settled)

    def _replace(self, base: Part, removed: frozenset[str]) -> None:
        background = base.database.bigrams
        added = database.build(self._names.values(), self._readings, background)
        self._served = Served(base, Part.of(added, self.gate), removed)
