"""The hotword database: built once, checksummed, memory-mapped.

A database is a folder of generations, see `generations`. A reader keeps what it has
mapped while a new one takes its place.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from nim4_jax.retrieval import automaton, generations, windows
from nim4_jax.retrieval.automaton import Automaton
from nim4_jax.retrieval.chance import Background, PhonemeBigrams
from nim4_jax.retrieval.gate import LATTICE, NEVER, SCANN, Gate, check_near
from nim4_jax.retrieval.names import Name
from nim4_jax.retrieval.phonetic_index import PhoneticIndex
from nim4_jax.retrieval.verification import Demand
from nim4_jax.retrieval.windows import Windows
from nim4_jax.text.phonemes import INVENTORY_HASH

FORMAT = 3
MANIFEST = generations.MANIFEST

Readings = Mapping[str, Sequence[bytes]]
"""Text of a name → how it may be said."""


@dataclasses.dataclass(frozen=True)
class Database:
    """N names under K keys; homophones share one.

    Attributes:
        machine: automaton over the keys.
        windows: where near matching finds the keys.
        bigrams: of ordinary text.
        chance: how often each key occurs by chance, an hour.
        first: names of key k are named[first[k]] … named[first[k + 1] − 1].
        named: numbers of names, by key.
        text: UTF-8 of all names, one after the other.
        offsets: where each begins; the last is the end.
        weights: of the names.
        tags: index into `tag_names`.
        tag_names: "" first.
        index: ScaNN's, over the windows; None where there is none.
    """

    machine: Automaton
    windows: Windows
    bigrams: PhonemeBigrams
    chance: Float[np.ndarray, " K"]
    first: Int[np.ndarray, " K1"]
    named: Int[np.ndarray, " M"]
    text: Int[np.ndarray, " Z"]
    offsets: Int[np.ndarray, " N1"]
    weights: Float[np.ndarray, " N"]
    tags: Int[np.ndarray, " N"]
    tag_names: tuple[str, ...]
    index: PhoneticIndex | None = None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays, ScaNN's index not among them."""
        return sum(array.nbytes for array in _arrays(self).values())

    def name(self, number: int) -> Name:
        """One name, without its pronunciation."""
        start, end = self.offsets[number], self.offsets[number + 1]
        return Name(
            text=self.text[start:end].tobytes().decode("utf8"),
            weight=float(self.weights[number]),
            tag=self.tag_names[self.tags[number]],
        )

    def names_of(
        self, key: int, most: int | None = None, gone: Set[str] = frozenset()
    ) -> list[Name]:
        """Names that sound like a key, the heaviest first.

        Args:
            key: of the machine.
            most: names; None for all.
            gone: texts to leave out.
        """
        numbers = self.named[self.first[key] : self.first[key + 1]].tolist()
        if not gone:
            numbers = numbers[:most]
        names = (name for name in map(self.name, numbers) if name.text not in gone)
        return list(itertools.islice(names, most))

    def has(self, key: int, text: str) -> bool:
        """Whether a name of that text sounds like a key."""
        numbers = self.named[self.first[key] : self.first[key + 1]]
        begins, encoded = self.offsets[numbers], text.encode("utf8")
        alike = self.offsets[numbers + 1] - begins == len(encoded)
        return any(
            self.text[begin : begin + len(encoded)].tobytes() == encoded
            for begin in begins[alike]
        )

    def allow(self, gate: Gate, near: bool = True) -> Bool[np.ndarray, " K"]:
        """Keys that a gate lets through.

        Args:
            gate: the budget.
            near: whether near matches are looked for too, which takes a part of it.
        """
        return gate.allow(self.chance, self.machine.lengths, near)

    def demand(self, gate: Gate) -> Demand:
        """What it takes for each key to be found nearly: what an exact match has."""
        keys = self.allow(gate)
        threshold = gate.find_threshold(self.chance, self.machine.lengths, True)
        rarity = np.full(len(keys), -np.inf, np.float32)
        if threshold > 0.0:
            rarity[keys] = -0.5 * np.log(np.maximum(self.chance[keys], NEVER))
        least = -math.log(max(threshold, NEVER))
        return Demand(rarity, least, gate.near_nats, self.bigrams)

    def find_evidence(self, key: int) -> float:
        """Of an exact match: −log of how often an hour it is expected by chance."""
        return -math.log(max(float(self.chance[key]), NEVER))

    def read_readings(self) -> dict[str, tuple[bytes, ...]]:
        """Every name's readings, to build the next generation from."""
        readings: dict[str, tuple[bytes, ...]] = {}
        for key in range(len(self.machine.lengths)):
            spelled = self.machine.spell(key)
            for name in self.names_of(key):
                readings[name.text] = (*readings.get(name.text, ()), spelled)
        return readings


