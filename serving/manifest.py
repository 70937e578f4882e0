"""The manifest of an exported bundle, and the check of its files.

BUNDLE/manifest.json        this, with the size and SHA-256 of every other file
       programs/*.stablehlo programs as `jax.export` serialises them
       weights.safetensors  parameters by path
       tokenizer.json, phonemes.json, prompt.json, LICENSE
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from nim4_jax.decode.live.stream_config import StreamConfig
from nim4_jax.rates import Rates

SCHEMA = 3
"""Version of the form of a bundle; a reader of another one refuses it."""

FILE = "manifest.json"
WEIGHTS = "weights.safetensors"
TOKENIZER = "tokenizer.json"
PHONEMES = "phonemes.json"
PROMPT = "prompt.json"
LICENCE = "LICENSE"

PLATFORMS = ("cpu", "cuda", "tpu")

NEEDED = (WEIGHTS, TOKENIZER, PHONEMES, PROMPT)
"""Files that a bundle is no bundle without."""

_BLOCK = 1 << 22

# Fields of StreamConfig that have other names in the file: those of its schema.
_RECORDED = {"unstable_tokens": "rollback", "draft_tokens": "draft"}


class BundleError(ValueError):
    """A bundle that cannot be used: what came, what was expected, how to mend it."""


@dataclasses.dataclass(frozen=True)
class Array:
    """An argument or a result of a program.

    Attributes:
        name: path in the argument, as "audio.values".
        shape: sizes; a letter stands for any size, the same wherever it stands.
        dtype: name.
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: str


@dataclasses.dataclass(frozen=True)
class Program:
    """One program of a bundle.

    Attributes:
        file: with the serialised program.
        parameters: paths of the weights that it takes first, in this order.
        arguments: arrays behind them, in this order.
        results: arrays that it gives.
        donated: numbers of the arguments whose memory it may take.
    """

    file: str
    parameters: tuple[str, ...]
    arguments: tuple[Array, ...]
    results: tuple[Array, ...]
    donated: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Manifest:
    """All facts of a bundle.

    Attributes:
        made_with: versions of the packages that made it, and its git revision.
        model: stage, steps, number of parameters, origin.
        licences: of the weights and of the data.
        platforms: for which the programs were lowered, of PLATFORMS.
        weights: dtype of the matrices in the file.
        compute: dtype of activations and products.
        parts: of the model.
        features: front end.
        rates: how samples, frames and tokens follow each other.
        phonemes: SHA-256 of the inventory.
        budget: longest answers.
        bucket_seconds: lengths of whole recordings that there are programs for.
        rows: usual rows of each.
        streams: sizes of streams that there are programs for.
        parameters: path → dtype that the programs take.
        programs: by name.
        files: path → {"bytes", "sha256"}, of all but the manifest.
        schema: version of the form.
    """

    made_with: dict[str, str | None]
    model: dict[str, Any]
    licences: dict[str, str]
    platforms: tuple[str, ...]
    weights: str
    compute: str
    parts: tuple[str, ...]
    features: dict[str, Any]
    rates: dict[str, Any]
    phonemes: str
    budget: dict[str, Any]
    bucket_seconds: tuple[float, ...]
    rows: tuple[int, ...]
    streams: tuple[dict[str, Any], ...]
    parameters: dict[str, str]
    programs: dict[str, Program]
    files: dict[str, dict[str, Any]]
    schema: int = SCHEMA


def is_bundle(path: str) -> bool:
    """Whether there is a bundle, whole or not."""
    return "://" not in path and Path(path, FILE).is_file()


def write(folder: Path, manifest: Manifest) -> None:
    """Write manifest.json; the last file of a bundle."""
    text = json.dumps(dataclasses.asdict(manifest), ensure_ascii=False, indent=1)
    (folder / FILE).write_text(text + "\n", encoding="utf8")


def read(folder: str) -> Manifest:
    """The manifest of a bundle; other files are not looked at.

    Raises:
        BundleError: there is none, it is damaged, or of another schema.
    """
    path = Path(folder, FILE)
    try:
        facts = json.loads(path.read_text(encoding="utf8"))
    except OSError as error:
        raise BundleError(
            f"{folder} is no bundle: {path.name} cannot be read ({error}); make one "
            "with `nim4 export --model=WORKDIR --out=BUNDLE`."
        ) from error
    except ValueError as error:
        raise BundleError(
            f"{path} is damaged ({error}); copy or export the bundle again."
        ) from error
    schema = facts.get("schema") if isinstance(facts, dict) else None
    if schema != SCHEMA:
        raise BundleError(
            f"{folder} has bundle schema {schema!r}, this version of the package reads "
            f"schema {SCHEMA}; use the version that made it "
            f"({_find_maker(facts)}), or export the model again."
        )
    try:
        programs = {
            name: Program(
                program["file"],
                tuple(program["parameters"]),
                _read_arrays(program["arguments"]),
                _read_arrays(program["results"]),
                tuple(program["donated"]),
            )
            for name, program in facts.pop("programs").items()
        }
        lists = ("platforms", "parts", "bucket_seconds", "rows", "streams")
        facts |= {name: tuple(facts[name]) for name in lists}
        made = Manifest(programs=programs, **facts)
    except (KeyError, TypeError, AttributeError) as error:
        raise BundleError(
            f"{path} is damaged: {type(error).__name__} {error}; copy or export the "
            "bundle again."
        ) from error
    for name in (*NEEDED, *(one.file for one in programs.values()), *made.files):
        locate(folder, made, name)
    return made


