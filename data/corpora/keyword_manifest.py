"""Keyword extraction over a manifest by many processes, resumable piece by piece.

A piece is some thousands of lines. Words are counted within it, so that memory and time
of a process do not grow with the manifest. What becomes of a piece is stored under a
hash of all that it depends on: after a kill, or once lines were added, only pieces that
are new are worked on.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import hashlib
import importlib.metadata
import json
import multiprocessing
import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nim4_jax import line_file, whole_file
from nim4_jax.context import keywords, llm
from nim4_jax.context.statistical import StatisticalExtractor
from nim4_jax.data.sources import manifests

Lines = list[tuple[int, str]]
"""Numbers, from 1, and texts of the lines of a piece."""

_AUDIO = ("audio", "audio_filepath")


@dataclasses.dataclass(frozen=True)
class Search:
    """How keywords are found.

    Attributes:
        manifest: what is read.
        out: what is written; may be the same.
        names: that are keywords wherever they are said.
        server: of the LLM that lists keywords; None: words are counted.
        replace: whether keywords that records carry are left out of account; else they
            count as complete, and are kept.
    """

    manifest: str
    out: str
    names: tuple[str, ...] = ()
    server: llm.ChatServer | None = None
    replace: bool = False

    @property
    def parts(self) -> Path:
        """Folder of the finished pieces."""
        return Path(f"{self.out}.parts")


def annotate(search: Search, piece: int, workers: int) -> collections.Counter[str]:
    """Write a manifest with the keywords of each record.

    Args:
        search: what, where, how.
        piece: lines of a piece.
        workers: processes; 1 stays in this one.

    Returns:
        Counts: "records", "kept" of them that had keywords already, "searched" ones,
        "found" among these that say a keyword, and what `LlmExtractor.counts` says.

    Raises:
        ValueError: no manifest, a bad line (named), or an LLM that does not answer;
            nothing is written but finished pieces.
        OSError: no room or no right.
    """
    named = _survey(search, piece)
    search.parts.mkdir(parents=True, exist_ok=True)
    todo = {part for part, _ in named if not (search.parts / part).exists()}
    done = sum(size for part, size in named if part not in todo)
    total, sizes = sum(size for _, size in named), dict(named)
    with tqdm(
        total=total, initial=done, desc="keywords", unit="text", disable=None
    ) as bar:
        for part in _run(search, piece, todo, workers):
            bar.update(sizes[part])
    return _join(search, [part for part, _ in named])


def _survey(search: Search, piece: int) -> list[tuple[str, int]]:
    """Name and records of each piece; every line is looked at before any work is done.

    Raises:
        ValueError: no manifest, a bad line, or no record.
    """
    if not Path(search.manifest).is_file():
        raise ValueError(
            f"no manifest at {search.manifest}; give a JSON-lines file. Other sources "
            "cannot be written: a TFDS data set carries keywords as a feature of its "
            "own, 'keywords', a sequence of texts."
        )
    named = []
    for lines in _cut(search.manifest, piece):
        for number, line in lines:
            manifests.parse_line(line, f"{search.manifest}:{number}")
        named.append((_name_part(search, lines), len(lines)))
    if not named:
        raise ValueError(f"{search.manifest}: the manifest has no record")
    return named


def _name_part(search: Search, lines: Lines) -> str:
    """File of a finished piece, after all that its content depends on."""
    settings = repr((search, importlib.metadata.version("nim4-jax")))
    digest = hashlib.sha256(settings.encode("utf8", "backslashreplace"))
    for _, line in lines:
        digest.update(line.encode("utf8", "surrogatepass") + b"\n")
    return f"{digest.hexdigest()[:32]}.jsonl"


def _cut(manifest: str, piece: int) -> Iterator[Lines]:
    """The lines of a manifest that are not empty, `piece` at a time."""
    lines: Lines = []
    for number, line in line_file.read(manifest):
        if line.strip():
            lines.append((number, line))
        if len(lines) == piece:
            yield lines
            lines = []
    if lines:
        yield lines


def _run(search: Search, piece: int, todo: set[str], workers: int) -> Iterator[str]:
    """Work on the pieces that are not there yet; yields the name of each finished one.

    Raises:
        ValueError: an LLM that does not answer.
    """
    if not todo:
        return
    asked = _choose(search, piece, todo)
    if workers == 1 or len(todo) == 1:
        for name, lines in asked:
            yield _annotate_piece(search, name, lines)
        return
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(
        workers, context, _end_with_parent
    ) as pool:
        running: set[concurrent.futures.Future[str]] = set()
        for name, lines in asked:
            running.add(pool.submit(_annotate_piece, search, name, lines))
            if len(running) <= workers:  # one more than work, so that none waits
                continue
            done, running = concurrent.futures.wait(
                running, return_when=concurrent.futures.FIRST_COMPLETED
            )
            yield from (future.result() for future in done)
        for future in concurrent.futures.as_completed(running):
            yield future.result()


def _choose(search: Search, piece: int, todo: set[str]) -> Iterator[tuple[str, Lines]]:
    """Names and lines of the pieces that are wanted, equal ones once."""
    left = set(todo)
    for lines in _cut(search.manifest, piece):
        name = _name_part(search, lines)
        if name in left:
            left.remove(name)
            yield name, lines


def _end_with_parent() -> None:
    """Let a process of the pool die with the one that was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _annotate_piece(search: Search, name: str, lines: Lines) -> str:
    """Store the records of a piece with their keywords, and the counts behind them."""
    rows = [json.loads(line) for _, line in lines]
    texts, own = [], []
    for number, line in lines:
        record = manifests.parse_line(line, f"{search.manifest}:{number}")
        texts.append(record["text"])
        own.append(None if search.replace else record.get("keywords"))
    counts: collections.Counter[str] = collections.Counter(records=len(rows))
    statistical = StatisticalExtractor.fit(texts, names=search.names)
    if search.server:
        asked = llm.LlmExtractor(search.server.ask, statistical)
        found = keywords.collect(texts, asked, own=own, names=search.names)
        counts += asked.counts
        _check_answers(asked.counts, search.server)
    else:
        found = keywords.collect(texts, statistical, own=own, names=search.names)
    for row, given, said in zip(rows, own, found.utterances):
        _rebase(row, search)
        if given is None:
            row["keywords"] = list(said)
        counts["kept" if given is not None else "searched"] += 1
        counts["found"] += given is None and bool(said)
    content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    # The counts first: where they are, a whole piece was stored behind them.
    whole_file.write_text(_counts_file(search, name), json.dumps(counts))
    whole_file.write_text(search.parts / name, content)
    return name


