"""Hotwords of a stream: layers of names that change while they are served.

A layer (everybody's, a tenant's, a request's) is a large base and a small database of
what was added since. Both are immutable and change by replacing one reference, so a
reader sees the whole of one moment. A stream is given the layers that it may see, and
can reach no other.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float, Int

from nim4_jax.retrieval import automaton, database
from nim4_jax.retrieval.automaton import Matches
from nim4_jax.retrieval.database import Database, Gate
from nim4_jax.retrieval.names import Name
from nim4_jax.retrieval.pronunciation import LONGEST, pronounce

EXACT = "exact"


@dataclasses.dataclass(frozen=True)
class Hit:
    """A name that was heard.

    Attributes:
        text: as it is written.
        start: seconds from the beginning of the stream.
        end: the same.
        score: phonemes that agree, times the name's weight.
        source: how it was found.
        tag: of the name.
    """

    text: str
    start: float
    end: float
    score: float
    source: str
    tag: str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """A database and the states of its machine at which a match may end."""

    database: Database
    allowed: np.ndarray

    @classmethod
    def of(cls, base: Database, gate: Gate) -> Part:
        """All that a gate lets through."""
        return cls(base, base.machine.allow(base.allow(gate)))


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
        added = database.build(self._names.values(), self._readings)
        self._served = Served(base, Part.of(added, self.gate), removed)


@dataclasses.dataclass(frozen=True, eq=False)
class _Cursor:
    """Where a stream stands in a part; a part that is new is read from `recent`."""

    part: Part
    state: int


@dataclasses.dataclass(frozen=True, eq=False)
class StreamState:
    """A stream between two pieces.

    Attributes:
        position: phonemes so far.
        recent: the last of them, LONGEST at most.
        times: start and end of each of those, seconds.
        hits: names heard so far, none of which a longer one overlaps.
        spans: first phoneme and one past the last of each hit.
    """

    position: int = 0
    recent: bytes = b""
    times: Float[np.ndarray, "R 2"] = dataclasses.field(
        default_factory=lambda: np.zeros((0, 2))
    )
    hits: tuple[Hit, ...] = ()
    spans: tuple[tuple[int, int], ...] = ()
    cursors: tuple[_Cursor, ...] = ()


class HotwordRetriever:
    """Finds the names of some layers in a stream of phonemes."""

    def __init__(self, layers: Sequence[Layer]):
        """Over the layers that a stream may see, as (everybody's, tenant's, own)."""
        self._layers = tuple(layers)

    def scan(
        self,
        state: StreamState,
        phonemes: Int[np.ndarray, " N"],
        times: Float[np.ndarray, "N 2"],
    ) -> tuple[StreamState, list[Hit]]:
        """Names that end within the next phonemes.

        Args:
            state: `StreamState()` for a new stream, then what the last call returned.
            phonemes: uint8 ids as the phoneme head heard them.
            times: when each began and ended, seconds from the stream's beginning.

        Returns:
            The new state; and the hits that are new in it, by their ends. A hit that a
            longer one overlaps is dropped, also when the longer one ends later.

        Raises:
            ValueError: not one pair of times per phoneme.
        """
        if times.shape != (len(phonemes), 2):
            raise ValueError(
                f"times have shape {times.shape}; expected {(len(phonemes), 2)}."
            )
        known = {id(cursor.part): cursor.state for cursor in state.cursors}
        before = np.frombuffer(state.recent, np.uint8)
        clock = np.concatenate([state.times, times])
        first = state.position - len(before)
        cursors, found = [], []
        for layer in self._layers:
            served = layer.served
            for part in (served.base, served.added):
                machine = part.database.machine
                place = known.get(id(part))
                if place is None:
                    place, _ = machine.scan(automaton.ROOT, before)
                place, matches = machine.scan(
                    place, phonemes, position=state.position, allowed=part.allowed
                )
                cursors.append(_Cursor(part, place))
                if len(matches):
                    gone = served.removed if part is served.base else frozenset()
                    found += _name(part.database, matches, gone, clock, first)
        recent = (state.recent + phonemes.tobytes())[-LONGEST:]
        after = dataclasses.replace(
            state,
            position=state.position + len(phonemes),
            recent=recent,
            times=clock[len(clock) - len(recent) :],
            cursors=tuple(cursors),
        )
        if not found:
            return after, []
        kept = _keep_longest([*zip(state.spans, state.hits), *found])
        hits = tuple(hit for _, hit in kept)
        spans = tuple(span for span, _ in kept)
        old = set(state.hits)
        after = dataclasses.replace(after, hits=hits, spans=spans)
        return after, [hit for hit in hits if hit not in old]


def _name(
    base: Database,
    matches: Matches,
    gone: frozenset[str],
    clock: Float[np.ndarray, "T 2"],
    first: int,
) -> list[tuple[tuple[int, int], Hit]]:
    """Matches of keys → spans with hits of all names that sound so."""
    if not gone:  # else a shorter name may be all that is left of a long match
        matches = matches.longest()
    found = []
    for key, start, end in zip(matches.keys, matches.starts, matches.ends):
        for name in base.names_of(int(key)):
            if name.text in gone:
                continue
            hit = Hit(
                text=name.text,
                start=float(clock[start - first, 0]),
                end=float(clock[end - 1 - first, 1]),
                score=float(end - start) * name.weight,
                source=EXACT,
                tag=name.tag,
            )
            found.append(((int(start), int(end)), hit))
    return found


def _keep_longest(
    found: list[tuple[tuple[int, int], Hit]],
) -> list[tuple[tuple[int, int], Hit]]:
    """By their ends: one of each text and place, none that a longer one overlaps."""
    unique = list({(span, hit.text): (span, hit) for span, hit in found}.values())
    spans = np.asarray([span for span, _ in unique], np.int64).reshape(-1, 2)
    numbers = np.arange(len(unique))
    kept = Matches(numbers, spans[:, 0], spans[:, 1]).longest()
    chosen = [unique[number] for number in kept.keys]
    return sorted(chosen, key=lambda pair: (pair[0][1], pair[0][0], pair[1].text))