def locate(folder: str, manifest: Manifest, name: str) -> Path:
    """Path of a file that the manifest lists.

    Raises:
        BundleError: it does not, or the name leads out of the bundle.
    """
    facts = manifest.files.get(name) if isinstance(name, str) else None
    if not isinstance(facts, dict) or not {"bytes", "sha256"} <= facts.keys():
        raise BundleError(
            f"{Path(folder, FILE)} does not list {name!r} with its size and SHA-256, "
            "so nothing says that it belongs to the bundle; export the bundle again."
        )
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name:
        raise BundleError(
            f"{Path(folder, FILE)} names {name!r}, which is outside of the bundle; "
            "such a bundle was not made by nim4 export."
        )
    return Path(folder, name)


def name_streams(configs: Sequence[StreamConfig]) -> tuple[str, ...]:
    """A name for the programs of each of these sizes, no two alike.

    "640ms" where only one has such chunks, else "640ms-left4", "640ms-left4-no2".
    """
    short = [f"{round(1000 * config.seconds)}ms" for config in configs]
    names: list[str] = []
    for name, config in zip(short, configs):
        if short.count(name) > 1:
            name = f"{name}-left{config.left}"
        same = sum(other.split("-no")[0] == name for other in names)
        names.append(f"{name}-no{same + 1}" if same else name)
    return tuple(names)


def record_stream(config: StreamConfig) -> dict[str, Any]:
    """Sizes of streams as the manifest holds them."""
    sizes = dataclasses.asdict(config)
    return {_RECORDED.get(name, name): value for name, value in sizes.items()}


def read_stream(folder: str, recorded: dict[str, Any], rates: Rates) -> StreamConfig:
    """Sizes of streams from the manifest.

    Args:
        folder: the bundle's, for messages.
        recorded: one of `Manifest.streams`.
        rates: of the bundle.

    Raises:
        BundleError: an unknown name, or sizes that do not fit each other.
    """
    names = {field.name for field in dataclasses.fields(StreamConfig)}
    stored = {_RECORDED.get(name, name): name for name in names}
    path = Path(folder, FILE)
    if unknown := sorted(set(recorded) - set(stored)):
        raise BundleError(
            f"{path} has streams with {', '.join(unknown)}, which this version does "
            f"not know; known are {', '.join(sorted(stored))}. Export the model again."
        )
    sizes = {stored[name]: value for name, value in recorded.items()}
    try:
        return StreamConfig(**{**sizes, "rates": rates})
    except (TypeError, ValueError) as error:
        raise BundleError(
            f"{path} has streams of {recorded}: {error}; export the model again."
        ) from error


def _find_maker(facts: Any) -> str:
    made = facts.get("made_with") if isinstance(facts, dict) else None
    return f"nim4-jax {made.get('nim4-jax')}" if isinstance(made, dict) else "unknown"


def _read_arrays(values: list[dict[str, Any]]) -> tuple[Array, ...]:
    return tuple(
        Array(value["name"], tuple(value["shape"]), value["dtype"]) for value in values
    )


def list_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of all files of a bundle in the making."""
    return {
        path.relative_to(folder).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": hash_file(path),
        }
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != FILE
    }


def compare(path: Path, content: memoryview, facts: dict[str, Any]) -> None:
    """Refuse a file's content that is not what the manifest says.

    Raises:
        BundleError: by the name of the file.
    """
    if len(content) != facts["bytes"]:
        raise BundleError(
            f"{path} has {len(content)} bytes, the manifest says {facts['bytes']}; it "
            "was cut off or replaced. Copy or export the bundle again."
        )
    found = hashlib.sha256(content).hexdigest()
    if found != facts["sha256"]:
        raise BundleError(
            f"{path} has SHA-256 {found[:16]}…, the manifest says "
            f"{str(facts['sha256'])[:16]}…; it is corrupt. Copy or export the bundle "
            "again."
        )


def hash_file(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