def _check_answers(counts: collections.Counter[str], server: llm.ChatServer) -> None:
    """An LLM that mostly fails must not leave its work to counting in silence.

    Raises:
        ValueError: fewer texts were answered than not.
    """
    failed = {key: n for key, n in counts.items() if key.startswith("failed")}
    if sum(failed.values()) > counts["answered"]:
        told = ", ".join(f"{n} {key}" for key, n in sorted(failed.items()))
        raise ValueError(
            f"{server.url}: {counts['answered']} texts answered, {told}. Finished "
            "pieces are kept: mend the server, or take --by=statistics, and run it "
            "again."
        )


def _rebase(row: dict[str, Any], search: Search) -> None:
    """Let relative paths of audio begin at the new manifest."""
    old, new = Path(search.manifest).parent, Path(search.out).parent
    if old.resolve() == new.resolve():
        return
    for key in _AUDIO:
        if key in row and not os.path.isabs(row[key]):
            row[key] = os.path.relpath(old / row[key], new)


def _counts_file(search: Search, name: str) -> Path:
    return search.parts / name.replace(".jsonl", ".json")


def _join(search: Search, names: Sequence[str]) -> collections.Counter[str]:
    """Put the pieces together, in their order, and clear them away.

    Raises:
        ValueError: a piece is missing.
    """
    missing = [name for name in names if not (search.parts / name).exists()]
    if missing:
        raise ValueError(
            f"{search.manifest} has changed while it was read ({len(missing)} pieces "
            "are other ones now); run it again."
        )
    counts: collections.Counter[str] = collections.Counter()
    target = Path(search.out)
    partial = target.with_name(f"{target.name}.tmp")
    try:
        with partial.open("wb") as joined:
            for name in names:
                with (search.parts / name).open("rb") as part:
                    shutil.copyfileobj(part, joined)
                text = _counts_file(search, name).read_text(encoding="utf8")
                counts.update(json.loads(text))
        partial.replace(target)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    shutil.rmtree(search.parts)
    return counts
