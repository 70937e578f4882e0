"""One host of a training run that is looked at: `child.py NOTES FLAGS…`.

Runs `launch/train.py` with these flags, and writes into NOTES what this process did:
which rows of each batch it loaded, and which files it opened to write or renamed.
"""

import json
import os
import sys
from pathlib import Path

from nim4_jax.data.pipeline.loader import BatchLoader
from nim4_jax.launch import program, train


def main(notes: Path, arguments: list[str]) -> None:
    """Train, and take notes after each batch and each file."""
    rows: dict[int, list[list[int]]] = {}  # of each loader, in the order of their use
    written: set[str] = set()

    def save() -> None:
        loaded = list(rows.values())
        notes.write_text(json.dumps({"rows": loaded, "written": sorted(written)}))

    def listen(event: str, values: tuple) -> None:
        if event == "open":
            path, mode, flags = values
            writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR)
            writes = writes or (isinstance(mode, str) and set(mode) & set("wax+"))
        elif event in ("os.rename", "os.mkdir"):
            path, writes = values[1 if event == "os.rename" else 0], True
        else:
            return
        if writes and isinstance(path, (str, os.PathLike)):
            written.add(os.path.abspath(os.fspath(path)))

    load = BatchLoader.load

    def load_and_note(self, batch):
        loaded = load(self, batch)
        rows.setdefault(id(self), []).append(loaded["arrays"]["index"].tolist())
        save()
        return loaded

    BatchLoader.load = load_and_note
    sys.addaudithook(listen)
    sys.argv = ["train", *arguments]

    def run(argv) -> None:
        train.main(argv)
        save()

    program.launch(run, train.define_flags)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
