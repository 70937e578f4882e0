"""JSON-lines manifests as sources: a record a line, selected by keys and values."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import parse_qsl

from nim4_jax import line_file
from nim4_jax.data.audio import channels
from nim4_jax.data.sources import examples, timings


def open_manifest(spec: str) -> Manifest:
    """`path/to/manifest.jsonl[?key=value&key=a|b]`, see `opening.open_source`.

    Raises:
        ValueError: no such file, a bad line (named), nothing selected.
    """
    path, _, query = spec.partition("?")
    return Manifest(path, query)


class Manifest:
    """The selected records of a JSON-lines manifest.

    Attributes:
        path: of its file.
        has_keywords: see `carries_keywords`.
    """

    def __init__(self, path: str, query: str = ""):
        self.path = Path(path)
        if not self.path.is_file():
            raise ValueError(f"no manifest at {path}; give a JSON-lines file")
        conditions = parse_query(query, path)
        rows = []
        for number, line in line_file.read(self.path):
            if line.strip():
                rows.append((number, parse_line(line, f"{path}:{number}")))
        self._rows = [row for row in rows if _matches(row[1], conditions)]
        if not self._rows:
            raise ValueError(_describe_empty(path, query, conditions, rows))
        self.has_keywords = any("keywords" in row for _, row in self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> examples.Record:
        number, row = self._rows[index]
        offset, duration = timings.find_segment(row, f"{self.path}:{number}")
        return {
            "audio": str(self.path.parent / row["audio"]),
            "sample_rate": None,
            "text": row["text"],
            "lang": row.get("lang", "auto"),
            "keywords": tuple(row.get("keywords", ())),
            # A file's name may be of any bytes; its audio is found by all of them.
            "id": line_file.replace_surrogates(
                str(row.get("id", _name_utterance(row["audio"], offset)))
            ),
            "duration": duration,
            "offset": offset,
            "channel": row.get("channel", "mix"),
            "origin": f"{self.path}:{number}",
        }


class Selection:
    """The records of another source whose keys have the wanted values."""

    def __init__(self, source: examples.Source, spec: str, query: str):
        """Read every record once.

        Raises:
            ValueError: nothing is selected.
        """
        conditions = parse_query(query, spec)
        self._source = source
        rows = [(index, source[index]) for index in range(len(source))]
        self._indices = [i for i, row in rows if _matches(row, conditions)]
        if not self._indices:
            raise ValueError(_describe_empty(spec, query, conditions, rows))

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> examples.Record:
        return self._source[self._indices[index]]


def parse_query(query: str, path: str) -> dict[str, set[str]]:
    """`key=a|b&other=c` as {key: {a, b}, other: {c}}."""
    if not query:
        return {}
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True)
    except ValueError as error:
        raise ValueError(
            f"{path}: cannot read the selection {query!r}; "
            "expected 'key=value' or 'key=a|b', joined by '&'"
        ) from error
    return {key: set(value.split("|")) for key, value in pairs}


def _matches(row: dict, conditions: dict[str, set[str]]) -> bool:
    return all(
        key in row and str(row[key]) in values for key, values in conditions.items()
    )


def parse_line(line: str, origin: str) -> dict:
    """One manifest line, checked.

    Raises:
        ValueError: naming file and line.
    """
    row = line_file.parse_json(line, origin)
    if not isinstance(row, dict):
        raise ValueError(f"{origin}: got {type(row).__name__}, expected an object")
    if "audio_filepath" in row:
        row.setdefault("audio", row["audio_filepath"])
    for key in ("audio", "text"):
        if key not in row:
            raise ValueError(f"{origin}: the key {key!r} is missing; has {sorted(row)}")
        if not isinstance(row[key], str):
            raise ValueError(f"{origin}: {key!r} is {row[key]!r}, expected a string")
    if row.get("lang", "auto") not in examples.LANGS:
        raise ValueError(
            f"{origin}: unknown lang {row['lang']!r}; choose from "
            f"{', '.join(examples.LANGS)}"
        )
    _check_optional(row, origin)
    timings.find_segment(row, origin)
    if "\\u" in line:  # the only way in for halves of surrogate pairs
        row["text"] = line_file.replace_surrogates(row["text"])
        if "keywords" in row:
            clean = [line_file.replace_surrogates(word) for word in row["keywords"]]
            row["keywords"] = clean
    return row


def _name_utterance(path: str, offset: float | None) -> str:
    """A name for an utterance without one: segments of a recording differ."""
    stem = Path(path).stem
    return stem if offset is None else f"{stem}@{offset:g}"


def _check_optional(row: dict, origin: str) -> None:
    duration = row.get("duration")
    if duration is not None and not timings.is_seconds(duration):
        raise ValueError(
            f"{origin}: 'duration' is {duration!r}, expected seconds (a number ≥ 0)"
        )
    try:
        channels.check_choice(row.get("channel", "mix"))
    except ValueError as error:
        raise ValueError(f"{origin}: {error}") from error
    keywords = row.get("keywords", [])
    if not isinstance(keywords, list) or not all(isinstance(k, str) for k in keywords):
        raise ValueError(
            f"{origin}: 'keywords' is {keywords!r}, expected a list of strings"
        )


def _describe_empty(path: str, query: str, conditions: dict, rows: list) -> str:
    """Why a selection is empty: the values that each of its keys has."""
    if not rows:
        return f"{path}: the manifest has no record"
    known = []
    for key in conditions:
        values = sorted({str(row[key]) for _, row in rows if key in row})
        shown = ", ".join(values[:10]) + (", …" if len(values) > 10 else "")
        known.append(f"{key!r} has {shown or 'no value: no record has this key'}")
    return f"{path}: no record matches {query!r}; {'; '.join(known)}"
