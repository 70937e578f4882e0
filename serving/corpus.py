"""Transcription of a corpus in shards, each stored atomically and resumable.

OUT/corpus.json says what was asked for; OUT/part-00000.jsonl (or .parquet) and so on
hold a row a file, in the order of the listing:

    file      as the listing has it
    duration  seconds read
    text      transcript, "" where there is none
    error     why there is none, or what of it is missing, "" if all is well
    segments  if asked for: with times and words, as `nim4 transcribe` writes them; in
              Parquet as a text of JSON
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nim4_jax import line_file, whole_file
from nim4_jax.data.sources import opening
from nim4_jax.decode import longform, transcripts
from nim4_jax.process import logs
from nim4_jax.serving import recognisers

FORMATS = ("jsonl", "parquet")
SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".m4a", ".aiff", ".au")
"""Files of a folder that are taken for recordings."""


@dataclasses.dataclass(frozen=True)
class CorpusConfig:
    """How a corpus is transcribed; shards of another configuration are not mixed.

    Attributes:
        model: workdir or .safetensors file, at a path that all workers see.
        batch: most segments at once.
        vad: one of `transcribe.VADS`.
        chunk_ms: length of chunks, 0 for the full pass.
        left: chunks seen to the left.
        segments: whether rows hold times and words.
        form: one of FORMATS.
        shard_files: files of a shard.
    """

    model: str
    batch: int = 8
    vad: str = "silero"
    chunk_ms: int = 0
    left: int = 4
    segments: bool = False
    form: str = "jsonl"
    shard_files: int = 512

    def __post_init__(self):
        if self.form not in FORMATS or self.vad not in longform.VADS:
            raise ValueError(
                f"got format {self.form!r} and vad {self.vad!r}; use one of {FORMATS} "
                f"and one of {longform.VADS}."
            )
        if self.batch < 1 or self.shard_files < 1:
            raise ValueError(
                f"got batch {self.batch} and {self.shard_files} files a shard; both "
                "must be ≥ 1."
            )


def list_files(listing: str) -> list[str]:
    """Paths of recordings.

    Args:
        listing: a folder, all of whose audio files are taken, sorted; a manifest
            (`.jsonl`, with `?key=value` to select); a Parquet file with a column
            "audio"; or a text file with a path a line. Relative paths of the last three
            are relative to the file.

    Raises:
        ValueError: nothing there, an unknown form, or no recording in it.
    """
    path = Path(listing)
    if path.is_dir():
        every = path.rglob("*")
        found = sorted(str(it) for it in every if it.suffix.lower() in SUFFIXES)
    elif Path(listing.partition("?")[0]).suffix == ".jsonl":
        manifest = opening.open_source(listing)
        rows = [manifest[number] for number in range(len(manifest))]
        if segment := next(
            (row for row in rows if row.get("offset") is not None), None
        ):
            raise ValueError(
                f"{segment['origin']}: it names a segment of {segment['audio']}; whole "
                "recordings are transcribed here: list each once, without offset or "
                "begin and end."
            )
        found = [row["audio"] for row in rows]
    elif not path.is_file():
        raise ValueError(f"{listing} is no file and no folder; give one of recordings.")
    elif path.suffix == ".parquet":
        found = [str(path.parent / name) for name in _read_column(path)]
    elif path.suffix == ".txt":
        lines = (line.strip() for _, line in line_file.read(path))
        found = [str(path.parent / line) for line in lines if line]
    else:
        raise ValueError(
            f"{listing} is no listing; give a folder, a manifest (.jsonl), a .parquet "
            'with a column "audio", or a .txt with a path a line.'
        )
    if not found:
        raise ValueError(f"{listing} lists no recording ({', '.join(SUFFIXES)}).")
    return found


def _read_column(path: Path) -> list[str]:
    from pyarrow import parquet

    names = parquet.read_schema(path).names
    if "audio" not in names:
        raise ValueError(f'{path} has the columns {names}; expected one named "audio".')
    return parquet.read_table(path, columns=["audio"])["audio"].to_pylist()


@dataclasses.dataclass(frozen=True)
class Shard:
    """Some files of a listing.

    Attributes:
        number: counted from 0.
        paths: of its files.
    """

    number: int
    paths: tuple[str, ...]


def plan(paths: Sequence[str], out: str, config: CorpusConfig) -> list[Shard]:
    """The shards that are still to be done; notes in OUT what was asked for.

    Raises:
        ValueError: OUT holds shards of other files or of another configuration.
        OSError: OUT cannot be written.
    """
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(whole_file.encode("\n".join(paths))).hexdigest()
    asked = {**dataclasses.asdict(config), "files": len(paths), "sha256": digest}
    note = folder / "corpus.json"
    if note.is_file():
        before = json.loads(note.read_text(encoding="utf8"))
        changed = [key for key in asked if before.get(key) != asked[key]]
        if changed:
            told = ", ".join(
                f"{key} was {before.get(key)!r} and is {asked[key]!r}"
                for key in changed
            )
            raise ValueError(
                f"{out} holds a transcription of something else: {told}. Give another "
                "--out, or what was given before."
            )
    whole_file.write_text(note, json.dumps(asked, indent=1) + "\n")
    for left in folder.glob("*.tmp"):
        left.unlink()
    size = config.shard_files
    shards = [
        Shard(number, tuple(paths[first : first + size]))
        for number, first in enumerate(range(0, len(paths), size))
    ]
    return [it for it in shards if not name_part(out, it.number, config.form).exists()]


def name_part(out: str, number: int, form: str) -> Path:
    """The file of a shard."""
    return Path(out, f"part-{number:05d}.{form}")


class Worker:
    """A loaded model that transcribes shards."""

    def __init__(self, out: str, config: CorpusConfig):
        """Load the model.

        Raises:
            ValueError: no usable model.
        """
        logs.prepare()
        self._out, self._config = out, config
        self._loaded = recognisers.load(
            config.model, chunk_ms=config.chunk_ms, left=config.left
        )
        self._loaded.recogniser.check_writes()

    def __call__(self, block: Any) -> dict[str, list[float]]:
        """What `transcribe` returns of a block, as Ray Data calls it.

        Args:
            block: pyarrow table with the columns "shard", all alike, and "file", names
                in bytes.
        """
        (number,) = set(block["shard"].to_pylist())
        names = map(os.fsdecode, block["file"].to_pylist())
        done = self.transcribe(Shard(number, tuple(names)))
        return {key: [value] for key, value in done.items()}

    def transcribe(self, shard: Shard) -> dict[str, float]:
        """Transcribe a shard and store it.

        Returns:
            {"files", "errors", "seconds" of audio}.

        Raises:
            OSError: the shard cannot be written; nothing is left of it.
        """
        config = self._config
        recordings = longform.transcribe_files(
            self._loaded,
            shard.paths,
            longform.Options(
                batch=config.batch, vad=config.vad, timings=config.segments
            ),
        )
        rows = [_describe(recording, config.segments) for recording in recordings]
        _store(rows, name_part(self._out, shard.number, config.form))
        return {
            "files": len(rows),
            "errors": sum(bool(row["error"]) for row in rows),
            "seconds": sum(row["duration"] for row in rows),
        }


def _describe(recording: transcripts.Recording, segments: bool) -> dict[str, Any]:
    """A row; of a file that broke off what could be decoded has its text."""
    row = {
        "file": recording.path,
        "duration": round(recording.duration, 3),
        "text": "" if recording.error else recording.text,
        "error": recording.error or recording.warning,
    }
    if segments:
        made = json.loads(transcripts.render(recording, "json"))["segments"]
        row["segments"] = [] if recording.error else made
    return row


def _store(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Write under a name of this process, then rename."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        if path.suffix == ".parquet":
            _write_parquet(rows, partial)
        else:
            lines = (
                json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"
                for row in rows
            )
            partial.write_bytes(whole_file.encode("".join(lines)))
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def _write_parquet(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Segments are JSON in a column of text: of empty lists no type can be told.

    The name of a file may be of any bytes, a column of text may not.
    """
    import pyarrow
    from pyarrow import parquet

    flat = [{key: _make_cell(key, value) for key, value in row.items()} for row in rows]
    parquet.write_table(pyarrow.Table.from_pylist(flat), path)


def _make_cell(key: str, value: Any) -> Any:
    if key == "segments":
        return json.dumps(value, ensure_ascii=False)
    return whole_file.encode(value).decode() if isinstance(value, str) else value