def build(
    names: Iterable[Name],
    readings: Readings,
    background: Background | None = None,
) -> Database:
    """A database of the names that have a reading.

    Args:
        names: of one tenant; equal texts become one, with the greatest weight.
        readings: of each text.
        background: of ordinary text; None if there is none to learn from.
    """
    background = background or PhonemeBigrams.flat()
    merged: dict[str, Name] = {}
    for name in names:
        known = merged.get(name.text)
        if readings.get(name.text) and (known is None or name.weight > known.weight):
            merged[name.text] = name
    kept = list(merged.values())
    keys = {key for name in kept for key in readings[name.text]}
    machine, numbered = automaton.build(keys)
    number_of = {key: number for number, key in enumerate(numbered)}
    pairs = np.asarray(
        [
            (number_of[key], index)
            for index, name in enumerate(kept)
            for key in readings[name.text]
        ],
        np.int32,
    ).reshape(-1, 2)
    # By key, the heaviest name first.
    heavy = np.asarray([-kept[index].weight for index in pairs[:, 1]], np.float32)
    pairs = pairs[np.lexsort((heavy, pairs[:, 0]))]
    counts = np.bincount(pairs[:, 0], minlength=len(numbered))
    encoded = [name.text.encode("utf8") for name in kept]
    tag_names = tuple(sorted({name.tag for name in kept} | {""}))
    places = {tag: place for place, tag in enumerate(tag_names)}
    return Database(
        machine=machine,
        windows=windows.mark(machine),
        bigrams=background.bigrams,
        chance=background.expect(numbered),
        first=_sums(counts),
        named=pairs[:, 1].copy(),
        text=np.frombuffer(b"".join(encoded), np.uint8),
        offsets=_sums(list(map(len, encoded))),
        weights=np.asarray([name.weight for name in kept], np.float32),
        tags=np.asarray([places[name.tag] for name in kept], np.uint16),
        tag_names=tag_names,
    )


def _sums(counts: Any) -> np.ndarray:
    """0 and the running totals."""
    total = np.concatenate([[0], np.cumsum(np.asarray(counts, np.int64))])
    return total.astype(np.uint32 if total[-1] < 2**32 else np.int64)


def _arrays(database: Database) -> dict[str, np.ndarray]:
    """Every array by the name of its file."""
    parts = {
        "machine": database.machine,
        "windows": database.windows,
        "bigrams": database.bigrams,
        "": database,
    }
    arrays = {
        f"{part}.{field.name}".lstrip("."): getattr(owner, field.name)
        for part, owner in parts.items()
        for field in dataclasses.fields(owner)
        if isinstance(getattr(owner, field.name), np.ndarray)
    }
    del arrays["windows.lengths"]  # are the machine's
    return arrays


def save(database: Database, folder: str) -> None:
    """Write a new generation; what was there before counts until the last moment.

    Other processes may read and save meanwhile: who saves last counts.
    """
    with generations.locked(folder):
        _write(database, folder)


def _write(database: Database, folder: str) -> None:
    facts = {
        "format": FORMAT,
        "phonemes": INVENTORY_HASH,
        "names": len(database),
        "keys": len(database.machine.lengths),
        "tags": list(database.tag_names),
    }
    index = database.index
    attached = {} if index is None else {SCANN: index.save}
    generations.write(folder, _arrays(database), facts, attached)


def add_index(base: Database, before: PhoneticIndex | None = None) -> Database:
    """A database with ScaNN's index over its windows.

    Args:
        base: the names.
        before: an index of another generation, which is changed without training where
            most windows stay.
    """
    windows = base.windows.phonemes
    made = PhoneticIndex.build(windows) if before is None else before.updated(windows)
    return dataclasses.replace(base, index=made)


def index_folder(folder: str) -> None:
    """Save a generation of a database's folder that has ScaNN's index.

    Raises:
        ValueError: the folder holds no sound database.
    """
    with generations.locked(folder):
        base = load(folder)
        if SCANN not in generations.find_attached(folder):
            _write(add_index(base), folder)


