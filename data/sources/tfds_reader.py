"""Prepared TFDS data sets of speech as records, read without TensorFlow.

`tfds.features.Audio` cannot even be constructed without TensorFlow, although what it
stores is plain: integer samples, or the encoded file's bytes if it decodes lazily. So
the folder is opened directly and the audio feature replaced by the tensor it stores. No
data set's code is run and nothing is downloaded.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import read_only_builder

AUDIO_FEATURES = ("audio", "speech", "wav")
TEXT_FEATURES = ("text", "transcript", "transcription", "sentence")

_VERSION = re.compile(r"\d+\.\d+\.\d+")


class TfdsSource:
    """One split of a prepared data set as records (see sources.py)."""

    def __init__(
        self, name: str, split: str, lang: str = "auto", data_dir: str | None = None
    ):
        """Open a split.

        Args:
            name: `name[/config][:version]`; the newest version if none is given.
            split: `train`, `test[:10%]`, … in TFDS's notation.
            lang: language of the data set if it has no `lang` feature.
            data_dir: folder of data sets; $TFDS_DATA_DIR or ~/tensorflow_datasets if
                None.

        Raises:
            ValueError: no such data set or split, no ArrayRecord files, or no audio and
                text features.
        """
        self._arguments = (name, split, lang, data_dir)
        self.name, self.split, self.lang = name, split, lang
        folder = find_folder(name, data_dir)
        features = json.loads((folder / "features.json").read_text("utf8"))
        features = features.get("featuresDict", {}).get("features", {})
        self._audio = _choose_feature(features, AUDIO_FEATURES, name)
        self._text = _choose_feature(features, TEXT_FEATURES, name)
        # None: the records have to be asked.
        self.has_keywords = None if "keywords" in features else False
        rate = features[self._audio].get("audio", {}).get("sampleRate")
        self._rate = int(rate) if rate else None
        builder: Any = _AudioReader(folder, features)
        known = sorted(builder.info.splits)
        if re.split(r"[\[+]", split)[0] not in known:
            raise ValueError(
                f"TFDS data set {name!r} has no split {split!r}; "
                f"it has: {', '.join(known)}"
            )
        try:
            self._data = builder.as_data_source(split=split)
        except NotImplementedError as error:
            raise ValueError(
                f"TFDS data set {name!r} in {folder} has no random access; prepare it "
                "with file_format='array_record'"
            ) from error

    def __getstate__(self) -> tuple:
        # Open files do not travel to worker processes: they open their own.
        return self._arguments

    def __setstate__(self, arguments: tuple) -> None:
        self.__init__(*arguments)

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = self._data[index]
        audio = example[self._audio]
        rate = example.get("sample_rate", self._rate)
        duration = example.get("duration")
        return {
            "audio": audio if isinstance(audio, bytes) else np.asarray(audio),
            "sample_rate": None if rate is None else int(rate),
            "text": _to_text(example[self._text]),
            "lang": _to_text(example.get("lang", self.lang)),
            "keywords": tuple(_to_text(word) for word in example.get("keywords", ())),
            "id": _to_text(example.get("id", f"{self.name}-{index}")),
            "duration": None if duration is None else float(duration),
            "origin": f"tfds:{self.name}:{self.split}:{index}",
        }


class _AudioReader(  # pyright: ignore[reportGeneralTypeIssues]
    read_only_builder.ReadOnlyBuilder, skip_registration=True
):
    """A read-only builder whose features need no TensorFlow."""

    def __init__(self, folder: Path, features: dict[str, dict]):
        self._entries = features
        super().__init__(builder_dir=folder)

    def _info(self) -> tfds.core.DatasetInfo:
        connectors = {name: _to_plain(entry) for name, entry in self._entries.items()}
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(connectors)
        )


def _to_plain(entry: dict) -> tfds.features.FeatureConnector:
    """A feature from its JSON; an Audio feature as the tensor that it stores."""
    if not entry["pythonClassName"].endswith(".Audio"):
        return tfds.features.FeatureConnector.from_json(entry)
    content = entry.get("audio", {})
    if content.get("lazyDecode"):
        return tfds.features.Tensor(shape=(), dtype=np.object_)
    sizes = [int(size) for size in content["shape"]["dimensions"]]
    return tfds.features.Tensor(
        shape=tuple(None if size < 0 else size for size in sizes),
        dtype=np.dtype(content["dtype"]),
        encoding=content.get("encoding", "none"),
    )


def find_folder(name: str, data_dir: str | None = None) -> Path:
    """The folder `data_dir/name[/config]/version` of a prepared data set.

    Raises:
        ValueError: there is none; the message lists what there is.
    """
    default = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
    root = Path(data_dir or default).expanduser()
    path, _, wanted = name.partition(":")
    folder = root / path
    inside = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
    versions = [v for v in inside if _VERSION.fullmatch(v) and wanted in ("", v)]
    if not versions:
        raise ValueError(
            f"no prepared TFDS data set {name!r} in {root}; {folder} has: "
            f"{', '.join(inside) or 'nothing'}. Prepare it with TFDS "
            "(file_format='array_record'), or give ?data_dir=…"
        )
    newest = max(versions, key=lambda version: [int(n) for n in version.split(".")])
    return folder / newest


def _choose_feature(features: dict, names: Sequence[str], data_set: str) -> str:
    for name in names:
        if name in features:
            return name
    raise ValueError(
        f"TFDS data set {data_set!r} has the features {sorted(features)}; "
        f"expected one of {', '.join(names)}"
    )


def _to_text(value: Any) -> str:
    return value.decode("utf8") if isinstance(value, bytes) else str(value)
