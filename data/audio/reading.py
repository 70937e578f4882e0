"""Audio files, bytes and arrays to mono float32 at 16 kHz, whole or in blocks.

Everything below the data package sees one form of audio: float32 samples in [-1, 1),
one channel, 16 kHz. `decoder.py` decodes (libsndfile reads wav, flac, ogg and mp3,
ffmpeg the rest), `channels.py` makes one channel of several, soxr resamples. What
cannot be read raises `AudioError`, which names the file and carries a short
machine-readable reason, so that a training run can count it and go on.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator

import numpy as np
import soxr

from nim4_jax.data.audio.audio_error import (
    AUDIO_REASONS,
    LARGEST,
    AudioError,
    check_header,
    check_seconds,
)
from nim4_jax.data.audio.channels import Channel, ChannelMixer
from nim4_jax.data.audio.decoder import Decoder, Part, guard

__all__ = ["AUDIO_REASONS", "SAMPLE_RATE", "Audio", "AudioError", "decode"]

SAMPLE_RATE = 16000
"""Samples a second of everything that leaves this module, Hz."""

Audio = str | os.PathLike | bytes | np.ndarray
"""A path, an encoded file's bytes, or samples ([S] or [S, channels])."""

_AT_THE_END = ("truncated", "damaged audio")  # what is left was read before
_DURATION_SLACK = 0.25  # seconds by which a file may fall short of its stated length
_MOST_SECONDS = 6 * 3600.0
"""Of what is decoded whole, if no other limit is given: 1.4 GB of samples."""


def decode(
    audio: Audio,
    *,
    sample_rate: int | None = None,
    name: str | None = None,
    duration: float | None = None,
    max_seconds: float | None = None,
    channel: Channel = "mix",
) -> np.ndarray:
    """Decode audio to mono float32 samples at 16 kHz.

    Args:
        audio: path, encoded bytes, or samples: floats in [-1, 1), or integers of which
            8, 16 and 32 bit types are scaled by their range and int64 (how TFDS stores
            audio) as 16 bit.
        sample_rate: rate of an array, Hz; 16000 if None. Files know their own.
        name: what errors call the audio; a path's own name if None.
        duration: seconds that the audio should have (a manifest's field); a decoded
            length that falls short of it by more than 0.25 s is a truncated file.
        max_seconds: refuse longer audio from its header, before decoding it; six hours
            if None: `read_blocks` reads more.
        channel: which one, as `channels` describes.

    Returns:
        float32 [S] at 16 kHz.

    Raises:
        AudioError: missing, unreadable, empty, truncated, damaged, not finite, too
            long, or with a rate or channels that no speech has.
    """
    name = name or _name_audio(audio)
    if max_seconds is None:
        max_seconds = _MOST_SECONDS
    if isinstance(audio, np.ndarray):
        samples = _convert_array(audio, sample_rate, name, max_seconds, channel)
    else:
        span = _Span(0.0, None, max_seconds)
        with Decoder(audio, name) as decoder:
            samples = _join(_read_span(decoder, span, channel))
    if not samples.size:
        raise AudioError("zero length", name, "it holds no sample")
    seconds = len(samples) / SAMPLE_RATE
    if duration is not None and seconds < duration - _DURATION_SLACK:
        raise AudioError(
            "truncated",
            name,
            f"it holds {seconds:.2f} s, expected {duration:.2f} s",
        )
    return samples


