"""Names by how they sound: built once, checked by sums, mapped from disk.

A database is a folder. Its data files are named after their own generation; the
manifest, replaced in one step, says which ones count. A reader keeps what it has mapped
while a new generation takes its place.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import math
import zlib
from collections.abc import Iterable, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from nim4_jax import whole_file
from nim4_jax.retrieval import automaton, windows
from nim4_jax.retrieval.automaton import Automaton
from nim4_jax.retrieval.chance import Background, PhonemeBigrams
from nim4_jax.retrieval.names import Name
from nim4_jax.retrieval.verification import Demand
from nim4_jax.retrieval.windows import Windows
from nim4_jax.text.phonemes import INVENTORY_HASH

FORMAT = 2
MANIFEST = "manifest.json"
_NEVER = 1e-37  # an hour

Readings = Mapping[str, Sequence[bytes]]
"""Text of a name → how it may be said."""


@dataclasses.dataclass(frozen=True)
class Gate:
    """Which keys may give hints.

    Attributes:
        min_phonemes: shorter keys never match.
        max_chance: nor do keys expected by chance more often than this an hour.
        near_rate: how many near matches an hour may be expected by chance, all keys
            together, though none more often than `max_chance`; 0 for exact ones only.
        near_nats: per phoneme, how much less likely than what was heard a name may be.
    """

    min_phonemes: int = 4
    max_chance: float = 1.0
    near_rate: float = 100.0
    near_nats: float = 2.5


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

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for array in _arrays(self).values())

    def name(self, number: int) -> Name:
        """One name, without its pronunciation."""
        start, end = self.offsets[number], self.offsets[number + 1]
        return Name(
            text=self.text[start:end].tobytes().decode("utf8"),
            weight=float(self.weights[number]),
            tag=self.tag_names[self.tags[number]],
        )

    def names_of(self, key: int) -> list[Name]:
        """All names that sound like a key."""
        numbers = self.named[self.first[key] : self.first[key + 1]]
        return [self.name(int(number)) for number in numbers]

    def allow(self, gate: Gate) -> Bool[np.ndarray, " K"]:
        """Keys that a gate lets through."""
        long = self.machine.lengths >= gate.min_phonemes
        return long & (self.chance <= gate.max_chance)

    def demand(self, gate: Gate) -> Demand:
        """What it takes for each key to be found nearly."""
        keys = self.allow(gate)
        rate = min(gate.near_rate / max(keys.sum(), 1), gate.max_chance)
        rarity = np.full(len(keys), -np.inf, np.float32)
        if rate > 0.0:
            rarity[keys] = -0.5 * np.log(np.maximum(self.chance[keys], _NEVER))
        least = -math.log(max(rate, _NEVER))
        return Demand(rarity, least, gate.near_nats, self.bigrams)

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
    pairs = pairs[np.argsort(pairs[:, 0], kind="stable")]
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
        weights=np.asarray([name.weight for name in kept], np.float16),
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
    """Write a new generation; what was there before counts until the last moment."""
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    before = sorted(place.glob("*.npy"))
    generation = 1 + max((int(file.name.split("-")[0]) for file in before), default=0)
    files = {}
    for name, array in _arrays(database).items():
        path = place / f"{generation}-{name}.npy"
        np.save(path, array)
        files[name] = {
            "file": path.name,
            "bytes": path.stat().st_size,
            "crc32": _sum(path),
        }
    manifest = {
        "format": FORMAT,
        "phonemes": INVENTORY_HASH,
        "names": len(database),
        "keys": len(database.machine.lengths),
        "tags": list(database.tag_names),
        "files": files,
    }
    text = json.dumps(manifest, indent=1, ensure_ascii=False)
    whole_file.write_text(place / MANIFEST, text + "\n")
    for file in before:
        file.unlink()


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
    folder: str, added: Sequence[Name], readings: Readings, removed: Set[str]
) -> None:
    """Save a new generation of a database with some names more and some fewer.

    It takes a minute for a million names: have another process do it.

    Args:
        folder: of the database.
        added: names, which replace those of the same text.
        readings: of the added names.
        removed: texts to leave out; added ones stay.
    """
    base = load(folder)
    gone = removed | {name.text for name in added}
    kept = (base.name(number) for number in range(len(base)))
    names = [*(name for name in kept if name.text not in gone), *added]
    save(build(names, {**base.read_readings(), **readings}, _Settled(base)), folder)


def load(folder: str) -> Database:
    """Map a database from disk, every file checked.

    Raises:
        ValueError: nothing there, another format or phoneme inventory, or a file that
            is cut off or changed, by name.
    """
    place = Path(folder)
    manifest = _read_manifest(place)
    files = manifest["files"]
    with ThreadPoolExecutor() as threads:
        loaded = threads.map(lambda facts: _open(place, facts), files.values())
        arrays = dict(zip(files, loaded))
    parts: dict[str, dict[str, np.ndarray]] = collections.defaultdict(dict)
    for name, array in arrays.items():
        part, _, field = name.rpartition(".")
        parts[part][field] = array
    machine = Automaton(**parts["machine"])
    return Database(
        machine=machine,
        windows=Windows(lengths=machine.lengths, **parts["windows"]),
        bigrams=PhonemeBigrams(**parts["bigrams"]),
        tag_names=tuple(manifest["tags"]),
        **parts[""],
    )


def _read_manifest(place: Path) -> dict[str, Any]:
    path = place / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf8"))
        found, inventory = manifest["format"], manifest["phonemes"]
    except (OSError, ValueError, KeyError, TypeError) as error:
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
    return manifest


def _open(place: Path, facts: dict[str, Any]) -> np.ndarray:
    """One file, mapped, if it is what the manifest says."""
    path = place / facts["file"]
    size = path.stat().st_size if path.is_file() else -1
    if size != facts["bytes"]:
        found = "missing" if size < 0 else f"{size} bytes long"
        raise ValueError(
            f"{path} is {found}, the manifest says {facts['bytes']} bytes; copy or "
            "build the database again."
        )
    if (found := _sum(path)) != facts["crc32"]:
        raise ValueError(
            f"{path} was changed: checksum {found:08x}, the manifest says "
            f"{facts['crc32']:08x}; copy or build the database again."
        )
    # A plain view: calls and slices of `np.memmap` itself cost microseconds each.
    return np.load(path, mmap_mode="r").view(np.ndarray)


def _sum(path: Path) -> int:
    """CRC-32 of a file, which is mapped and not read into memory."""
    return zlib.crc32(np.memmap(path, np.uint8, mode="r"))
