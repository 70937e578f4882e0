"""Fingerprints of recordings and code, which decide whether a stored cell is valid.

Files are told apart by their size and content, never by dates: hosts that share a sweep
may have copies of their own.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Iterable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import nim4_jax
from nim4_jax.data.sources import builders, conditions, manifests
from nim4_jax.eval.sweep.benchmarks import Benchmark

_BLOCK = 1 << 16
_MANIFESTS = (".json", ".jsonl")
_SHOWING = ("cells", "listing", "plots", "rates", "summary", "tables")
_PARTS = ("data", "eval", "serving")
# What trains, compiles or shows what was measured.
_LEFT_OUT = (
    "aot/",
    "rl/",
    "runs/",
    "train/",
    "eval/reports/",
    "eval/speed/",
    *(f"eval/sweep/{name}.py" for name in _SHOWING),
)


def describe_data(benchmark: Benchmark) -> list[Any]:
    """How a set is scored, and checksums of its recordings and of its noise's."""
    origin = conditions.find_origin(benchmark.source)
    noise = conditions.find_noise(benchmark.source)
    contents = [_identify_source(spec) for spec in (origin, *noise)]
    return [dataclasses.asdict(benchmark), *contents]


def _identify_source(spec: str) -> str:
    """A checksum of a source's files; "" where it has none, or none that is there."""
    if spec.startswith("nonspeech:"):
        return ""
    if spec.startswith("bundled:"):
        name = spec.removeprefix("bundled:").partition("?")[0].partition(":")[0]
        return identify_files(_list_folder(builders.BUNDLED / name))
    if spec.startswith("tfds:"):
        return identify_files(_list_folder(_find_tfds(spec)))
    path = Path(spec.partition("?")[0])
    if path.is_dir():
        return identify_files(_list_folder(path))
    if path.suffix not in _MANIFESTS or not path.is_file():
        return ""
    # Of the manifest all bytes count.
    content = hashlib.sha256(path.read_bytes()).hexdigest()
    return content + identify_files(_list_audio(path))


def _find_tfds(spec: str) -> Path | None:
    """The folder of a prepared TFDS data set."""
    # Imported on demand: TFDS costs seconds of start-up.
    from nim4_jax.data.sources import tfds_reader

    target, _, query = spec.removeprefix("tfds:").partition("?")
    pairs = (pair.partition("=") for pair in query.split("&"))
    options = {key: value for key, _, value in pairs}
    try:
        name = target.rpartition(":")[0]
        return tfds_reader.find_folder(name, options.get("data_dir"))
    except ValueError:
        return None


def _list_folder(folder: Path | None) -> list[Path]:
    return sorted(path for path in folder.rglob("*")) if folder else []


def _list_audio(manifest: Path) -> list[Path]:
    """Recordings of a manifest, each once; none if its cell will say what is wrong."""
    try:
        opened = manifests.Manifest(str(manifest))
    except ValueError:
        return []
    names = (opened[index]["audio"] for index in range(len(opened)))
    return [Path(name) for name in dict.fromkeys(names)]


def identify_files(paths: Iterable[Path]) -> str:
    """A checksum of some files in their order: sizes, beginnings, middles and ends.

    Up to 192 kB of a file count, which is all of most utterances. What cannot be read
    counts as such.
    """
    digest = hashlib.sha256()
    for path in paths:
        if path.is_dir():
            continue
        try:
            parts = list(_sample(path))
        except OSError as error:
            parts = [type(error).__name__.encode()]
        for part in parts:
            digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()


def _sample(path: Path) -> Iterator[bytes]:
    """Size and up to three blocks of a file."""
    size = path.stat().st_size
    yield str(size).encode()
    if size <= 3 * _BLOCK:
        yield path.read_bytes()
        return
    with path.open("rb") as file:
        for place in (0, (size - _BLOCK) // 2, size - _BLOCK):
            file.seek(place)
            yield file.read(_BLOCK)


@functools.cache
def identify_code() -> str:
    """A checksum of the code that measures, of its rules and its dictionaries."""
    return identify_files(list_code())


def list_code() -> list[Path]:
    """Files of the package that a result may hang on."""
    core = Path(nim4_jax.__file__).parent
    parts = {name: Path(str(resources.files(f"nim4_jax.{name}"))) for name in _PARTS}
    return [
        path
        for name, folder in {"": core, **parts}.items()
        for path in _list_folder(folder)
        if _measures(path, Path(name, path.relative_to(folder)).as_posix())
    ]


def _measures(path: Path, place: str) -> bool:
    """Whether code may change a result, rather than train or show one.

    Args:
        path: of a file.
        place: the same within the package.
    """
    read = path.suffix == ".py" or "resources" in path.parts
    return path.is_file() and read and not place.startswith(_LEFT_OUT)
