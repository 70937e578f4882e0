"""Recordings of noise (`noise_sources`), from which random pieces are read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from nim4_jax.data.audio import reading
from nim4_jax.data.noise import mixing
from nim4_jax.data.sources import examples, manifests, records
from nim4_jax.data.sources.examples import Opener
from nim4_jax.data.sources.skips import SkipReport

SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3")
"""What counts as audio in a folder."""


class Folder:
    """All audio files below a folder, in the order of their names."""

    def __init__(self, path: str):
        """List the files.

        Raises:
            ValueError: there is none.
        """
        found = (p for p in Path(path).rglob("*") if p.suffix.lower() in SUFFIXES)
        self._files = sorted(map(str, found))
        if not self._files:
            raise ValueError(
                f"noise source {path!r} holds no audio; expected files that end in "
                f"{', '.join(SUFFIXES)}"
            )

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> examples.Record:
        path = self._files[index]
        return {"audio": path, "text": "", "origin": path}


class NoiseFiles:
    """Measured recordings of noise.

    Attributes:
        seconds: float64, length of each usable one.
    """

    def __init__(
        self,
        specs: Sequence[str],
        report: SkipReport,
        open_source: Opener = manifests.open_manifest,
    ):
        """Open folders and manifests and measure every recording.

        Args:
            specs: folders, or what `open_source` opens; transcripts do not matter.
            report: counts what cannot be read.
            open_source: for all that is no folder.

        Raises:
            ValueError: nothing can be used.
        """
        if isinstance(specs, str):
            raise ValueError(f"got noise_sources {specs!r}; expected a list of them")
        opened = [
            Folder(spec) if Path(spec).is_dir() else open_source(spec) for spec in specs
        ]
        self._corpus = examples.Corpus(opened)
        seconds = np.array([self._measure(i, report) for i in range(len(self._corpus))])
        self._usable = np.flatnonzero(seconds > 0)
        self.seconds = seconds[self._usable]
        if not len(self._usable):
            raise ValueError(f"no noise can be used:\n{report.summary()}")

    def _measure(self, number: int, report: SkipReport) -> float:
        """Seconds of a recording; 0 if it cannot be used, which is counted."""
        record = self._corpus[number]
        name = records.name(record)
        try:
            seconds = records.measure(record, stated=False)
            if seconds <= 0:
                raise reading.AudioError("zero length", name, "it lasts 0 s")
        except reading.AudioError as error:
            # Negative: these are not examples, whose numbers start at 0.
            report.add(f"noise: {error.reason}", -1 - number, record["origin"], name)
            return 0.0
        return seconds

    def read(self, rng: np.random.Generator, size: int) -> Float[np.ndarray, " S"]:
        """A piece of a recording; all recordings are equally likely.

        Args:
            rng: draws the recording and where the piece begins.
            size: samples; a recording that is shorter begins again.

        Returns:
            float32 [size] at 16 kHz.

        Raises:
            AudioError: the recording cannot be decoded.
        """
        choice = int(rng.integers(len(self._usable)))
        record = self._corpus[int(self._usable[choice])]
        wanted = size / reading.SAMPLE_RATE
        start = rng.uniform(0.0, max(0.0, self.seconds[choice] - wanted))
        piece = records.decode_piece(record, start, wanted)
        return mixing.loop(piece, 0, size)
