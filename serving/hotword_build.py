"""Hotword databases made of a list of names: pronounced, counted, saved by tenant."""

from __future__ import annotations

import collections
import concurrent.futures
import functools
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from nim4_jax import line_file
from nim4_jax.data.sources import opening
from nim4_jax.retrieval import database, names, phonetic_index
from nim4_jax.retrieval.chance import PhonemeTrigrams
from nim4_jax.retrieval.gate import LATTICE, SCANN, Gate
from nim4_jax.retrieval.names import Name
from nim4_jax.retrieval.pronunciation import pronounce

_PIECE = 500


_SHOWN = 10


_TEXTS = "bundled:commands:train"


def _pronounce_all(piece: Sequence[Name]) -> list[tuple[bytes, ...]]:
    return [pronounce(name) for name in piece]


def _spread(listed: Sequence[Name], workers: int) -> Iterator[tuple[bytes, ...]]:
    """Readings of the names, in their order."""
    pieces = [listed[i : i + _PIECE] for i in range(0, len(listed), _PIECE)]
    if workers == 1 or len(pieces) < 2:
        for piece in pieces:
            yield from _pronounce_all(piece)
        return
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, context) as pool:
        for readings in pool.map(_pronounce_all, pieces):
            yield from readings


def _read_sentences(place: str) -> Iterator[str]:
    if os.path.isfile(place) and not place.endswith((".json", ".jsonl")):
        yield from (line for _, line in line_file.read(place))
        return
    records = opening.open_source(place)
    for index in range(len(records)):
        yield records[index]["text"]


@functools.lru_cache(maxsize=1)
def learn_background() -> PhonemeTrigrams:
    """How often phonemes follow each other in the ordinary sentences of the package."""
    return PhonemeTrigrams(_read_sentences(_TEXTS))


def _known_readings(folder: str) -> dict[str, tuple[bytes, ...]]:
    """What an earlier build into the folder has pronounced."""
    try:
        return database.load(folder).read_readings()
    except ValueError:
        return {}


def find_folders(out: str, tenants: Sequence[str]) -> dict[str, Path]:
    """Folder of each tenant's database; "" is everybody's.

    Raises:
        ValueError: a tenant's name that is no name of a folder.
    """
    for tenant in tenants:
        if tenant != os.path.basename(tenant) or tenant in (".", ".."):
            raise ValueError(f"tenant {tenant!r} cannot be the name of a folder.")
    own = {tenant: Path(out, "tenants", tenant) for tenant in tenants if tenant}
    return {"": Path(out), **own}


def find_tenants(out: str) -> list[str]:
    """Tenants who have a database."""
    kept = Path(out).glob(f"tenants/*/{database.MANIFEST}")
    return sorted(file.parent.name for file in kept)


def run(
    path: str, out: str, text: str, workers: int, near: str = LATTICE
) -> dict[str, database.Database]:
    """Build everybody's database and one for each tenant of the list.

    A tenant who is no longer listed has an empty one from then on.

    Args:
        path: list of names.
        out: folder of everybody's database.
        text: ordinary sentences, a source or a text file.
        workers: processes that pronounce.
        near: SCANN: with its index.

    Returns:
        Database of each tenant, "" for everybody's.

    Raises:
        ValueError: an unusable list, tenant or text.
    """
    listed: dict[str, list[Name]] = collections.defaultdict(list)
    for name in names.read_names(path):
        listed[name.tenant].append(name)
    folders = find_folders(out, sorted({*listed, *find_tenants(out)}))
    return {
        tenant: build(listed.get(tenant, []), str(folder), text, workers, near)
        for tenant, folder in folders.items()
    }


def add_indexes(out: str) -> None:
    """ScaNN's index for everybody's database and each tenant's, where it is missing.

    Raises:
        ValueError: no sound database there.
    """
    for folder in find_folders(out, ["", *find_tenants(out)]).values():
        database.index_folder(str(folder))
        print(f"{folder}: has {_tell_index()}")


def _tell_index() -> str:
    exact = "every window compared, since the scann package is not installed"
    return "ScaNN's index" if phonetic_index.has_scann() else exact


def build(
    listed: Sequence[Name],
    folder: str,
    text: str = _TEXTS,
    workers: int = 1,
    near: str = LATTICE,
) -> database.Database:
    """Pronounce the names of one tenant, save their database, and say what came of it.

    Raises:
        ValueError: an unusable text.
    """
    readings = pronounce_new(listed, _known_readings(folder), workers)
    own = text != _TEXTS
    trigrams = PhonemeTrigrams(_read_sentences(text)) if own else learn_background()
    base = database.build(listed, readings, trigrams)
    if near == SCANN:
        base = database.add_index(base)
    database.save(base, folder)
    silent = [name.text for name in listed if not readings[name.text]]
    _report(folder, listed, base, silent)
    return base


def pronounce_new(
    listed: Sequence[Name], known: dict[str, tuple[bytes, ...]], workers: int = 1
) -> dict[str, tuple[bytes, ...]]:
    """Readings by text, of which only new ones are worked out.

    A text that is listed several times has the readings of all its lines: a line that
    cannot be pronounced hides no other.
    """
    told = {name.text for name in listed if name.pronunciation}
    fresh = {
        (name.text, name.pronunciation): name
        for name in listed
        if name.text in told or name.text not in known
    }
    spoken = _spread(list(fresh.values()), workers)
    progress = tqdm(spoken, "pronouncing", len(fresh), unit="name", disable=None)
    found: dict[str, dict[bytes, None]] = {}
    for (text, _), own in zip(fresh, progress):
        found.setdefault(text, {}).update(dict.fromkeys(own))
    return {**known, **{text: tuple(own) for text, own in found.items()}}


def _report(
    folder: str, listed: Sequence[Name], base: database.Database, silent: list[str]
) -> None:
    """Counts, what was left out, and the names most often heard by chance."""
    twice = len(listed) - len({name.text for name in listed})
    size = base.nbytes / max(len(base), 1)
    print(
        f"{folder}: {len(base):,} names under {len(base.machine.lengths):,} keys, "
        f"{size:.0f} bytes a name; {twice:,} listed twice; "
        f"{len(silent):,} that cannot be pronounced, left out: {silent[:_SHOWN]}"
    )
    gate = Gate()
    held = int((~base.allow(gate)).sum())
    print(
        f"  {held:,} keys too short or too common to give hints: "
        f"{gate.false_per_minute:g} false ones a minute may be expected of all"
    )
    if base.index is not None:
        print(f"  near matches also by {_tell_index()}")
    worst = base.chance.argsort()[: -_SHOWN - 1 : -1]
    for key in worst:
        texts = ", ".join(name.text for name in base.names_of(int(key))[:3])
        print(f"  {base.chance[key]:8.2f} by chance an hour: {texts}")