class _Settled:
    """What a database expects by chance; keys that it lacks by bigrams."""

    def __init__(self, base: Database):
        """Reads all keys of a database."""
        self.bigrams = base.bigrams
        spelled = (base.machine.spell(key) for key in range(len(base.chance)))
        self._known = dict(zip(spelled, base.chance.tolist()))

    def expect(self, keys: Sequence[bytes]) -> np.ndarray:
        """Occurrences an hour of each phoneme sequence."""
        expected = self.bigrams.expect(keys)
        known = [self._known.get(key, own) for key, own in zip(keys, expected)]
        return np.asarray(known, np.float32)


def rebuild(
    folder: str,
    added: Sequence[Name],
    readings: Readings,
    removed: Set[str],
    near: str = LATTICE,
) -> None:
    """Save a new generation of a database with some names more and some fewer.

    It takes a minute for a million names: have another process do it. Others that
    rebuild the same folder wait, and find there what this one has added. A folder that
    has ScaNN's index keeps one.

    Args:
        folder: of the database.
        added: names, which replace those of the same text.
        readings: of the added names.
        removed: texts to leave out; added ones stay.
        near: SCANN adds an index where there is none.
    """
    with generations.locked(folder):
        indexed = SCANN in generations.find_attached(folder)
        base = load(folder, SCANN if indexed else LATTICE)
        gone = removed | {name.text for name in added}
        kept = (base.name(number) for number in range(len(base)))
        names = [*(name for name in kept if name.text not in gone), *added]
        known = {**base.read_readings(), **readings}
        fresh = build(names, known, _Settled(base))
        if indexed or near == SCANN:
            fresh = add_index(fresh, base.index)
        _write(fresh, folder)


def check_index(folder: str, near: str, attached: Iterable[str] | None = None) -> None:
    """Refuse a folder that lacks the index in which near matches shall be looked for.

    Args:
        folder: of a database.
        near: one of `gate.WAYS`.
        attached: what the manifest says; None reads it.

    Raises:
        ValueError: it does, with the command that adds one.
    """
    if attached is None:
        attached = generations.find_attached(folder)
    if near == SCANN and SCANN not in attached:
        raise ValueError(
            f"{folder} has no ScaNN index, and near={near} looks there; nim4 "
            f"build_hotwords --out={folder} --near={near} adds one, or use "
            f"near={LATTICE}."
        )


def load(folder: str, near: str = LATTICE) -> Database:
    """Map a database from disk, every file checked.

    Args:
        folder: of the database.
        near: one of `gate.WAYS`; SCANN: with ScaNN's index, which is read into memory.

    Raises:
        ValueError: nothing there, another format or phoneme inventory, no index where
            one is asked for, or a file that is cut off or changed, by name.
    """
    check_near(near)
    wanted = {SCANN: PhoneticIndex.load} if near == SCANN else {}

    def check(path: Path, manifest: Any) -> None:
        _check(path, manifest)
        check_index(folder, near, manifest.get("attached", {}))

    manifest, arrays, opened = generations.read(folder, check, wanted)
    parts: dict[str, dict[str, np.ndarray]] = collections.defaultdict(dict)
    for name, array in arrays.items():
        part, _, field = name.rpartition(".")
        parts[part][field] = array
    try:
        machine = Automaton(**parts["machine"])
        return Database(
            machine=machine,
            windows=Windows(lengths=machine.lengths, **parts["windows"]),
            bigrams=PhonemeBigrams(**parts["bigrams"]),
            tag_names=tuple(manifest["tags"]),
            index=opened.get(SCANN),
            **parts[""],
        )
    except TypeError as error:  # a field too many or too few
        raise ValueError(
            f"{folder}: its manifest does not list the files of a hotword database "
            f"({error}); copy or build the database again."
        ) from error


def _check(path: Path, manifest: Any) -> None:
    """Refuse what another version has made, or something else."""
    try:
        found, inventory = manifest["format"], manifest["phonemes"]
        _ = manifest["files"], manifest["tags"]
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is no manifest of a hotword database ({error!r}); build one with "
            "nim4 build_hotwords."
        ) from error
    if found != FORMAT:
        raise ValueError(
            f"{path}: format {found!r}, this version reads {FORMAT}; build it again."
        )
    if inventory != INVENTORY_HASH:
        raise ValueError(
            f"{path} was built with phoneme inventory {inventory[:12]}, this package "
            f"has {INVENTORY_HASH[:12]}: its ids mean other sounds. Build it again."
        )
