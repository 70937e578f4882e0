"""Audio files, bytes and arrays to mono float32 at 16 kHz, whole or in blocks.

Everything below the data package sees one form of audio: float32 samples in [-1, 1),
one channel, 16 kHz. libsndfile reads wav, flac, ogg (Vorbis, Opus) and mp3; soxr
resamples. What cannot be read raises `AudioError`, which names the file and carries a
short machine-readable reason, so that a training run can count it and go on.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
import soxr

SAMPLE_RATE = 16000
"""Samples a second of everything that leaves this module, Hz."""

Audio = str | os.PathLike | bytes | np.ndarray
"""A path, an encoded file's bytes, or samples ([S] or [S, channels])."""

_TAIL_BYTES = 65536  # longer than the largest possible Ogg page (65,307 bytes)
_DURATION_SLACK = 0.25  # seconds by which a file may fall short of its stated length


class AudioError(ValueError):
    """Audio that cannot be used; `reason` is one of `AUDIO_REASONS`."""

    def __init__(self, reason: str, name: str, detail: str):
        super().__init__(f"{name}: {reason}: {detail}")
        self.reason = reason
        self.name = name


AUDIO_REASONS = (
    "missing file",
    "unreadable audio",
    "zero length",
    "truncated",
    "not finite",
    "too long",
)


def decode(
    audio: Audio,
    *,
    sample_rate: int | None = None,
    name: str | None = None,
    duration: float | None = None,
    max_seconds: float | None = None,
) -> np.ndarray:
    """Decode audio to mono float32 samples at 16 kHz; channels are averaged.

    Args:
        audio: path, encoded bytes, or samples: floats in [-1, 1), or integers of which
            8, 16 and 32 bit types are scaled by their range and int64 (how TFDS stores
            audio) as 16 bit.
        sample_rate: rate of an array, Hz; 16000 if None. Files know their own.
        name: what errors call the audio; a path's own name if None.
        duration: seconds that the audio should have (a manifest's field); a decoded
            length that falls short of it by more than 0.25 s is a truncated file.
        max_seconds: refuse longer audio from its header, before decoding it.

    Returns:
        float32 [S] at 16 kHz.

    Raises:
        AudioError: missing, unreadable, empty, truncated, not finite, or too long.
    """
    name = name or _name_audio(audio)
    if isinstance(audio, np.ndarray):
        rate = sample_rate or SAMPLE_RATE
        _check_seconds(len(audio) / rate, max_seconds, name)
        samples = _scale_integers(audio)
    else:
        samples, rate = _read_file(audio, name, max_seconds)
    if samples.ndim > 1:
        samples = _average_channels(samples)
    if not samples.size:
        raise AudioError("zero length", name, "it holds no sample")
    if not np.isfinite(samples).all():
        raise AudioError("not finite", name, "it holds NaN or infinite samples")
    seconds = len(samples) / rate
    if duration is not None and seconds < duration - _DURATION_SLACK:
        raise AudioError(
            "truncated",
            name,
            f"it holds {seconds:.2f} s, expected {duration:.2f} s",
        )
    return resample(samples, rate, SAMPLE_RATE)


def decode_piece(
    audio: Audio,
    start: float,
    seconds: float,
    *,
    sample_rate: int | None = None,
    name: str | None = None,
) -> np.ndarray:
    """Decode a part of a recording; of a file only that part is read.

    Args:
        audio: as `decode` takes it.
        start: where the part begins, s.
        seconds: its length; less is returned where the recording ends earlier.
        sample_rate: rate of an array, Hz; 16000 if None.
        name: what errors call the audio; a path's own name if None.

    Returns:
        float32 [S] at 16 kHz.

    Raises:
        AudioError: missing, unreadable, not finite, or nothing there.
    """
    name = name or _name_audio(audio)
    if isinstance(audio, np.ndarray):
        rate = sample_rate or SAMPLE_RATE
        first = round(start * rate)
        samples = audio[first : first + int(np.ceil(seconds * rate))]
        return decode(samples, sample_rate=rate, name=name)
    with _open_file(audio, name) as file:
        rate = file.samplerate
        try:
            file.seek(min(round(start * rate), file.frames))
        except soundfile.LibsndfileError as error:
            raise AudioError(
                "truncated", name, f"no way to {start} s: {error}"
            ) from error
        samples = _read_frames(file, int(np.ceil(seconds * rate)), name)
    return decode(samples, sample_rate=rate, name=name)


