"""Hotword lists made of what clients send, in a process of its own.

python -m nim4_jax.serving.server.hotword_builder MIB      a JSON line in, one out

Neither reading nor building a million names stops the server's threads. What is made
stands in a folder of its own, and counts when the server says so (`hotword_store`).
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import re
import resource
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pydantic

from nim4_jax.retrieval import database, names
from nim4_jax.retrieval.database import Database
from nim4_jax.retrieval.gate import Gate
from nim4_jax.retrieval.names import Name
from nim4_jax.serving import hotword_build
from nim4_jax.serving.server import hotword_messages
from nim4_jax.serving.server.errors import SERVER, ServeError
from nim4_jax.serving.server.hotword_messages import (
    Change,
    LastChange,
    Made,
    Names,
    NewName,
    Statistics,
    WorstName,
)

SMALL = 10_000
"""Names of a list that is built anew at each change."""
_SHARE = 50  # one name in so many may have come or gone before a list is built anew
_SHOWN = 10
_NICENESS = 10  # streams first
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LINE = re.compile(r"[^\n]*?:(\d+): (.*)", re.DOTALL)

Readings = dict[str, tuple[bytes, ...]]


class Job(pydantic.BaseModel):
    """What a worker is asked for.

    Attributes:
        source: file with the body of a request.
        form: of the body, one of `hotword_messages.FORMS`.
        folder: of the list.
        out: folder in it, for what is made.
        most: names that the list may have.
        before: what is changed; None: the body has all names.
    """

    source: str
    form: str
    folder: str
    out: str
    most: int
    before: Made | None = None


def work(job: Job) -> Made:
    """Do a job.

    Raises:
        ServeError: what is wrong with the body.
        OSError, ValueError, MemoryError: what is wrong here.
    """
    if job.before is None:
        listed = list(read_names(job.source, job.form, job.most))
        return _replace(job, listed)
    try:
        change = Change.model_validate_json(Path(job.source).read_bytes())
    except pydantic.ValidationError as error:
        raise hotword_messages.explain(error) from None
    coming = [_make(given, f"add.{i}") for i, given in enumerate(change.add)]
    going = {text for text in map(names.clean, change.remove) if text}
    if both := going & {name.text for name in coming}:
        raise ServeError(
            400, "invalid_value", f"{min(both)!r} is to come and to go.", param="remove"
        )
    return _change(job, job.before, coming, going)


def read_names(path: str, form: str, most: int) -> Iterator[Name]:
    """Names of a body, cleaned.

    Raises:
        ServeError: one that is no name, by its place; or too many.
    """
    for count, name in enumerate(_read(path, form)):
        if count >= most:
            raise too_many(most)
        yield name


def too_many(most: int) -> ServeError:
    """More names than the client's list may have."""
    told = f"a list may have {most} names."
    return ServeError(413, "too_many_names", told, param="names")


def _read(path: str, form: str) -> Iterator[Name]:
    if form == "json":
        try:
            body = Names.model_validate_json(Path(path).read_bytes())
        except pydantic.ValidationError as error:
            raise hotword_messages.explain(error) from None
        for index, given in enumerate(body.names):
            yield _make(given, f"names.{index}")
        return
    try:
        for index, name in enumerate(names.read_names(path)):
            if len(name.text) > hotword_messages.LONGEST_NAME or name.tenant:
                told = "is longer" if not name.tenant else "has a tenant of its own"
                most = hotword_messages.LONGEST_NAME
                raise ServeError(
                    400,
                    "invalid_value",
                    f"name {index + 1} {told}; a name has {most} characters at most, "
                    "and whose it is the API key tells.",
                    param=f"names.{index}",
                )
            yield name
    except ValueError as error:  # its message begins with the path
        found = _LINE.fullmatch(str(error))
        told = f"line {found[1]}: {found[2]}" if found else "it is no list of names."
        raise ServeError(400, "invalid_value", told, param="names") from None


def _make(given: str | NewName, place: str) -> Name:
    """A name that was sent in JSON."""
    new = NewName(text=given) if isinstance(given, str) else given
    try:
        return Name(
            text=names.clean(new.text),
            pronunciation=new.pronunciation,
            weight=new.weight,
            tag=names.clean(new.tag),
        )
    except ValueError as error:
        raise ServeError(400, "invalid_value", str(error), param=place) from None


def _replace(job: Job, listed: Sequence[Name]) -> Made:
    """A list of these names and no others."""
    readings = hotword_build.pronounce_new(listed, {})
    base = database.build(listed, readings, hotword_build.learn_background())
    database.save(base, str(Path(job.folder, job.out)))
    change = _note(listed, readings, added=len(base))
    return Made(base=job.out, statistics=describe([(base, frozenset())]), change=change)


