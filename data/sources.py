"""Where examples come from: manifests, TFDS data sets, bundled sets, no speech at all.

A source is a random-access sequence of records:

    audio         path, encoded bytes, or samples
    sample_rate   of samples, Hz; None where the audio itself tells
    text          transcript
    lang          "en", "zh", "mixed" or "auto"
    keywords      tuple of strings, entities that occur in the transcript
    id            name of the utterance
    duration      seconds, None where unknown
    offset        s, where a segment of the audio begins, None for all of it
    channel       which of several, as `channels` describes: "mix", "left", "right", 0 …
    origin        "file:line" or "data set:index", for messages

A manifest is a JSON-lines file; `audio` (or `audio_filepath`; relative to the manifest)
and `text` are required; `lang`, `duration`, `keywords`, `id`, `channel` and the segment
(`timings.py`) are optional, other keys free. It is UTF-8, or UTF-16 by its byte order
mark. Halves of surrogate pairs in a text become U+FFFD.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qsl

import numpy as np

from nim4_jax import line_file
from nim4_jax.data import channels, timings

Record = dict[str, Any]

LANGS = ("en", "zh", "mixed", "auto")

# name[/config][:version]:split, where a split may itself hold a colon: train[:10%]
_TFDS_TARGET = re.compile(r"([^:]+(?::[0-9]+\.[0-9]+\.[0-9]+)?):([^:]+(?:\[.*)?)")


class Source(Protocol):
    """A random-access sequence of records."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...


def open_source(spec: str) -> Source:
    """Open a source by its specification.

    - `path/to/manifest.jsonl[?key=value&key=a|b]`: the records whose keys have one of
      the values; all conditions must hold. `?split=train&lang=en|zh`.
    - `tfds:name[/config][:version]:split[?lang=en&data_dir=…]`: a prepared TFDS data
      set with an audio and a text feature; nothing is ever downloaded.
    - `bundled:name:split[?lang=zh|mixed]`: a set that ships with the project, or the
      records of it that a manifest's selection would take.
    - `nonspeech:COUNT[?seed=S&kinds=silence|vehicle|music]`: synthetic audio without
      words, always the same, with the text "": a set to evaluate on. For training
      there is `DataConfig.nonspeech_share`.
    - `noisy:SNR[+KIND…][@NOISE]:SOURCE`, `room:RT60[+DISTANCE]:SOURCE`,
      `level:DB:SOURCE`, `telephone:LAW:SOURCE`, `joined:SECONDS:SOURCE`: another source
      in noise, in rooms, louder or quieter, over the telephone, or its utterances
      joined (conditions.py); sets to evaluate on.

    Raises:
        ValueError: unknown form, no such file, a bad line (named), nothing selected.
    """
    if spec.startswith("tfds:"):
        return _open_tfds(spec)
    if spec.startswith("nonspeech:"):
        return _open_nonspeech(spec)
    if spec.startswith(("noisy:", "room:", "level:", "telephone:", "joined:")):
        # Imported on demand: conditions.py builds on this module.
        from nim4_jax.data import conditions

        return conditions.open_condition(spec)
    if spec.startswith("bundled:"):
        # Imported on demand: the bundled sets build on this module's records.
        from nim4_jax.data import builders

        target, _, query = spec.removeprefix("bundled:").partition("?")
        name, _, split = target.partition(":")
        records = builders.open_bundled(name, split)
        return Selection(records, spec, query) if query else records
    path, _, query = spec.partition("?")
    if not path.endswith((".jsonl", ".json")):
        raise ValueError(
            f"unknown source {spec!r}; expected 'manifest.jsonl[?key=value]', "
            "'tfds:name[/config]:split', 'bundled:name:split', 'nonspeech:COUNT', "
            "'noisy:SNR:SOURCE', 'room:RT60:SOURCE', 'level:DB:SOURCE', "
            "'telephone:LAW:SOURCE' or 'joined:SECONDS:SOURCE'"
        )
    return Manifest(path, query)


def describe(source: Source, index: int) -> Record:
    """A record for all but its audio, which a source that makes audio may leave out."""
    describe_record = getattr(source, "describe", None)
    return describe_record(index) if describe_record else source[index]


