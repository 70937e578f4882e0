"""Lists of hotwords as users write them: names, pronunciations, weights, tenants."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from nim4_jax import line_file
from nim4_jax.text.phonemes import PHONEME_IDS

LIGHTEST, HEAVIEST = 2.0**-20, 2.0**20
"""Weights that a name may have: finite scores, and bounds that float32 holds."""

_COLUMNS = ("text", "pronunciation", "weight", "tag", "tenant")
_HEADERS = {column: column for column in _COLUMNS} | {
    "name": "text",
    "word": "text",
    "phrase": "text",
    "keyword": "text",
    "hotword": "text",
    "boost": "weight",
    "score": "weight",
}
"""What a column may be called in a header line."""
_LONE_HEADERS = ("text", "hotword", "keyword")
"""What alone in a first line is a header and not a name."""
_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?|\.[0-9]+")
_BOOSTED = re.compile(rf"(.*\S)\s+:({_NUMBER.pattern})\s*")
"""A name with its weight, as sherpa-onnx lists them: NIO House :2.0"""


@dataclasses.dataclass(frozen=True)
class Name:
    """One entry of a list.

    Attributes:
        text: as it shall be written.
        pronunciation: names of phonemes with spaces between; empty: from the text.
        weight: factor on its score, LIGHTEST … HEAVIEST.
        tag: of whatever kind the user sorts names by.
        tenant: who alone may find it; empty: everybody.
    """

    text: str
    pronunciation: str = ""
    weight: float = 1.0
    tag: str = ""
    tenant: str = ""

    def __post_init__(self):
        if not isinstance(self.text, str) or not self.text:
            raise ValueError(f"a name needs a text, got {self.text!r}.")
        if not isinstance(self.weight, int | float) or isinstance(self.weight, bool):
            raise ValueError(
                f"weight {self.weight!r} of {self.text!r} is a {_describe(self.weight)}"
                "; expected a number."
            )
        for field in ("pronunciation", "tag", "tenant"):
            value = getattr(self, field)
            if not isinstance(value, str):
                raise ValueError(
                    f"{field} {value!r} of {self.text!r} is a {_describe(value)}; "
                    "expected a string."
                )
        if not LIGHTEST <= self.weight <= HEAVIEST:
            raise ValueError(
                f"weight {self.weight!r} of {self.text!r} must be from {LIGHTEST:g} to "
                f"{HEAVIEST:g}; 1 is the usual one."
            )
        for phoneme in self.pronunciation.split():
            if phoneme not in PHONEME_IDS:
                raise ValueError(
                    f"{phoneme!r} in the pronunciation of {self.text!r} is no phoneme; "
                    f"use names such as {', '.join(list(PHONEME_IDS)[1:6])}."
                )


def _describe(value: object) -> str:
    """The type of a value, as JSON calls it."""
    names = {str: "string", list: "list", dict: "object", bool: "boolean"}
    return "null" if value is None else names.get(type(value), "number")


def clean(text: str) -> str:
    """A name in Unicode NFC, on one line, single spaces between.

    What takes no room (zero-width spaces, soft hyphens, byte order marks) is left out;
    control characters and halves of surrogate pairs are spaces.
    """
    plain = unicodedata.normalize("NFC", text)
    kept = (
        " " if unicodedata.category(c).startswith("C") else c
        for c in plain
        if unicodedata.category(c) != "Cf"
    )
    return " ".join("".join(kept).split())


def read_names(path: str) -> Iterator[Name]:
    """The names of a list; empty lines are left out.

    - `.jsonl`: an object a line, keys as the fields of `Name`.
    - `.tsv`, `.csv`: by the columns of a header line, or without one text,
      pronunciation, weight, tag, tenant, of which the later ones may be missing; two
      columns, of which the second is a number, are text and weight. What is between
      the columns of a `.csv`, a comma, semicolon or tab, its first line tells.
    - anything else: a name a line, which may have a weight behind it: `NAME :3.5`.

    Raises:
        ValueError: no such file, one that is not UTF-8 (or UTF-16 by its mark), or a
            line that does not fit, by number.
        OSError: the file cannot be read.
    """
    file = Path(path)
    if not file.exists() or file.is_dir():
        raise ValueError(
            f"no list of names at {path}; give a text, TSV, CSV or JSONL file."
        )
    parse = _choose_parser(file.suffix.lower())
    for number, line in line_file.read(path):
        if not line.strip():
            continue
        try:
            name = _make(parse(line))
        except (ValueError, RecursionError, csv.Error) as error:
            raise ValueError(f"{path}:{number}: {error}") from error
        if name is not None:
            yield name


def _make(values: dict | None) -> Name | None:
    """The name that a line lists; None for a header line, or nothing visible."""
    if values is None:
        return None
    for field in ("text", "tag", "tenant"):
        if isinstance(values.get(field), str):
            values[field] = clean(values[field])
    return Name(**values) if values["text"] else None


def _choose_parser(suffix: str) -> Callable[[str], dict | None]:
    if suffix == ".jsonl":
        return _parse_json
    if suffix == ".tsv":
        return _Table(lambda line: line.split("\t"))
    if suffix == ".csv":
        return _Table(_CommaCutter())
    return _parse_text


def _parse_text(line: str) -> dict:
    boosted = _BOOSTED.fullmatch(line)
    if boosted:
        return {"text": boosted[1], "weight": float(boosted[2])}
    return {"text": line}


class _CommaCutter:
    """The cells of a line of CSV; the first line tells what is between them."""

    def __init__(self):
        self._between = ""

    def __call__(self, line: str) -> list[str]:
        # Of as many commas as semicolons the commas count.
        self._between = self._between or max(",;\t", key=line.count)
        return next(csv.reader([line], delimiter=self._between, strict=True))


class _Table:
    """The lines of a table, in their order, as fields of `Name`."""

    def __init__(self, cut: Callable[[str], list[str]]):
        """Begin.

        Args:
            cut: a line into cells.
        """
        self._cut = cut
        self._columns: Sequence[str] = ()

    def __call__(self, line: str) -> dict | None:
        """Fields of a line; None for the header."""
        cells = [cell.strip() for cell in self._cut(line)]
        while len(cells) > 1 and not cells[-1]:
            cells.pop()
        if not self._columns:
            header = _read_header(cells)
            self._columns = header or _COLUMNS
            if header:
                return None
        columns = self._columns
        if columns == _COLUMNS and len(cells) == 2 and _NUMBER.fullmatch(cells[1]):
            columns = ("text", "weight")
        if len(cells) > len(columns):
            raise ValueError(f"{len(cells)} columns; expected {', '.join(columns)}.")
        values: dict = dict(zip(columns, cells))
        weight = values.pop("weight", "")
        values.setdefault("text", "")
        return {**values, "weight": float(weight)} if weight else values


def _read_header(cells: Sequence[str]) -> tuple[str, ...]:
    """The columns that a first line names; () if it is no header.

    Raises:
        ValueError: a header with a column that is unknown, or there twice.
    """
    named = [_HEADERS.get(cell.lower(), "") for cell in cells]
    if len(cells) == 1:
        return ("text",) if cells[0].lower() in _LONE_HEADERS else ()
    if "text" not in named or not any(column not in ("", "text") for column in named):
        return ()
    unknown = [cell for cell, column in zip(cells, named) if not column]
    if unknown or len(set(named)) < len(named):
        raise ValueError(
            f"a header with the columns {list(cells)}; known are "
            f"{', '.join(_HEADERS)}, each once."
        )
    return tuple(named)


def _parse_json(line: str) -> dict:
    values = json.loads(line)
    if not isinstance(values, dict) or not isinstance(values.get("text"), str):
        raise ValueError('expected an object with a "text".')
    if unknown := sorted(values.keys() - set(_COLUMNS)):
        raise ValueError(f"unknown keys {unknown}; known are {list(_COLUMNS)}.")
    return {key: value for key, value in values.items() if value is not None}