def _change(job: Job, before: Made, coming: Sequence[Name], going: set[str]) -> Made:
    """A list with some names more and some fewer.

    Few changes of a large list stand beside it: what streams find is the same.
    """
    base = database.load(str(Path(job.folder, before.base)))
    beside, readings = _read_all(job.folder, before.added)
    old, gone = dict(beside), set(before.removed)
    fresh = hotword_build.pronounce_new(coming, {})
    spoken = {name.text: name for name in coming if fresh[name.text]}
    inside = _find_texts(base, going | spoken.keys())
    # Names that nobody can say take nobody's place.
    beside = {text: name for text, name in beside.items() if text not in going}
    beside |= spoken
    removed = gone | (inside & (going | spoken.keys()))
    count = len(base) - len(removed) + len(beside)
    if count > job.most:
        raise too_many(job.most)
    known = (inside - gone) | old.keys()
    change = _note(
        coming,
        fresh,
        added=len(spoken),
        removed=len(going & known),
        unknown=len(going - known),
    )
    readings |= {text: fresh[text] for text in spoken}
    changes = len(beside) + len(removed)
    if len(base) <= SMALL or changes > max(SMALL // 10, len(base) // _SHARE):
        kept = (base.name(number) for number in range(len(base)))
        whole = [*(n for n in kept if n.text not in removed), *beside.values()]
        known_readings = {**base.read_readings(), **readings}
        made = _save(job, whole, known_readings)
        statistics = describe([(made, frozenset())])
        return Made(base=job.out, statistics=statistics, change=change)
    made = _save(job, beside.values(), readings)
    parts = [(base, frozenset(removed)), (made, frozenset[str]())]
    return Made(
        base=before.base,
        added=job.out,
        removed=tuple(sorted(removed)),
        statistics=describe(parts),
        change=change,
    )


def _save(job: Job, listed: Iterable[Name], readings: Readings) -> Database:
    made = database.build(listed, readings, hotword_build.learn_background())
    database.save(made, str(Path(job.folder, job.out)))
    return made


def _read_all(folder: str, place: str) -> tuple[dict[str, Name], Readings]:
    """Names of a small database by their texts, and their readings."""
    if not place:
        return {}, {}
    base = database.load(str(Path(folder, place)))
    listed = map(base.name, range(len(base)))
    return {name.text: name for name in listed}, base.read_readings()


def _find_texts(base: Database, wanted: Iterable[str]) -> set[str]:
    """Texts that a database has."""
    encoded = {text.encode("utf8") for text in wanted}
    whole, ends = base.text.tobytes(), base.offsets.tolist()
    held = (whole[begin:end] for begin, end in itertools.pairwise(ends))
    return {text.decode("utf8") for text in held if text in encoded}


def _note(coming: Sequence[Name], readings: Readings, **counts: int) -> LastChange:
    """What came of names that were sent."""
    silent = dict.fromkeys(name.text for name in coming if not readings[name.text])
    shown = tuple(list(silent)[:_SHOWN])
    return LastChange(silent=len(silent), silent_texts=shown, **counts)


def describe(parts: Sequence[tuple[Database, frozenset[str]]]) -> Statistics:
    """What databases hold together, but for some texts of each."""
    gate, ranked = Gate(), []
    allowed = [base.allow(gate) for base, _ in parts]
    for (base, gone), found in zip(parts, allowed):
        shown = 0
        for key in base.chance.argsort()[::-1].tolist():
            if shown == _SHOWN:
                break
            for name in base.names_of(key, 1, gone):
                often = round(float(base.chance[key]), 4)
                ranked.append(
                    WorstName(text=name.text, per_hour=often, found=bool(found[key]))
                )
                shown += 1
    ranked.sort(key=lambda name: -name.per_hour)
    pairs = list(zip(parts, allowed))
    expected = sum(float(base.chance[found].sum()) for (base, _), found in pairs)
    return Statistics(
        names=sum(len(base) - len(gone) for base, gone in parts),
        sounds=sum(len(base.chance) for base, _ in parts),
        bytes=sum(base.nbytes for base, _ in parts),
        too_common=sum(int((~found).sum()) for found in allowed),
        false_hits_per_hour=round(expected, 4),
        worst=tuple(ranked[:_SHOWN]),
    )


def no_space() -> ServeError:
    """The disk is full: 507; nothing has changed."""
    told = "the server's disk is full; the list is as it was."
    return ServeError(507, "no_space", told, kind=SERVER)


def explain(error: Exception) -> ServeError:
    """What a client is told: neither paths nor addresses."""
    if isinstance(error, ServeError):
        return error
    if isinstance(error, OSError) and error.errno in _FULL:
        return no_space()
    if isinstance(error, MemoryError):
        told = "the list takes more memory than there is for one."
        return ServeError(413, "list_too_large", told, param="names")
    told = f"the list could not be made ({type(error).__name__}); it is as it was."
    return ServeError(500, "server_error", told, kind=SERVER)


def answer(line: str) -> dict[str, Any]:
    """What comes of a job; what was begun for nothing is removed."""
    job = Job.model_validate_json(line)
    try:
        return {"made": work(job).model_dump()}
    except Exception as error:
        shutil.rmtree(Path(job.folder, job.out), ignore_errors=True)
        told = explain(error)
        return {"error": {"status": told.status, **told.describe()}}


def main() -> None:
    """The process."""
    os.nice(_NICENESS)
    for which, most in (
        (resource.RLIMIT_AS, int(sys.argv[1]) << 20),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(which)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(which, (most, hard))
    for line in sys.stdin:
        with contextlib.redirect_stdout(sys.stderr):
            told = answer(line)
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