def decode_piece(
    audio: Audio,
    start: float,
    seconds: float | None,
    *,
    sample_rate: int | None = None,
    name: str | None = None,
    channel: Channel = "mix",
) -> np.ndarray:
    """Decode a part of a recording; of a file only that part is read.

    Args:
        audio: as `decode` takes it.
        start: where the part begins, s.
        seconds: its length, None to the end; less is returned where the recording ends
            earlier.
        sample_rate: rate of an array, Hz; 16000 if None.
        name: what errors call the audio; a path's own name if None.
        channel: which one, as `channels` describes.

    Returns:
        float32 [S] at 16 kHz.

    Raises:
        AudioError: missing, unreadable, not finite, or nothing there.
    """
    name = name or _name_audio(audio)
    if isinstance(audio, np.ndarray):
        rate = sample_rate or SAMPLE_RATE
        first = round(start * rate)
        last = None if seconds is None else first + int(np.ceil(seconds * rate))
        piece = audio[first:last]
        return decode(piece, sample_rate=rate, name=name, channel=channel)
    with Decoder(audio, name) as decoder:
        samples = _join(_read_span(decoder, _Span(start, seconds), channel))
    if not samples.size:
        raise AudioError("zero length", name, f"it holds no sample behind {start} s")
    return samples


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
    # In one pass over the samples; a power of two rounds nothing.
    return np.multiply(samples, np.float32(2.0**-15), dtype=np.float32)


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
    with Decoder(audio, name) as decoder:
        return decoder.measure()


def count_channels(path: str | os.PathLike) -> int:
    """Channels of a file.

    Raises:
        AudioError: missing or unreadable.
    """
    with Decoder(path, _name_audio(path)) as decoder:
        return next(decoder.read_parts()).channels


