"""Decoding with hotwords: names found in a first pass are hints in the second."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from nim4_jax.data.sources import opening
from nim4_jax.decode.recogniser import BatchRecogniser, Transcript
from nim4_jax.retrieval import database, names
from nim4_jax.retrieval.chance import PhonemeTrigrams
from nim4_jax.retrieval.database import Database
from nim4_jax.retrieval.gate import LATTICE
from nim4_jax.retrieval.hints import select_hints
from nim4_jax.retrieval.hotwords import HotwordRetriever, StreamState
from nim4_jax.retrieval.hypothesis import Hypothesis
from nim4_jax.retrieval.layer import Layer
from nim4_jax.retrieval.pronunciation import pronounce
from nim4_jax.text.tokenizer import Tokenizer
from nim4_jax.types import Frames

_TEXTS = "bundled:commands:train"


@dataclasses.dataclass(frozen=True)
class NameFinder:
    """Finds names in whole recordings.

    Attributes:
        retriever: of the names.
    """

    retriever: HotwordRetriever

    def find(
        self,
        log_probs: Float[np.ndarray, "U P"],
        tokenizer: Tokenizer,
        frame_seconds: float,
    ) -> tuple[str, ...]:
        """Names for the prompt of a recording, the best first.

        Args:
            log_probs: natural log of its phoneme posteriors.
            tokenizer: of the LLM.
            frame_seconds: from one frame of the posteriors to the next.
        """
        if not len(log_probs):
            return ()
        heard = Hypothesis.read(log_probs, frame_seconds)
        state, _ = self.retriever.scan(
            StreamState(frame_seconds=frame_seconds),
            heard.phonemes,
            heard.log_probs,
            heard.times,
        )
        return select_hints(state.hits, tokenizer)


@dataclasses.dataclass(frozen=True)
class HotwordList(NameFinder):
    """Names that may be found.

    Attributes:
        base: the names by how they sound.
    """

    base: Database

    @classmethod
    def open(cls, path: str, near: str = LATTICE) -> HotwordList:
        """The database in a folder, or one made of a list of names.

        Args:
            path: of either.
            near: where near matches are looked for, one of `gate.WAYS`.

        Raises:
            ValueError: neither is there, it cannot be read, or a folder lacks the index
                that is asked for.
        """
        base = database.load(path, near) if Path(path).is_dir() else _build(path)
        return cls(HotwordRetriever([Layer(base, near=near)]), base)


def _build(path: str) -> Database:
    """A database of a list, as `nim4 build_hotwords` makes it, in memory."""
    listed = list(names.read_names(path))
    records = opening.open_source(_TEXTS)
    texts = (records[index]["text"] for index in range(len(records)))
    readings = {name.text: pronounce(name) for name in listed}
    return database.build(listed, readings, PhonemeTrigrams(texts))


def identify(path: str, near: str = LATTICE) -> str:
    """A checksum of a list or database: of its manifest, which has those of its files.

    Args:
        path: of either.
        near: where near matches shall be looked for.

    Raises:
        ValueError: there is none, or no index.
    """
    file = Path(path, database.MANIFEST) if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise ValueError(
            f"there is no hotword database and no list of names at {path}; make one "
            "with nim4 build_hotwords, or name a file with a name a line."
        )
    if Path(path).is_dir():
        database.check_index(path, near)
    return hashlib.sha256(file.read_bytes()).hexdigest()


@dataclasses.dataclass(frozen=True)
class FindingRecogniser:
    """A recogniser that finds names in a first pass and writes with them in a second.

    Attributes:
        recogniser: the model.
        names: that may be found.
    """

    recogniser: BatchRecogniser
    names: NameFinder

    @property
    def writes(self) -> bool:
        """Whether the model does."""
        return self.recogniser.writes

    @property
    def tokenizer(self) -> Tokenizer:
        """Of the LLM."""
        return self.recogniser.tokenizer

    def check_writes(self) -> None:
        """Refuse a model without an LLM, by ValueError."""
        self.recogniser.check_writes()

    def hear_phonemes(self, audio: Frames) -> list[tuple[int, ...]]:
        """As the model hears them."""
        return self.recogniser.hear_phonemes(audio)

    def transcribe(
        self,
        audio: Frames,
        *,
        hints: Sequence[Sequence[str]] | None = None,
        timings: bool = True,
    ) -> list[Prompted]:
        """Transcripts with the names that were found, behind those that are given."""
        heard = self.recogniser.score_phonemes(audio)
        given = hints or [()] * len(heard)
        seconds = self.recogniser.programs.rates.frame_seconds
        prompted = [
            tuple(dict.fromkeys((*own, *self.names.find(row, self.tokenizer, seconds))))
            for own, row in zip(given, heard, strict=True)
        ]
        made = self.recogniser.transcribe(audio, hints=prompted, timings=timings)
        return [Prompted(**vars(row), hints=own) for row, own in zip(made, prompted)]


@dataclasses.dataclass(frozen=True)
class Prompted(Transcript):
    """A transcript of a system that finds names by itself.

    Attributes:
        hints: names that were in the prompt.
    """

    hints: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Hotwords:
    """What the flags ask for.

    Attributes:
        names: for every prompt.
        found: names that are looked for in what is heard; None for none.
    """

    names: tuple[str, ...] = ()
    found: HotwordList | None = None
