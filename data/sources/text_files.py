"""Plain text files as sources: one sentence a line, with a held-out split.

`sentences.txt` has a text a line, `sentences.tsv` a tag, a tab and a text; either may
be `.gz` or `.xz`. They are UTF-8. A specification selects lines of a file:

    sentences.tsv.xz[?tag=novels|dialogues&split=train|dev|all&style=written|plain]

`split=train`, the default, leaves out one text in `HELD_OUT_SHARE`; `split=dev` holds
just those. A hash of the text's letters decides, so that no copy of a held-out text, in
other case, with other marks or in another file, is ever trained on. `style=written`,
the default, makes texts `written.write`'s.

A line that cannot be used is counted, and named; it ends nothing. Millions of lines
take little more memory than their bytes: they are one array, with the place where each
ends.
"""

from __future__ import annotations

import dataclasses
import gzip
import lzma
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Int, UInt8

from nim4_jax.data.sources import manifests
from nim4_jax.data.sources.skips import SkipReport
from nim4_jax.text import written

HELD_OUT_SHARE = 200
"""One text in so many is kept for measuring."""
SPLITS = ("train", "dev", "all")
STYLES = ("written", "plain")
ENDINGS = tuple(
    kind + packed for kind in (".txt", ".tsv") for packed in ("", ".gz", ".xz")
)

NOT_UTF8 = "not UTF-8"
NO_TAG = "no tab between tag and text"
NOT_READABLE = "signs that no voice reads"
EMPTY_LINE = "no text"
TOO_LONG = "longer than a sentence"

_SHOWN_TAGS = 50
_SHOWN = 80  # characters, or bytes, of a line in a message
_LONGEST = 4096  # bytes of a line
_MARK = b"\xef\xbb\xbf"


def is_text_file(spec: str) -> bool:
    """Whether a specification names a text file."""
    return spec.partition("?")[0].endswith(ENDINGS)


def is_held_out(text: str) -> bool:
    """Whether a text is kept for measuring: its letters and digits decide."""
    letters = "".join(filter(str.isalnum, text.casefold()))
    return zlib.crc32(letters.encode("utf8", "replace")) % HELD_OUT_SHARE == 0


@dataclasses.dataclass(frozen=True)
class _Selection:
    """What a specification asks for.

    Attributes:
        path: of the file.
        tags: of the lines; None for all.
        split: of SPLITS.
        style: of STYLES.
    """

    path: str
    tags: frozenset[str] | None
    split: str
    style: str

    @classmethod
    def parse(cls, spec: str) -> _Selection:
        """Read a specification.

        Raises:
            ValueError: no text file, or a key or value that is unknown.
        """
        path, _, query = spec.partition("?")
        if not is_text_file(spec):
            raise ValueError(
                f"{spec!r} is no text file; expected a name that ends in one of "
                f"{', '.join(ENDINGS)}"
            )
        wanted = manifests.parse_query(query, path)
        tags = wanted.pop("tag", None)
        split = _choose(wanted, "split", SPLITS, spec)
        style = _choose(wanted, "style", STYLES, spec)
        if wanted:
            raise ValueError(
                f"{spec}: {sorted(wanted)} are unknown; a text file takes tag, split "
                "and style"
            )
        if tags is not None and ".tsv" not in path:
            raise ValueError(f"{spec}: only a .tsv file has tags")
        return cls(path, None if tags is None else frozenset(tags), split, style)


class _Gathered:
    """The lines of one selection, as they come."""

    def __init__(self, spec: str):
        self.spec = spec
        self.selection = _Selection.parse(spec)
        self.content = bytearray()
        self.ends: list[int] = []
        self.tags: set[str] = set()

    def wants(self, tag: str) -> bool:
        """Whether lines of a tag belong to it."""
        self.tags.add(tag)
        return self.selection.tags is None or tag in self.selection.tags

    def add(self, text: str) -> None:
        """A line of a wanted tag; not of the other split."""
        split = self.selection.split
        if split == "all" or is_held_out(text) == (split == "dev"):
            self.content += text.encode("utf8")
            self.ends.append(len(self.content))

    def finish(self, report: SkipReport) -> Texts:
        """All lines.

        Raises:
            ValueError: there is none, or none of a tag.
        """
        missing = sorted((self.selection.tags or set()) - self.tags)
        if missing or not self.ends:
            known = sorted(self.tags)[:_SHOWN_TAGS]
            raise ValueError(
                f"{self.spec}: no line is selected"
                + (f" by the tags {missing}" if missing else "")
                + f"; the file's tags are {known}; {report.summary()}"
            )
        return Texts(self.spec, bytes(self.content), np.asarray(self.ends, np.int64))


