"""Checked reading of a bundle's files: only those that the manifest lists."""

from __future__ import annotations

import dataclasses
import json
import mmap
import os
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from nim4_jax.serving import manifest
from nim4_jax.serving.manifest import BundleError, Manifest

_DTYPES = {
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I8": "int8",
    "I32": "int32",
}


@dataclasses.dataclass(frozen=True, eq=False)
class Files:
    """Checked access to the files of a bundle.

    Attributes:
        folder: of the bundle.
        facts: its manifest.
        check: whether what is read is compared with the manifest's SHA-256.
    """

    folder: str
    facts: Manifest
    check: bool = True

    def verify(self) -> None:
        """Look through every file that the manifest lists.

        Raises:
            BundleError: a file is missing, cut off or changed, by name.
        """
        for name in self.facts.files:
            if self.check and name not in manifest.NEEDED:  # those are read at once
                self.map(name)

    def read(self, name: str) -> bytes:
        """Content of a file.

        Raises:
            BundleError: the manifest does not list it, or it is missing or another one.
        """
        return bytes(self.map(name))

    def read_json(self, name: str) -> Any:
        """Value of a JSON file.

        Raises:
            BundleError: see `read`; or it is no JSON.
        """
        try:
            return json.loads(self.read(name).decode("utf8"))
        except ValueError as error:
            raise BundleError(f"{Path(self.folder, name)} is damaged: {error}") from (
                error
            )

    def map(self, name: str) -> memoryview:
        """Content of a file, mapped: what was checked is what is used.

        Raises:
            BundleError: see `read`.
        """
        path = manifest.locate(self.folder, self.facts, name)
        try:
            with path.open("rb") as file:
                content = memoryview(b"")
                if os.fstat(file.fileno()).st_size:
                    content = memoryview(
                        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                    )
        except (OSError, ValueError) as error:  # the latter of impossible names
            raise BundleError(
                f"{path} is missing or cannot be read ({error}); copy or export the "
                "bundle again."
            ) from error
        if self.check:
            manifest.compare(path, content, self.facts.files[name])
        return content


def read_tensors(path: Path, content: memoryview) -> dict[str, np.ndarray]:
    """Tensors of a .safetensors file, which keep its memory.

    Args:
        path: for messages.
        content: of the whole file.

    Raises:
        BundleError: it is no such file, or cut off.
    """
    try:
        size = int.from_bytes(content[:8], "little")
        header = json.loads(bytes(content[8 : 8 + size]))
        header.pop("__metadata__", None)
        data, tensors = content[8 + size :], {}
        for name, facts in header.items():
            begin, end = facts["data_offsets"]
            dtype = jnp.dtype(_DTYPES[facts["dtype"]])
            flat = np.frombuffer(data[begin:end], dtype)
            tensors[name] = flat.reshape(facts["shape"])
        return tensors
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BundleError(
            f"{path} cannot be read as .safetensors ({type(error).__name__} {error}); "
            "copy or export the bundle again."
        ) from error
