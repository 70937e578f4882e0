"""The public interface: a model loaded, recordings transcribed, streams listened to."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import numpy as np

from nim4_jax.data.audio import reading
from nim4_jax.decode import longform
from nim4_jax.decode.hotwords import HotwordList
from nim4_jax.decode.live.listener import Listener
from nim4_jax.decode.live.stream_config import StreamConfig
from nim4_jax.decode.recogniser import Loaded
from nim4_jax.decode.transcripts import Recording
from nim4_jax.retrieval import names
from nim4_jax.serving import recognisers
from nim4_jax.text import prompt

Audio = str | os.PathLike | bytes | np.ndarray
"""A file, its bytes, or samples: float [S] in [-1, 1) or int16 [S]."""


def load(origin: str | os.PathLike, *, chunk_ms: int = 0, left: int = 4) -> Recogniser:
    """Load a model.

    Args:
        origin: folder of a training run or of a bundle, a .safetensors file, or
            "package:FILE" for one that comes with the package.
        chunk_ms: length of chunks that the encoder hears recordings in, ms, as streams
            do; 0 for all of a recording at once.
        left: chunks that a chunk sees to its left.

    Raises:
        ValueError: nothing to load, or a model that hears but does not write.
    """
    return Recogniser(recognisers.load(os.fspath(origin), chunk_ms=chunk_ms, left=left))


class Recogniser:
    """A model that writes what is said, in recordings and in streams."""

    def __init__(self, loaded: Loaded):
        """Take a loaded model.

        Raises:
            ValueError: it hears but does not write.
        """
        loaded.recogniser.check_writes()
        self._loaded = loaded

    def transcribe(
        self,
        audio: Audio,
        *,
        sample_rate: int = reading.SAMPLE_RATE,
        hints: Sequence[str] = (),
        hotwords: HotwordList | str | os.PathLike | None = None,
        timings: bool = True,
        vad: str = "silero",
    ) -> Recording:
        """Transcribe one recording of any length.

        Args:
            audio: a file of any format, rate and number of channels, its bytes, or mono
                samples.
            sample_rate: of samples, Hz.
            hints: names for the prompt.
            hotwords: a database or a list of names: those that are heard come into the
                prompt. A path is read anew by each call; `HotwordList.open` reads it
                once.
            timings: whether words get times and confidences.
            vad: "silero" cuts long recordings where nobody speaks, "none" anywhere.

        Returns:
            The recording with `text` and `passages`; `warning` says what of the audio
            could not be decoded.

        Raises:
            AudioError: nothing could be decoded.
            OSError: the file cannot be read.
            ValueError: hints without room in the prompt, or no hotwords at that path.
        """
        made = _describe(audio, sample_rate)
        found = longform.transcribe_recordings(
            self._loaded,
            [made],
            longform.Options(
                vad=vad,
                timings=timings,
                hints=self._check_hints(hints),
                names=_open_list(hotwords),
            ),
        )
        (recording,) = found
        if recording.cause:
            raise recording.cause
        return recording

    def transcribe_files(
        self,
        paths: Sequence[str | os.PathLike],
        *,
        hints: Sequence[str] = (),
        hotwords: HotwordList | str | os.PathLike | None = None,
        timings: bool = True,
        vad: str = "silero",
        batch: int = 8,
    ) -> Iterator[Recording]:
        """Transcribe many files, segments of all of them together in batches.

        Args:
            paths: audio files.
            hints: names for every prompt.
            hotwords: see `transcribe`.
            timings: whether words get times and confidences.
            vad: see `transcribe`.
            batch: most segments at once.

        Yields:
            Recordings in the order of the paths; one that cannot be read has `error`
            set and does not stop the others.

        Raises:
            ValueError: see `transcribe`.
        """
        return longform.transcribe_files(
            self._loaded,
            [os.fspath(path) for path in paths],
            longform.Options(
                batch=batch,
                vad=vad,
                timings=timings,
                hints=self._check_hints(hints),
                names=_open_list(hotwords),
            ),
        )

    def listen(
        self, streams: int = 1, *, chunk_ms: int = 640, left: int = 4
    ) -> Listener:
        """A listener for streams of audio, all programs of which are compiled.

        Args:
            streams: most streams at once.
            chunk_ms: length of chunks, ms: a multiple of the model's speech token.
            left: chunks that a chunk sees to its left.

        Raises:
            ValueError: a length that the model cannot be cut into, or that a bundle has
                no programs for.
        """
        recogniser = self._loaded.recogniser
        config = StreamConfig.of(chunk_ms, left, recogniser.programs.rates)
        listener = Listener(recogniser, streams=streams, config=config)
        listener.warm_up()
        return listener

    def _check_hints(self, hints: Sequence[str]) -> tuple[str, ...]:
        """The hints, cleaned as lists of names are.

        Raises:
            ValueError: more than a prompt has room for, or a string in place of a list.
        """
        if isinstance(hints, str):
            raise ValueError(f"hints={hints!r} is one string; give a list of names.")
        clean = tuple(name for name in map(names.clean, hints) if name)
        room = StreamConfig.of(rates=self._loaded.recogniser.programs.rates)
        tokenizer = self._loaded.recogniser.tokenizer
        fitting = prompt.fit_hints(tokenizer, clean, room.suffix_tokens)
        if len(fitting) < len(clean):
            raise ValueError(
                f"the prompt has room for {len(fitting)} of {len(clean)} hints; give "
                "fewer, or a list of hotwords, of which those that are heard are taken."
            )
        return clean


def _describe(audio: Audio, sample_rate: int) -> Recording:
    if isinstance(audio, np.ndarray):
        samples = reading.decode(audio, sample_rate=sample_rate, name="samples")
        return Recording("samples", audio=samples)
    if isinstance(audio, bytes):
        return Recording("bytes", audio=audio)
    return Recording(os.fspath(audio))


def _open_list(
    hotwords: HotwordList | str | os.PathLike | None,
) -> HotwordList | None:
    if hotwords is None or isinstance(hotwords, HotwordList):
        return hotwords
    return HotwordList.open(os.fspath(hotwords))