def _choose(wanted: dict[str, set[str]], key: str, known: tuple, spec: str) -> str:
    given = wanted.pop(key, {known[0]})
    if len(given) != 1 or not given <= set(known):
        raise ValueError(
            f"{spec}: {key}={'|'.join(sorted(given))} must be one of {', '.join(known)}"
        )
    return given.pop()


class Texts:
    """The lines that a specification selects, as a random-access sequence of strings.

    Attributes:
        spec: the specification.
        split: of SPLITS.
        fingerprint: of all texts and their order.
    """

    def __init__(self, spec: str, content: bytes, ends: Int[np.ndarray, " N"]):
        self.spec = spec
        self.split = _Selection.parse(spec).split
        self.fingerprint = zlib.crc32(content)
        self._content: UInt8[np.ndarray, " S"] = np.frombuffer(content, np.uint8)
        self._ends = ends

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.spec} has {len(self)} texts, none is {index}")
        start = int(self._ends[index - 1]) if index else 0
        return self._content[start : int(self._ends[index])].tobytes().decode("utf8")

    def choose(self, count: int) -> list[str]:
        """So many texts, spread evenly; all of them for 0."""
        count = min(count or len(self), len(self))
        return [self[place * len(self) // count] for place in range(count)]


def open_texts(specs: Sequence[str], report: SkipReport | None = None) -> list[Texts]:
    """Open selections of text files; each file is read once, whatever it is asked for.

    Args:
        specs: specifications.
        report: where lines that cannot be used are counted.

    Raises:
        ValueError: no such file, a damaged archive, a bad specification, or nothing
            selected; names the file.
    """
    skips = SkipReport() if report is None else report
    gathered = [_Gathered(spec) for spec in specs]
    for path in dict.fromkeys(each.selection.path for each in gathered):
        asked = [each for each in gathered if each.selection.path == path]
        for number, tag, text in _read(path, skips):
            wanting = [each for each in asked if each.wants(tag)]
            styles = {each.selection.style for each in wanting}
            made = written.write(text) if "written" in styles else ""
            if "written" in styles and not made:
                skips.add(NOT_READABLE, number, f"{path}:{number}", text[:_SHOWN])
            for each in wanting:
                given = made if each.selection.style == "written" else text
                if given:
                    each.add(given)
    return [each.finish(skips) for each in gathered]


def _read(path: str, report: SkipReport) -> Iterator[tuple[int, str, str]]:
    """Number, tag ("" in a .txt) and text of each line that is one.

    Raises:
        ValueError: no such file, or a damaged archive.
    """
    tagged = ".tsv" in epath.Path(path).name
    try:
        with epath.Path(path).open("rb") as packed, _unpack(path, packed) as file:
            for number, line in enumerate(_split_lines(file), 1):
                parsed = _parse(line, tagged)
                if isinstance(parsed, str):
                    shown = line[:_SHOWN].decode("utf8", "replace")
                    report.add(parsed, number, f"{path}:{number}", shown)
                else:
                    yield number, *parsed
    except FileNotFoundError as error:
        raise ValueError(f"no text file at {path}") from error
    except (lzma.LZMAError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise ValueError(
            f"{path}: the archive is damaged ({error}); copy or make it again"
        ) from error


def _unpack(path: str, file: Any) -> Any:
    if path.endswith(".xz"):
        return lzma.LZMAFile(file)
    return gzip.GzipFile(fileobj=file) if path.endswith(".gz") else file


def _split_lines(file: Any) -> Iterator[bytes]:
    """Lines without their ends; of a longer one than any sentence, just its head."""
    while line := file.readline(_LONGEST + 1):
        rest = line
        while len(rest) > _LONGEST and not rest.endswith(b"\n"):
            rest = file.readline(_LONGEST + 1)
        yield line.removeprefix(_MARK).rstrip(b"\r\n") if rest is line else line


def _parse(line: bytes, tagged: bool) -> tuple[str, str] | str:
    """Tag and text of a line, or why it is of no use."""
    if len(line) > _LONGEST:
        return TOO_LONG
    try:
        text = line.decode("utf8")
    except UnicodeDecodeError:
        return NOT_UTF8
    tag, tab, body = text.partition("\t") if tagged else ("", "\t", text)
    if not tab:
        return NO_TAG if text.strip() else EMPTY_LINE
    return (tag, body.strip()) if body.strip() else EMPTY_LINE