def carries_keywords(source: Source) -> bool:
    """Whether the records of a source bring keywords.

    Then they count as complete: a record without any says none. A manifest carries
    them where any record has the key, other sources where any record has a keyword.
    """
    known = getattr(source, "has_keywords", None)
    if known is not None:
        return known
    return any(describe(source, index)["keywords"] for index in range(len(source)))


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
        conditions = _parse_query(query, path)
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

    def __getitem__(self, index: int) -> Record:
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

    def __init__(self, source: Source, spec: str, query: str):
        """Read every record once.

        Raises:
            ValueError: nothing is selected.
        """
        conditions = _parse_query(query, spec)
        self._source = source
        rows = [(index, source[index]) for index in range(len(source))]
        self._indices = [i for i, row in rows if _matches(row, conditions)]
        if not self._indices:
            raise ValueError(_describe_empty(spec, query, conditions, rows))

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Record:
        return self._source[self._indices[index]]


def _parse_query(query: str, path: str) -> dict[str, set[str]]:
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
    if row.get("lang", "auto") not in LANGS:
        raise ValueError(
            f"{origin}: unknown lang {row['lang']!r}; choose from {', '.join(LANGS)}"
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
    number = isinstance(duration, (int, float)) and not isinstance(duration, bool)
    # False for NaN, infinity, and integers beyond any float.
    if duration is not None and not (number and 0 <= duration <= sys.float_info.max):
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


def _open_tfds(spec: str) -> Source:
    # Imported on demand: TFDS costs seconds of start-up that manifests need not pay.
    from nim4_jax.data.tfds_reader import TfdsSource

    target, _, query = spec.removeprefix("tfds:").partition("?")
    parsed = _TFDS_TARGET.fullmatch(target)
    conditions = _parse_query(query, spec)
    options = {key: "|".join(values) for key, values in conditions.items()}
    if not parsed or set(options) - {"lang", "data_dir"}:
        raise ValueError(
            f"cannot read the source {spec!r}; expected "
            "'tfds:name[/config][:version]:split[?lang=en&data_dir=…]'"
        )
    if options.get("lang", "auto") not in LANGS:
        raise ValueError(f"{spec}: unknown lang; choose from {', '.join(LANGS)}")
    return TfdsSource(parsed[1], parsed[2], **options)


def _open_nonspeech(spec: str) -> Source:
    # Imported on demand: nonspeech.py builds on this module's records.
    from nim4_jax.data import nonspeech

    count, _, query = spec.removeprefix("nonspeech:").partition("?")
    conditions = _parse_query(query, spec)
    seeds = conditions.pop("seed", {"0"})
    kinds = conditions.pop("kinds", set(nonspeech.SYNTHETIC))
    numbers = [count, *seeds]
    if conditions or len(numbers) != 2 or not all(n.isdecimal() for n in numbers):
        raise ValueError(
            f"cannot read the source {spec!r}; expected "
            "'nonspeech:COUNT[?seed=S&kinds=silence|vehicle|music]'"
        )
    # In the order of the list, however the specification puts them.
    ordered = [kind for kind in nonspeech.SYNTHETIC if kind in kinds]
    unknown = sorted(kinds - set(ordered))
    return nonspeech.Fixed(int(count), int(seeds.pop()), [*ordered, *unknown])


class Corpus:
    """Several sources as one sequence; an index is an example's global id."""

    def __init__(self, sources: Sequence[Source]):
        self.sources = tuple(sources)
        self.starts = np.cumsum([0, *(len(source) for source in self.sources)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, index: int) -> Record:
        source, place = self._locate(index)
        return source[place]

    def describe(self, index: int) -> Record:
        """A record for all but its audio, see `describe`."""
        return describe(*self._locate(index))

    def find_source(self, index: int) -> int:
        """Number of the source that an example is of."""
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        return int(np.searchsorted(self.starts, index, side="right")) - 1

    def _locate(self, index: int) -> tuple[Source, int]:
        number = self.find_source(index)
        return self.sources[number], index - int(self.starts[number])

    def group(self, number: int) -> np.ndarray:
        """Global ids of the examples of one source, int64."""
        return np.arange(self.starts[number], self.starts[number + 1])


def open_sources(
    specs: Sequence[str | tuple[str, float]],
) -> tuple[Corpus, list[float]]:
    """Open a mixture.

    Args:
        specs: specifications for `open_source`, each alone (weight 1) or with its
            weight: the passes over that source in one epoch, any number > 0.

    Returns:
        The sources as one corpus, and their weights.
    """
    if not specs or isinstance(specs, str):
        raise ValueError(f"got sources {specs!r}; expected a list of specifications")
    opened, weights = [], []
    for entry in specs:
        spec, weight = (entry, 1.0) if isinstance(entry, str) else entry
        if not 0 < weight < float("inf"):
            raise ValueError(f"source {spec!r} has weight {weight}; expected > 0")
        opened.append(open_source(spec))
        weights.append(float(weight))
    return Corpus(opened), weights