def resample(samples: np.ndarray, source_rate: float, target_rate: float) -> np.ndarray:
    """Resample [S] float32 with soxr's HQ filter; equal rates return it as it is."""
    if source_rate == target_rate:
        return np.ascontiguousarray(samples, np.float32)
    return soxr.resample(samples, source_rate, target_rate, "HQ").astype(
        np.float32, copy=False
    )


def change_speed(samples: np.ndarray, factor: float) -> np.ndarray:
    """Play [S] samples `factor` times as fast: duration / factor, pitch × factor.

    The samples are taken to be at factor × 16 kHz and resampled to 16 kHz, which is
    what sox's `speed` effect does.

    Source: SPEC §3, robustness; the three-fold speed perturbation of Ko et al. 2015.
    """
    return resample(samples, factor * SAMPLE_RATE, SAMPLE_RATE)


def to_int16(samples: np.ndarray) -> np.ndarray:
    """Round float samples in [-1, 1) to int16, clipping what lies outside."""
    return np.clip(np.rint(samples * 32768.0), -32768, 32767).astype(np.int16)


def clip(samples: np.ndarray) -> np.ndarray:
    """Float samples limited to what 16 bits hold, [-1, 1)."""
    return np.clip(samples, np.float32(-1.0), np.float32(32767 / 32768))


def to_float32(samples: np.ndarray) -> np.ndarray:
    """The inverse of `to_int16`: int16 to float32 in [-1, 1)."""
    return samples.astype(np.float32) / np.float32(32768.0)


def read_duration(
    audio: Audio, *, sample_rate: int | None = None, name: str | None = None
) -> float:
    """Length of the audio in seconds, from the header only.

    Raises:
        AudioError: missing or unreadable.
    """
    name = name or _name_audio(audio)
    if isinstance(audio, np.ndarray):
        return len(audio) / (sample_rate or SAMPLE_RATE)
    with _open_file(audio, name) as file:
        return file.frames / file.samplerate


def read_blocks(path: str | os.PathLike, seconds: float) -> Iterator[np.ndarray]:
    """Decode a file of any length in blocks, at 16 kHz, in constant memory.

    The concatenated blocks are `decode(path)` up to the resampler's rounding (a stream
    resampler carries its filter state over the block borders).

    Args:
        path: an audio file.
        seconds: length of a block; every block but the last has exactly
            `round(seconds · 16000)` samples.

    Yields:
        float32 [S] blocks at 16 kHz; nothing for an empty file.

    Raises:
        AudioError: missing, unreadable, truncated, or not finite.
    """
    name = _name_audio(path)
    size = round(seconds * SAMPLE_RATE)
    if size < 1:
        raise ValueError(f"got blocks of {seconds} s; give at least one sample")
    pending = np.zeros(0, np.float32)
    for samples in _read_resampled(path, name, seconds):
        pending = np.concatenate([pending, samples])
        while len(pending) >= size:
            yield pending[:size].copy()
            pending = pending[size:]
    if len(pending):
        yield pending


def _read_resampled(path, name: str, seconds: float) -> Iterator[np.ndarray]:
    """Mono 16 kHz pieces of a file, as the stream resampler hands them out."""
    with _open_file(path, name) as file:
        rate = file.samplerate
        stream = None
        if rate != SAMPLE_RATE:
            stream = soxr.ResampleStream(rate, SAMPLE_RATE, 1, "float32", "HQ")
        expected, count = file.frames, 0
        while True:
            samples = _read_frames(file, max(1, round(seconds * rate)), name)
            last = not len(samples)
            count += len(samples)
            samples = _average_channels(samples)
            if not np.isfinite(samples).all():
                raise AudioError("not finite", name, "it holds NaN or infinite samples")
            if stream is not None:
                samples = stream.resample_chunk(samples, last=last)
            if len(samples):
                yield samples
            if last:
                break
        _check_complete(path, name, count, expected, file.format)


def _name_audio(audio: Audio) -> str:
    if isinstance(audio, np.ndarray):
        return "audio array"
    if isinstance(audio, bytes):
        return "audio bytes"
    return os.fspath(audio)


