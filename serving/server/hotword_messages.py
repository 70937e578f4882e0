"""What is said about hotword lists: bodies of requests, answers, and what is stored."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import pydantic

from nim4_jax.retrieval.names import HEAVIEST, LIGHTEST
from nim4_jax.serving.server.errors import ServeError

LONGEST_NAME = 256
"""Characters of a name."""
MOST_LISTS = 8
"""Lists that one request may name."""
FORMS = ("json", "txt", "tsv", "csv", "jsonl")
"""Of a body: JSON, or what `nim4 build_hotwords` reads."""
NAME = re.compile("[a-z0-9][a-z0-9._-]{0,63}")
"""Of a list: what is the name of a folder on every disk."""

MOST_KEYWORDS = 1_000
"""Names that one request may send."""


def _split_lists(given: Any) -> Any:
    """Names of lists; they may be parted by commas, in forms and addresses."""
    parts = (given,) if isinstance(given, str) else given or ()
    if not isinstance(parts, list | tuple) or not all(
        isinstance(part, str) for part in parts
    ):
        return given
    return tuple(own.strip() for part in parts for own in part.split(",") if own)


ListNames = Annotated[
    tuple[Annotated[str, pydantic.Field(max_length=64)], ...],
    pydantic.BeforeValidator(_split_lists),
    pydantic.Field(max_length=MOST_LISTS),
]
"""Lists of the server that a request names."""
Text = Annotated[str, pydantic.Field(max_length=LONGEST_NAME)]
Keywords = Annotated[tuple[Text, ...], pydantic.Field(max_length=MOST_KEYWORDS)]
"""Names that a request sends."""


class _Message(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)


class NewName(_Message):
    """A name as clients list it.

    Attributes:
        text: as it shall be written.
        weight: factor on its score.
        tag: of whatever kind the client sorts names by.
        pronunciation: phonemes with spaces between; empty: from the text.
    """

    text: Text
    weight: float = pydantic.Field(default=1.0, ge=LIGHTEST, le=HEAVIEST)
    tag: str = pydantic.Field(default="", max_length=64)
    pronunciation: str = pydantic.Field(default="", max_length=1024)


class Names(_Message):
    """All names of a list: PUT."""

    names: tuple[Text | NewName, ...]


class Change(_Message):
    """Names that come and texts that go, in one step: PATCH."""

    add: tuple[Text | NewName, ...] = ()
    remove: tuple[Text, ...] = ()


class WorstName(_Message):
    """A name that is often heard where nobody said it.

    Attributes:
        text: of the name.
        per_hour: how often its sounds are expected in an hour of ordinary speech.
        found: whether it may still be a hint; too common ones are not looked for.
    """

    text: str
    per_hour: float
    found: bool


class Statistics(_Message):
    """What a list is made of.

    Attributes:
        names: that it holds.
        sounds: different ones, several of a name among them.
        bytes: of its database.
        too_common: sounds too short or too common to be looked for.
        false_hits_per_hour: expected by chance of those that are looked for exactly.
        worst: names most often heard by chance, the worst first.
    """

    names: int
    sounds: int
    bytes: int
    too_common: int
    false_hits_per_hour: float
    worst: tuple[WorstName, ...] = ()


class LastChange(_Message):
    """What the last request did.

    Attributes:
        added: names that are new, or have another weight, tag or pronunciation.
        removed: names that are gone.
        unknown: texts to be removed that were not there.
        silent: names that cannot be pronounced, and were left out.
        silent_texts: the first of them.
    """

    added: int = 0
    removed: int = 0
    unknown: int = 0
    silent: int = 0
    silent_texts: tuple[str, ...] = ()


class Made(_Message):
    """What a worker has made: folders with databases, and what is in them.

    Attributes:
        base: folder of most names.
        added: folder of names that came since; "" for none.
        removed: texts of the base that do not count.
        statistics: of all of them.
        change: that was made.
    """

    base: str
    added: str = ""
    removed: tuple[str, ...] = ()
    statistics: Statistics
    change: LastChange = LastChange()


class Stored(_Message):
    """A list on disk.

    Attributes:
        format: of this file.
        tenant: whose it is.
        name: of the list.
        key: drawn when it was created, so that no other list has its versions.
        version: from 1.
        created: Unix time, s.
        updated: Unix time, s.
        made: its content.
    """

    format: Literal[1] = 1
    tenant: str
    name: str
    key: str
    version: int
    created: int
    updated: int
    made: Made

    @property
    def etag(self) -> str:
        """Names this version of this list, without quotes."""
        return f"{self.version}-{self.key}"


class ListFacts(_Message):
    """A list as clients see it.

    Attributes:
        id: its name.
        version: from 1; 0 of lists in the server's settings.
        etag: for `If-Match`.
        shared: whether it is in the server's settings, for everybody.
        created: Unix time, s.
        updated: Unix time, s.
        statistics: see the class.
        change: the last one.
    """

    id: str
    object: Literal["hotword_list"] = "hotword_list"
    version: int
    etag: str = ""
    shared: bool = False
    created: int = 0
    updated: int = 0
    statistics: Statistics
    change: LastChange = LastChange()


class Listing(_Message):
    """All lists that a client may name."""

    object: Literal["list"] = "list"
    data: tuple[ListFacts, ...]


class KnownName(_Message):
    """A name of a list."""

    text: str
    weight: float
    tag: str


class NamesPage(_Message):
    """Some names of a list.

    Attributes:
        data: names.
        next: `start` of the next page; None behind the last.
    """

    object: Literal["list"] = "list"
    data: tuple[KnownName, ...]
    next: int | None


class Deleted(_Message):
    """A list is gone."""

    id: str
    object: Literal["hotword_list"] = "hotword_list"
    deleted: Literal[True] = True


class PageQuery(_Message):
    """Which names of a list."""

    start: int = pydantic.Field(default=0, ge=0)
    limit: int = pydantic.Field(default=1_000, ge=1, le=1_000)


def explain(error: pydantic.ValidationError) -> ServeError:
    """The first thing that is wrong with a body."""
    first = error.errors(include_url=False, include_input=False)[0]
    # Of a union the names of its members are in the place: clients know none of them.
    parts = (Names, Change, NewName, PageQuery)
    known = {field for part in parts for field in part.model_fields}
    place = [part for part in first["loc"] if isinstance(part, int) or part in known]
    param = ".".join(map(str, place)) or "body"
    codes = {
        "missing": "missing_required_parameter",
        "extra_forbidden": "unknown_parameter",
        "json_invalid": "invalid_json",
    }
    code = codes.get(first["type"], "invalid_value")
    if code == "unknown_parameter":
        param = str(first["loc"][-1])[:64]
    return ServeError(400, code, f"{param}: {first['msg']}.", param=param)
