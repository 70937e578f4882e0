"""Hotword lists on disk.

FOLDER/.nim4-hotwords                held by the server that has the folder
       uploads/                      bodies of requests that are still coming
       TENANT/LIST/list.json         says which of the folders beside it count
                   3-5f0c9a/         a database, see `retrieval.database`

A list changes when its list.json is replaced, in one step; what a process that was
killed has left beside it is removed by the next one.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pydantic

from nim4_jax import whole_file
from nim4_jax.retrieval import database
from nim4_jax.retrieval.database import Database
from nim4_jax.serving.server.hotword_messages import NAME, Made, Stored

LOG = logging.getLogger("nim4_jax.serving.server")
_LIST = "list.json"
_LOCK = ".nim4-hotwords"
"""Also the mark of a folder that is ours: what counts for nothing there is removed."""

_UPLOADS = "uploads"


class HotwordStore:
    """The lists of all tenants.

    Attributes:
        uploads: folder for bodies of requests.
    """

    def __init__(self, folder: str = ""):
        """Lists in a folder, which is made if need be.

        Args:
            folder: "" for one that goes with this object.

        Raises:
            ValueError: another server has it, it holds other things, or it cannot be
                written.
        """
        self._own = (
            None if folder else tempfile.TemporaryDirectory(prefix="nim4-lists-")
        )
        self._root = Path(self._own.name if self._own else folder)
        self.uploads = self._root / _UPLOADS
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            if any(self._root.iterdir()) and not (self._root / _LOCK).exists():
                raise ValueError(
                    f"hotwords_dir={folder} holds other things than hotword lists; "
                    "give a folder that is empty or not there yet."
                )
            self._lock = os.open(self._root / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(self.uploads, ignore_errors=True)
            self.uploads.mkdir()
        except BlockingIOError:
            os.close(self._lock)
            raise ValueError(
                f"hotwords_dir={folder} belongs to a server that runs; give each "
                "server a folder of its own."
            ) from None
        except OSError as error:
            raise ValueError(f"hotwords_dir={folder}: {error}.") from error

    def close(self) -> None:
        """Let another server have the folder."""
        os.close(self._lock)
        if self._own:
            self._own.cleanup()

    def load(self) -> Iterator[tuple[Stored, list[Database]]]:
        """Every list that is sound, with its databases; others are logged by name."""
        for folder in self._root.glob("*/*/"):
            if folder.is_dir() and not (folder / _LIST).exists():
                shutil.rmtree(folder, ignore_errors=True)  # it never became one
        for file in sorted(self._root.glob(f"*/*/{_LIST}")):
            try:
                yield self._read(file)
            except (OSError, ValueError) as error:
                told = {"damaged_hotword_list": file.parent.name, "reason": str(error)}
                told["tenant"] = file.parent.parent.name
                LOG.log(logging.ERROR, json.dumps(told, ensure_ascii=False))

    def _read(self, file: Path) -> tuple[Stored, list[Database]]:
        """A list and its databases.

        Raises:
            ValueError: damaged, or not where it belongs.
            OSError: it cannot be read.
        """
        try:
            stored = Stored.model_validate_json(file.read_bytes())
        except pydantic.ValidationError as error:
            told = error.errors(include_url=False)[0]["msg"]
            raise ValueError(f"{file} is damaged: {told}") from None
        if self.find_folder(stored.tenant, stored.name) != file.parent:
            raise ValueError(f"{file} is of tenant {stored.tenant!r}: it was moved.")
        bases = self.open(stored)
        self._sweep(stored)
        return stored, bases

    def open(self, stored: Stored) -> list[Database]:
        """The databases of a list, mapped, every byte checked.

        Raises:
            ValueError: one is damaged.
        """
        return self.open_made(self.find_folder(stored.tenant, stored.name), stored.made)

    @staticmethod
    def open_made(folder: Path, made: Made) -> list[Database]:
        """The same, of what is not a list yet."""
        places = filter(None, (made.base, made.added))
        return [database.load(str(folder / place)) for place in places]

    def find_folder(self, tenant: str, name: str) -> Path:
        """Where a list is, or would be."""
        # Any other name of a tenant, however it is written, is no name of a folder.
        plain = NAME.fullmatch(tenant) and tenant != _UPLOADS
        digest = hashlib.sha256(tenant.encode("utf8", "replace")).hexdigest()
        return self._root / (tenant if plain else f"={digest[:32]}") / name

    def draw_place(self, version: int) -> str:
        """Name of a folder that nobody writes into."""
        return f"{version}-{secrets.token_hex(4)}"

    def commit(self, stored: Stored) -> None:
        """What a list is from now on.

        Raises:
            OSError: no room; what was before still counts.
        """
        folder = self.find_folder(stored.tenant, stored.name)
        folder.mkdir(parents=True, exist_ok=True)
        whole_file.write_text(folder / _LIST, stored.model_dump_json() + "\n")
        self._sweep(stored)

    def discard(self, tenant: str, name: str, place: str) -> None:
        """Remove what was made for nothing."""
        folder = self.find_folder(tenant, name)
        shutil.rmtree(folder / place, ignore_errors=True)
        if not (folder / _LIST).exists():
            shutil.rmtree(folder, ignore_errors=True)

    def remove(self, tenant: str, name: str) -> None:
        """A list is gone.

        Raises:
            OSError: it cannot be removed.
        """
        folder = self.find_folder(tenant, name)
        (folder / _LIST).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)

    def _sweep(self, stored: Stored) -> None:
        """Remove what does not count; who has it open keeps it."""
        kept = {_LIST, stored.made.base, stored.made.added}
        for path in self.find_folder(stored.tenant, stored.name).iterdir():
            if path.name not in kept and path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