def _scale_integers(samples: np.ndarray) -> np.ndarray:
    """Integer samples to float32 in [-1, 1); floats pass."""
    if samples.dtype.kind == "f":
        return samples.astype(np.float32, copy=False)
    if samples.dtype.kind not in "iu":
        raise ValueError(
            f"audio array has dtype {samples.dtype}; "
            "expected floats in [-1, 1) or integers"
        )
    if samples.dtype == np.uint8:
        return (samples.astype(np.float32) - 128.0) / 128.0
    bits = 16 if samples.dtype.itemsize == 8 else samples.dtype.itemsize * 8
    return (samples / float(2 ** (bits - 1))).astype(np.float32)


def _average_channels(samples: np.ndarray) -> np.ndarray:
    """float32 [S, channels] to [S]; of one channel it is a view, not a copy."""
    if samples.shape[1] == 1:
        return samples[:, 0]
    return samples.mean(axis=1, dtype=np.float32)


def _check_seconds(seconds: float, max_seconds: float | None, name: str) -> None:
    if max_seconds is not None and seconds > max_seconds:
        raise AudioError(
            "too long", name, f"{seconds:.2f} s, the limit is {max_seconds:.2f} s"
        )


def _open_file(audio, name: str) -> soundfile.SoundFile:
    if isinstance(audio, bytes):
        if not audio:
            raise AudioError("zero length", name, "it has no byte")
        source = io.BytesIO(audio)
    else:
        source = os.fspath(audio)
        if not Path(source).is_file():
            raise AudioError("missing file", name, "there is no such file")
        if not Path(source).stat().st_size:
            raise AudioError("zero length", name, "the file has no byte")
    try:
        return soundfile.SoundFile(source)
    except soundfile.LibsndfileError as error:
        raise AudioError("unreadable audio", name, str(error)) from error


def _read_file(audio, name: str, max_seconds: float | None) -> tuple[np.ndarray, int]:
    """All samples [S, channels] of a file or its bytes, and its rate."""
    with _open_file(audio, name) as file:
        _check_seconds(file.frames / file.samplerate, max_seconds, name)
        samples = _read_frames(file, -1, name)
        _check_complete(audio, name, len(samples), file.frames, file.format)
        return samples, file.samplerate


def _read_frames(file: soundfile.SoundFile, frames: int, name: str) -> np.ndarray:
    try:
        return file.read(frames, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise AudioError("truncated", name, f"decoding broke off: {error}") from error


def _check_complete(audio, name: str, count: int, expected: int, form: str) -> None:
    """Raise if the file ends before its own header or container says that it should."""
    if count < expected:
        raise AudioError(
            "truncated", name, f"{count} of the header's {expected} frames decoded"
        )
    if form == "WAV":
        missing = _count_missing_wav_bytes(audio)
        if missing:
            raise AudioError(
                "truncated", name, f"{missing} bytes are missing at the end"
            )
    if form == "OGG" and not _has_last_ogg_page(audio):
        raise AudioError("truncated", name, "the stream's last Ogg page is missing")


def _read_ends(audio, head: int, tail: int) -> tuple[bytes, bytes, int]:
    """First `head` and last `tail` bytes, and the size in bytes."""
    if isinstance(audio, bytes):
        return audio[:head], audio[-tail:], len(audio)
    with open(audio, "rb") as file:
        first = file.read(head)
        size = os.fstat(file.fileno()).st_size
        file.seek(max(0, size - tail))
        return first, file.read(tail), size


def _count_missing_wav_bytes(audio) -> int:
    """Bytes by which a RIFF file is shorter than its header says.

    Writers of pipes leave 0 or 0xFFFFFFFF as the size: it says nothing then.
    """
    head, _, size = _read_ends(audio, 8, 8)
    stated = int.from_bytes(head[4:8], "little")
    if head[:4] != b"RIFF" or stated in (0, 0xFFFFFFFF):
        return 0
    return max(0, stated + 8 - size)


def _has_last_ogg_page(audio) -> bool:
    """Whether the last Ogg page carries the end-of-stream flag (RFC 3533 §6)."""
    _, tail, _ = _read_ends(audio, 4, _TAIL_BYTES)
    page = tail.rfind(b"OggS")
    return page >= 0 and len(tail) > page + 5 and bool(tail[page + 5] & 4)
