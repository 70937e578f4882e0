"""TFDS data sets of encoded speech: made from manifests, read without TensorFlow.

A manifest folder has one JSON-lines file per split and the audio beside it. The data
sets bundled with the project are folders of ArrayRecord files under `data/bundled`.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from nim4_jax import line_file

BUNDLED = Path(__file__).parents[1] / "bundled"
VERSION = "1.0.0"
SPLITS: Mapping[str, tuple[str, ...]] = {
    "commands": ("train", "test"),
    "prompts": ("test",),
    "names": ("test",),
}
TEXT_FIELDS = ("id", "text", "lang", "voice")


class ManifestBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """One record an utterance, with the audio file's bytes as they are on disk.

    A subclass names its data set, its splits and its citation. The order of the
    manifest is kept.
    """

    VERSION = tfds.core.Version(VERSION)
    SPLIT_NAMES: tuple[str, ...] = ()
    DESCRIPTION = ""

    def __init__(self, *, manifests: str | Path, **kwargs: Any) -> None:
        """Args:
        manifests: folder with `{split}.jsonl` for each split.
        **kwargs: as for every TFDS builder; `data_dir` is where the result goes.
        """
        self.manifests = Path(manifests)
        super().__init__(file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.DESCRIPTION,
            features=tfds.features.FeaturesDict(
                {
                    "audio": tfds.features.Tensor(shape=(), dtype=np.object_),
                    "duration": tfds.features.Scalar(np.float32),
                    "keywords": tfds.features.Sequence(text),
                    **{field: text for field in TEXT_FIELDS},
                }
            ),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[Any]]:
        del dl_manager  # everything is on disk already
        return {split: self._generate_examples(split) for split in self.SPLIT_NAMES}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        yield from enumerate(read_manifest(self.manifests / f"{split}.jsonl"))


class Commands(ManifestBuilder):
    """Synthetic in-car commands, English, Mandarin and mixed."""

    SPLIT_NAMES = SPLITS["commands"]
    DESCRIPTION = "In-car commands spoken by Kokoro-82M; see data/bundled/README.md."


class Names(ManifestBuilder):
    """Synthetic in-car commands with names that no training text has."""

    SPLIT_NAMES = SPLITS["names"]
    DESCRIPTION = "Commands with held-out names; see data/bundled/README.md."


class Prompts(ManifestBuilder):
    """Human English: telephone prompts."""

    SPLIT_NAMES = SPLITS["prompts"]
    DESCRIPTION = "Asterisk voice prompts, CC-BY-SA-3.0; see data/bundled/README.md."


OF_KIND: Mapping[str, type[ManifestBuilder]] = {"commands": Commands, "names": Names}
"""What launch/make_corpus.py makes."""


def read_manifest(manifest: Path) -> Iterator[dict[str, Any]]:
    """Records of a manifest with the bytes of their audio files.

    Raises:
        ValueError: bad JSON, a missing field or a missing audio file, with the line.
    """
    for place, record in line_file.read_json(manifest):
        wanted = ("audio", "duration", "keywords", *TEXT_FIELDS)
        missing = [
            field
            for field in wanted
            if not isinstance(record, dict) or field not in record
        ]
        if missing:
            raise ValueError(f"{place}: missing {', '.join(missing)}; needs {wanted}")
        audio = manifest.parent / record["audio"]
        if not audio.is_file():
            raise ValueError(f"{place}: no audio file {audio}")
        yield {**{f: record[f] for f in wanted}, "audio": audio.read_bytes()}


def build(builder_class: type[ManifestBuilder], manifests: Path, out: Path) -> Path:
    """Write the ArrayRecord files of a data set.

    Args:
        builder_class: Commands or Prompts.
        manifests: folder of `{split}.jsonl` and audio.
        out: the folder in which `name/version` is made anew.

    Returns:
        The folder of the data set.
    """
    folder = Path(out) / builder_class.name / VERSION
    shutil.rmtree(folder, ignore_errors=True)  # else TFDS keeps what is there
    builder = builder_class(manifests=manifests, data_dir=out)
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    # Nothing is downloaded, yet TFDS makes a folder for it.
    with tempfile.TemporaryDirectory() as scratch:
        builder.download_and_prepare(download_dir=scratch, download_config=config)
    return folder


class Recordings:
    """A split as a random-access sequence of records.

    A record is {audio: bytes, text, lang, keywords: list of str, id, voice,
    duration: s, origin}. It may be pickled: worker processes open the files anew.
    """

    def __init__(self, folder: Path, split: str) -> None:
        self.folder, self.split = Path(folder), split
        self._open()

    def _open(self) -> None:
        builder: Any = tfds.builder_from_directory(self.folder)
        self._source = builder.as_data_source(split=self.split)

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "split": self.split}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)} in {self.folder}")
        index = int(index) % len(self)
        raw = self._source[index]
        return {
            "audio": bytes(raw["audio"]),
            "duration": float(raw["duration"]),
            "keywords": [word.decode("utf8") for word in raw["keywords"]],
            **{field: raw[field].decode("utf8") for field in TEXT_FIELDS},
            "origin": f"{self.folder.parent.name}:{self.split}[{index}]",
        }


def open_bundled(name: str, split: str) -> Recordings:
    """Open a data set that ships with the project.

    Args:
        name: "commands", "prompts" or "names".
        split: "train" or "test"; only commands have both.

    Raises:
        ValueError: unknown name or split; the message lists what there is.
    """
    if name not in SPLITS:
        raise ValueError(
            f"no bundled data set {name!r}; there are: {', '.join(SPLITS)}"
        )
    if split not in SPLITS[name]:
        raise ValueError(
            f"bundled data set {name!r} has no split {split!r}; "
            f"it has: {', '.join(SPLITS[name])}"
        )
    return Recordings(BUNDLED / name / VERSION, split)
