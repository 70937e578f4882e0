"""A hotword list at one moment, and what a client must know of it to change it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from nim4_jax.retrieval.database import Database
from nim4_jax.retrieval.layer import Served
from nim4_jax.serving.server import hotword_builder
from nim4_jax.serving.server.errors import ServeError
from nim4_jax.serving.server.hotword_messages import (
    KnownName,
    ListFacts,
    NamesPage,
    Stored,
)


@dataclasses.dataclass(frozen=True, eq=False)
class ListVersion:
    """A list at one moment.

    Attributes:
        facts: what clients are told.
        served: the names.
        stored: what is on disk; None for lists of the settings.
    """

    facts: ListFacts
    served: Served
    stored: Stored | None = None

    @property
    def etag(self) -> str:
        """Of this version; "" for lists of the settings."""
        return self.facts.etag

    def read_page(self, start: int, limit: int) -> NamesPage:
        """Some of its names, in no order that means anything."""
        found: list[KnownName] = []
        served, number = self.served, start
        base, added = served.base.database, served.added.database
        while len(found) < limit and number < len(base) + len(added):
            inside = number < len(base)
            name = base.name(number) if inside else added.name(number - len(base))
            if not (inside and name.text in served.removed):
                own = KnownName(text=name.text, weight=name.weight, tag=name.tag)
                found.append(own)
            number += 1
        more = number < len(base) + len(added)
        return NamesPage(data=tuple(found), next=number if more else None)


@dataclasses.dataclass(frozen=True)
class Condition:
    """What a client knows of the list that it changes.

    Attributes:
        match: versions of which it must be one; None: any, or none.
        exists: whether it must be there.
        absent: whether it must not.
    """

    match: frozenset[str] | None = None
    exists: bool = False
    absent: bool = False

    def check(self, before: ListVersion | None) -> None:
        """Compare with what is there.

        Raises:
            ServeError: 412.
        """
        if self.absent and before is not None:
            raise ServeError(
                412, "list_exists", "there is such a list.", param="If-None-Match"
            )
        if (self.exists or self.match is not None) and before is None:
            raise ServeError(
                412, "version_mismatch", "there is no such list.", param="If-Match"
            )
        if self.match is not None and before and before.etag not in self.match:
            raise ServeError(
                412,
                "version_mismatch",
                f"the list is at {before.etag} by now; read it and change it anew.",
                param="If-Match",
            )


def make_version(stored: Stored, bases: Sequence[Database]) -> ListVersion:
    """A version of a client's list."""
    facts = ListFacts(
        id=stored.name,
        version=stored.version,
        etag=stored.etag,
        created=stored.created,
        updated=stored.updated,
        statistics=stored.made.statistics,
        change=stored.made.change,
    )
    served = Served.of(*bases, removed=frozenset(stored.made.removed))
    return ListVersion(facts, served, stored)


def share(name: str, base: Database) -> ListVersion:
    """A list of the settings."""
    statistics = hotword_builder.describe([(base, frozenset())])
    facts = ListFacts(id=name, version=0, shared=True, statistics=statistics)
    return ListVersion(facts, Served.of(base))
