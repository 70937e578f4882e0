"""A layer of added and removed names over a large database.

Both are immutable and change by replacing one reference, so a reader sees the whole of
one moment.
"""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Iterable, Set
from concurrent.futures import Executor

import numpy as np
from jaxtyping import Bool, Int

from nim4_jax.retrieval import database, lattice, verification
from nim4_jax.retrieval.database import Database
from nim4_jax.retrieval.gate import LATTICE, NOWHERE, Gate, check_near
from nim4_jax.retrieval.names import Name
from nim4_jax.retrieval.phonetic_index import PhoneticIndex
from nim4_jax.retrieval.pronunciation import pronounce
from nim4_jax.retrieval.verification import Acoustics, Candidates, Demand, Verified


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """A database and what of it may be found.

    Attributes:
        database: the names.
        allowed: states of its machine at which an exact match may end.
        demand: what a near match must fulfil; None: there is none.
        index: where its windows are looked for; None: in the lattice of what was heard.
        numbers: window of each row of the index.
    """

    database: Database
    allowed: Bool[np.ndarray, " S"]
    demand: Demand | None
    index: PhoneticIndex | None = None
    numbers: Int[np.ndarray, " M"] | None = None

    @classmethod
    def of(cls, base: Database, gate: Gate, near: str, *, train: bool = True) -> Part:
        """All that a gate lets through.

        Args:
            base: the names.
            gate: what may give hints.
            near: one of `gate.WAYS`. With SCANN an index is built where the base has
                none.
            train: whether there is time to train one.

        Raises:
            ValueError: the base has an index of other windows.
        """
        keys = base.allow(gate, near != NOWHERE)
        allowed = base.machine.allow(keys)
        if near == NOWHERE:
            return cls(base, allowed, None)
        demand = base.demand(gate)
        if near == LATTICE:
            return cls(base, allowed, demand)
        windows = base.windows.phonemes
        index = base.index or PhoneticIndex.build(windows, train=train)
        return cls(base, allowed, demand, index, index.number(windows))

    def find_windows(
        self, acoustics: Acoustics, fresh: int
    ) -> tuple[Int[np.ndarray, "Q K"], Int[np.ndarray, " Q"]]:
        """Windows that may end within the last phonemes.

        Returns:
            Rows of its database's windows, and the phoneme at which each row of rows
            begins.
        """
        if self.index is None or self.numbers is None:
            windows = self.database.windows
            rows, starts = lattice.find_windows(windows, acoustics, fresh)
            return rows[:, None], starts
        rows, starts = self.index.find(acoustics, fresh)
        return self.numbers[rows], starts

    def find_near(
        self, acoustics: Acoustics, fresh: int, waiting: Candidates
    ) -> tuple[Verified, Candidates]:
        """Names that sound like what was heard, see `verification.verify`."""
        assert self.demand  # nothing near is looked for without
        rows, starts = self.find_windows(acoustics, fresh)
        windows = self.database.windows
        return verification.verify(
            windows, rows, starts, waiting, acoustics, self.demand
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Served:
    """What a layer holds at one moment: base, additions, and texts taken out."""

    base: Part
    added: Part
    removed: frozenset[str]

    @classmethod
    def of(
        cls,
        base: Database,
        added: Database | None = None,
        removed: Set[str] = frozenset(),
        *,
        gate: Gate | None = None,
        near: str = LATTICE,
    ) -> Served:
        """A list that never changes.

        Args:
            base: the names.
            added: names that came later; None for none.
            removed: texts of the base that do not count.
            gate: what may give hints; None for the usual one.
            near: one of `gate.WAYS`.
        """
        gate = gate or Gate()
        beside = Part.of(_NO_NAMES if added is None else added, gate, near)
        return cls(Part.of(base, gate, near), beside, frozenset(removed))


_NO_NAMES = database.build([], {})


class Layer:
    """Names that may be added and removed while streams read them.

    Any thread may call any method. The base is never rebuilt here: what was added is,
    which is quick while it is small; `size` tells when to merge.
    """

    def __init__(
        self,
        base: Database | None = None,
        gate: Gate | None = None,
        near: str = LATTICE,
    ):
        """A layer over a database, or an empty one.

        Args:
            base: the names; with ScaNN's index, `database.load(folder, "scann")`, else
                near="scann" builds one, which takes a minute for a million names.
            gate: what may give hints.
            near: one of `gate.WAYS`, where near matches are looked for: the lattice,
                which is faster and finds more; ScaNN's index; nowhere.

        Raises:
            ValueError: an unknown way, or a base with an index of other windows.
        """
        check_near(near)
        self.gate = gate or Gate()
        self.near = near
        self._lock = threading.Lock()
        self._names: dict[str, Name] = {}
        self._readings: dict[str, tuple[bytes, ...]] = {}
        first = _NO_NAMES if base is None else base
        self._served = Served.of(first, gate=self.gate, near=near)

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
        spoken = [(name, pronounce(name)) for name in names]
        with self._lock:
            for name, readings in spoken:
                if readings:
                    self._names[name.text] = name
                    self._readings[name.text] = readings
            # What is in both is served as it was added last. A namesake that cannot be
            # pronounced takes nobody's place.
            added = {name.text for name, readings in spoken if readings}
            self._replace(self._served.base, self._served.removed | added)
        return [name for name, readings in spoken if not readings]

    def remove(self, texts: Iterable[str]) -> None:
        """Stop serving names; unknown ones are no error."""
        gone = frozenset(texts)
        with self._lock:
            for text in gone:
                self._names.pop(text, None)
                self._readings.pop(text, None)
            self._replace(self._served.base, self._served.removed | gone)

    def merge(self, folder: str, executor: Executor | None = None) -> None:
        """Rebuild the base with all that was added and removed, and serve it.

        Names may be added, removed and looked for in the meantime: call it from a
        thread of its own, with a process pool. If anything fails, the layer stays as it
        was.

        Args:
            folder: the base's; becomes its next generation.
            executor: where the work is done; None for this thread.

        Raises:
            ValueError: the folder holds no sound database.
        """
        with self._lock:
            added, readings = list(self._names.values()), dict(self._readings)
            removed = self._served.removed
        work = functools.partial(
            database.rebuild, folder, added, readings, removed, self.near
        )
        if executor is None:
            work()
        else:
            executor.submit(work).result()
        absent = removed - {name.text for name in added}
        self.swap(database.load(folder, self.near), added, absent)

    def swap(
        self,
        base: Database,
        contained: Iterable[Name] = (),
        absent: Set[str] = frozenset(),
    ) -> None:
        """Serve another base.

        Args:
            base: to be served; one without ScaNN's index has it built if that is where
                near matches are looked for.
            contained: additions in it, as they were when it was built. What was added,
                removed or changed since stays so.
            absent: removed texts that are not in it.
        """
        part = Part.of(base, self.gate, self.near)
        with self._lock:
            settled = {n.text for n in contained if self._names.get(n.text) == n}
            for text in settled:
                del self._names[text], self._readings[text]
            removed = self._served.removed - settled - absent
            self._replace(part, removed)

    def _replace(self, base: Part, removed: frozenset[str]) -> None:
        background = base.database.bigrams
        added = database.build(self._names.values(), self._readings, background)
        # It is made at every change: there is no time to train.
        part = Part.of(added, self.gate, self.near, train=False)
        self._served = Served(base, part, removed)
