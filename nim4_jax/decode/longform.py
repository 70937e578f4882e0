"""Transcription of recordings of any length: cut at pauses, decoded in batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from tqdm import tqdm

from nim4_jax.data.audio import channels, reading
from nim4_jax.decode.hotwords import FindingRecogniser, NameFinder
from nim4_jax.decode.recogniser import BatchRecogniser, Loaded
from nim4_jax.decode.segments import AudioBatch, Batcher, Cutter
from nim4_jax.decode.silero import Silero
from nim4_jax.decode.transcripts import Passage, Recording

VADS = ("silero", "none")

_BLOCK_SECONDS = 10.0


@dataclasses.dataclass(frozen=True)
class Options:
    """How recordings are transcribed.

    Attributes:
        batch: most segments at once.
        vad: one of VADS: recordings longer than the largest shape are cut where nobody
            speaks and their silence is left out, or ("none") cut at quiet places.
        timings: whether words get times and confidences.
        hints: names for every prompt.
        names: to be looked for in a first pass, for the prompts of the second.
    """

    batch: int = 8
    vad: str = "silero"
    timings: bool = True
    hints: Sequence[str] = ()
    names: NameFinder | None = None


DEFAULT = Options()


def transcribe_files(
    loaded: Loaded,
    paths: Sequence[str | tuple[str, channels.Channel]],
    options: Options = DEFAULT,
    *,
    show_progress: bool = False,
) -> Iterator[Recording]:
    """Transcribe files, segments of all of them together in batches.

    Args:
        loaded: the model and its shapes; segments are as long as the largest shape.
        paths: audio files of any format, rate, channels and length, each alone or with
            the channel of it that is heard.
        options: how.
        show_progress: whether a bar is drawn on stderr.

    Yields:
        Recordings in the order of the paths, see `transcribe_recordings`.

    Raises:
        ValueError: an unknown vad.
    """
    given = [path if isinstance(path, tuple) else (path, "mix") for path in paths]
    recordings = [Recording(path, channel=channel) for path, channel in given]
    return transcribe_recordings(
        loaded, recordings, options, show_progress=show_progress
    )


def transcribe_recordings(
    loaded: Loaded,
    recordings: list[Recording],
    options: Options = DEFAULT,
    *,
    show_progress: bool = False,
) -> Iterator[Recording]:
    """Transcribe recordings, segments of all of them together in batches.

    Memory holds the segments that wait for a batch, never a whole file.

    Args:
        loaded: the model and its shapes; segments are as long as the largest shape.
        recordings: nothing of which is read yet.
        options: how.
        show_progress: whether a bar is drawn on stderr.

    Yields:
        The recordings, in their order; one that cannot be read has `error` set and does
        not stop the others; one that breaks off has `warning` set, and the transcript
        of what came before.

    Raises:
        ValueError: an unknown vad.
    """
    emitted = 0
    for _ in _transcribe_batches(loaded, recordings, options, show_progress):
        while emitted < len(recordings) and _is_complete(recordings[emitted]):
            yield recordings[emitted]
            emitted += 1
    yield from recordings[emitted:]


def follow(
    loaded: Loaded, recording: Recording, options: Options = DEFAULT
) -> Iterator[Passage]:
    """Transcribe one recording while it is read.

    Args:
        loaded: the model and its shapes.
        recording: nothing of which is read yet; it gets its passages as they are done.
        options: how.

    Yields:
        Its passages in the order of time, each as soon as none before it is missing.

    Raises:
        AudioError, OSError: nothing of it can be read.
        ValueError: an unknown vad.
    """
    told = 0
    for _ in _transcribe_batches(loaded, [recording], options, False):
        missing = min(recording.waiting, default=float("inf"))
        settled = [p for p in recording.passages if p.start < missing]
        yield from settled[told:]
        told = len(settled)
    if recording.cause:
        raise recording.cause


def _transcribe_batches(
    loaded: Loaded, recordings: list[Recording], options: Options, show_progress: bool
) -> Iterator[None]:
    """`transcribe_recordings`, batch by batch: what is done stands in them."""
    vad, batch = options.vad, options.batch
    if vad not in VADS:
        raise ValueError(f"vad {vad!r} is unknown; use one of {VADS}.")
    recogniser = loaded.recogniser
    if options.names is not None:
        recogniser = FindingRecogniser(recogniser, options.names)
    cutter = Cutter(loaded.bucket_seconds[-1], Silero if vad == "silero" else None)
    total, count = _survey(recordings, cutter.limit)
    rows = 1
    while rows < min(batch, count):
        rows *= 2
    rows = min(rows, batch)
    batcher = Batcher(loaded.bucket_seconds, (rows,) * len(loaded.bucket_seconds))
    bar = tqdm(total=round(total), unit="s", disable=None if show_progress else True)
    with bar:
        for ready in batcher.gather(_cut_all(recordings, cutter)):
            _finish(recogniser, ready, recordings, options)
            bar.update(round(sum(each.progress for each in recordings)) - bar.n)
            yield


def _is_complete(recording: Recording) -> bool:
    return bool(recording.error) or (recording.read and not recording.waiting)


def _survey(recordings: Sequence[Recording], limit: float) -> tuple[float, int]:
    """Seconds of audio in all recordings, and about how many segments that makes."""
    total, count = 0.0, 0
    for recording in recordings:
        try:
            seconds = _measure(recording)
        except reading.AudioError:
            continue  # reported when its turn comes
        total += seconds
        # Cuts lie between half the limit and the limit.
        count += 1 if seconds <= limit else int(seconds / (0.75 * limit)) + 1
    return total, max(count, 1)


def _measure(recording: Recording) -> float:
    """Seconds, by its samples or its header.

    Raises:
        AudioError: it has none that can be read.
    """
    if isinstance(recording.audio, np.ndarray):
        return len(recording.audio) / reading.SAMPLE_RATE
    return reading.read_duration(
        recording.path if recording.audio is None else recording.audio,
        name=recording.path,
    )


def _cut_all(
    recordings: list[Recording], cutter: Cutter
) -> Iterator[tuple[tuple[int, float], np.ndarray]]:
    """Segments under (number of the recording, start in s), as the files are read."""
    for number, recording in enumerate(recordings):
        try:
            for segment in cutter.cut(_read(recording)):
                recording.waiting[segment.start] = len(segment.samples)
                yield (number, segment.start), segment.samples
            if not recording.samples:
                raise reading.AudioError(
                    "zero length", recording.path, "it holds no sample"
                )
        except (reading.AudioError, OSError) as error:
            recording.error, recording.cause = str(error), error
        recording.read = True


def _read(recording: Recording) -> Iterator[np.ndarray]:
    """The file's blocks, counted; what is wrong behind them is only noted.

    Raises:
        AudioError: nothing could be read.
    """
    blocks = _open_blocks(recording)
    try:
        for block in blocks:
            recording.samples += len(block)
            yield block
    except reading.AudioError as error:
        if not recording.samples:
            raise
        recording.warning = str(error)


def _open_blocks(recording: Recording) -> Iterator[np.ndarray]:
    if isinstance(recording.audio, np.ndarray):
        size = round(_BLOCK_SECONDS * reading.SAMPLE_RATE)
        starts = range(0, len(recording.audio), size)
        return (recording.audio[start : start + size] for start in starts)
    return reading.read_blocks(
        recording.path if recording.audio is None else recording.audio,
        _BLOCK_SECONDS,
        channel=recording.channel,
        name=recording.path,
    )


def _finish(
    recogniser: BatchRecogniser | FindingRecogniser,
    batch: AudioBatch,
    recordings: list[Recording],
    options: Options,
) -> None:
    """Transcribe a batch and hand each transcript to its recording."""
    given = [options.hints] * len(batch.audio.mask) if options.hints else None
    transcripts = recogniser.transcribe(
        batch.audio, hints=given, timings=options.timings
    )
    for (number, start), transcript in zip(batch.keys, transcripts):
        recording = recordings[number]
        recording.add(start, transcript)
        # Short and long segments come back in the order of their batches.
        recording.passages.sort(key=lambda passage: passage.start)