def read_blocks(
    path: str | os.PathLike | bytes,
    seconds: float,
    *,
    channel: Channel = "mix",
    start: float = 0.0,
    length: float | None = None,
    name: str | None = None,
) -> Iterator[np.ndarray]:
    """Decode a file of any length in blocks, at 16 kHz, in constant memory.

    The concatenated blocks are `decode(path)`, whatever their length.

    Args:
        path: an audio file.
        seconds: length of a block; every block but the last has exactly
            `round(seconds · 16000)` samples.
        channel: which one, as `channels` describes.
        start: where to begin, s.
        length: seconds to read, None to the end.
        name: what errors call the audio; the path if None.

    Yields:
        float32 [S] blocks at 16 kHz; nothing for an empty file.

    Raises:
        AudioError: missing, unreadable, or not finite; truncated or damaged, behind the
            last block of what could be decoded.
    """
    size = round(seconds * SAMPLE_RATE)
    if size < 1:
        raise ValueError(f"got blocks of {seconds} s; give at least one sample")
    pending = np.zeros(0, np.float32)
    fault = None
    with Decoder(path, name or _name_audio(path)) as decoder:
        pieces = _read_span(decoder, _Span(start, length), channel)
        while True:
            try:
                pending = np.concatenate([pending, next(pieces)])
            except StopIteration:
                break
            except AudioError as error:
                fault = error
                break
            for at in range(0, len(pending) // size * size, size):
                yield pending[at : at + size].copy()
            pending = pending[len(pending) // size * size :]
    if len(pending):
        yield pending
    if fault:
        raise fault


@dataclasses.dataclass
class _Span:
    """What of a recording is read.

    Attributes:
        start: s still to go over.
        length: s still to read, None for all.
        limit: s beyond which the recording is refused, None for none.
    """

    start: float
    length: float | None
    limit: float | None = None


def _read_span(decoder: Decoder, span: _Span, channel: Channel) -> Iterator[np.ndarray]:
    """Mono pieces at 16 kHz of a span of a recording.

    What is damaged or truncated is told behind everything that could be decoded, in all
    parts; and not at all if it lies behind the span.
    """
    fault = None
    parts, read = decoder.read_parts(), 0.0
    while span.length is None or span.length > 0:
        try:
            part = next(parts, None)
            if part is None:
                break
        except AudioError as error:
            fault = fault or error
            break
        with guard(decoder.name):
            if span.limit is not None and part.frames is not None:
                check_seconds(read + part.frames / part.rate, span.limit, decoder.name)
            if span.start > 0:
                wanted = round(span.start * part.rate)
                gone = part.skip(wanted)
                span.start = 0.0 if gone >= wanted else span.start - gone / part.rate
        try:
            for samples in _read_part(part, decoder.name, span, channel):
                read += len(samples) / SAMPLE_RATE
                check_seconds(read, span.limit, decoder.name)
                yield samples
        except AudioError as error:
            if error.reason not in _AT_THE_END:
                raise
            fault = fault or error
    parts.close()
    if fault:
        raise fault


def _read_part(
    part: Part, name: str, span: _Span, channel: Channel
) -> Iterator[np.ndarray]:
    """Mono pieces at 16 kHz of what is left of a part."""
    try:
        mixer = ChannelMixer(part.rate, part.channels, channel)
    except ValueError as error:
        raise AudioError("unsupported audio", name, str(error)) from error
    stream = None
    if part.rate != SAMPLE_RATE:
        stream = soxr.ResampleStream(part.rate, SAMPLE_RATE, 1, "float32", "HQ")
    left = None
    if span.length is not None:
        left = int(np.ceil(span.length * part.rate))
        span.length = 0.0
    blocks, fault, last = part.read_blocks(part.rate), None, False
    while not last:
        block = np.zeros((0, part.channels), np.float32)
        try:
            with guard(name):
                block = next(blocks, block)
        except AudioError as error:
            fault = error
        if left is not None:
            block = block[:left]
            left -= len(block)
        last = len(block) < part.rate or left == 0
        samples = mixer.feed(block, last=last)
        check_samples(samples, name)
        if stream is not None:
            samples = stream.resample_chunk(samples, last=last)
        if len(samples):
            yield samples
    if left:  # the span goes on in the next part
        span.length = left / part.rate
    if fault is None and left != 0:
        with guard(name):
            next(blocks, None)  # what was wrong is told behind the last block
    if fault:
        raise fault


def _join(pieces: Iterator[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.float32), *pieces])


def _convert_array(
    audio: np.ndarray,
    sample_rate: int | None,
    name: str,
    max_seconds: float,
    channel: Channel,
) -> np.ndarray:
    """Samples of an array, mono at 16 kHz."""
    rate = sample_rate or SAMPLE_RATE
    if audio.ndim not in (1, 2):
        raise AudioError(
            "unsupported audio",
            name,
            f"an array of shape {audio.shape}, expected [S] or [S, channels]",
        )
    check_header(rate, 1 if audio.ndim == 1 else audio.shape[1], name)
    check_seconds(len(audio) / rate, max_seconds, name)
    samples = _scale_integers(audio)
    if samples.ndim > 1:
        try:
            mixer = ChannelMixer(rate, samples.shape[1], channel)
        except ValueError as error:
            raise AudioError("unsupported audio", name, str(error)) from error
        samples = mixer.feed(samples, last=True)
    check_samples(samples, name)
    return resample(samples, rate, SAMPLE_RATE)


def check_samples(samples: np.ndarray, name: str) -> None:
    """See that samples are numbers that sound can have.

    Raises:
        AudioError: one is not finite, or beyond ±LARGEST.
    """
    usable = np.abs(samples) <= LARGEST  # False for NaN
    if not usable.all():
        place = int(np.flatnonzero(~usable)[0])
        raise AudioError(
            "not finite",
            name,
            f"it holds NaN, infinite or absurdly large samples (sample {place} of a "
            f"second is {samples[place]}), expected numbers in [-1, 1)",
        )


def _name_audio(audio: Audio) -> str:
    if isinstance(audio, np.ndarray):
        return "audio array"
    if isinstance(audio, bytes):
        return "audio bytes"
    return os.fsdecode(audio)


def _scale_integers(samples: np.ndarray) -> np.ndarray:
    """Integer samples to float32 in [-1, 1); floats pass."""
    if samples.dtype.kind == "f":
        with np.errstate(over="ignore"):  # what is too large is refused by name
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
