"""What users list: names with how they are said, how much they count, and whose."""

from __future__ import annotations

import dataclasses
import json
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from nim4_jax.text.phonemes import PHONEME_IDS

LIGHTEST, HEAVIEST = 2.0**-20, 2.0**20
"""Weights that a name may have: finite scores, and bounds that float32 holds."""

_COLUMNS = ("text", "pronunciation", "weight", "tag", "tenant")


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
        number = isinstance(self.weight, int | float)
        if not number or not LIGHTEST <= self.weight <= HEAVIEST:
            raise ValueError(
                f"weight {self.weight!r} of {self.text!r} must be a number from "
                f"{LIGHTEST:g} to {HEAVIEST:g}; 1 is the usual one."
            )
        for phoneme in self.pronunciation.split():
            if phoneme not in PHONEME_IDS:
                raise ValueError(
                    f"{phoneme!r} in the pronunciation of {self.text!r} is no phoneme; "
                    f"use names such as {', '.join(list(PHONEME_IDS)[1:6])}."
                )


def clean(text: str) -> str:
    """A name in Unicode NFC, without control characters, single spaces between."""
    plain = unicodedata.normalize("NFC", text)
    kept = (" " if unicodedata.category(c).startswith("C") else c for c in plain)
    return " ".join("".join(kept).split())


def read_names(path: str) -> Iterator[Name]:
    """The names of a list; empty lines are left out.

    - `.jsonl`: an object a line, keys as the fields of `Name`.
    - `.tsv`: text, pronunciation, weight, tag, tenant; the later ones may be missing.
    - anything else: a name a line.

    Raises:
        ValueError: no such file, or a line that does not fit, by number.
    """
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"no list of names at {path}; give a text, TSV or JSONL file.")
    parse = {".jsonl": _parse_json, ".tsv": _parse_tsv}.get(file.suffix, _parse_text)
    with file.open(encoding="utf8", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                values = parse(line.rstrip("\r\n"))
                values["text"] = clean(values["text"])
                if values["text"]:
                    yield Name(**values)
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise ValueError(f"{path}:{number}: {error}") from error


def _parse_text(line: str) -> dict:
    return {"text": line}


def _parse_tsv(line: str) -> dict:
    cells = line.split("\t")
    if len(cells) > len(_COLUMNS):
        raise ValueError(f"{len(cells)} columns; expected {', '.join(_COLUMNS)}.")
    values: dict = dict(zip(_COLUMNS, cells))
    weight = values.pop("weight", "").strip()
    return {**values, "weight": float(weight)} if weight else values


def _parse_json(line: str) -> dict:
    values = json.loads(line)
    if not isinstance(values, dict) or not isinstance(values.get("text"), str):
        raise ValueError('expected an object with a "text".')
    if unknown := sorted(values.keys() - set(_COLUMNS)):
        raise ValueError(f"unknown keys {unknown}; known are {list(_COLUMNS)}.")
    return values
