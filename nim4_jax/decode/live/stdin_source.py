"""Audio piped into `--stream -`: raw PCM, or a file with a header.

begins with                         is
RIFF with 16 bit samples            heard as it comes, at its own rate
another container, or mp3 frames    decoded when it has ended
anything else                       raw 16 bit PCM
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np

from nim4_jax.data.audio import audio_error, channels, reading
from nim4_jax.data.audio.containers import detect, riff

_READ = 1 << 16  # bytes asked of a pipe at once
_WAVE_HEAD = 4096  # bytes within which the samples of a WAV begin
_STRAY = 4096  # bytes behind the stated end that may be anything
_MOST_CHANNELS = 64  # of raw PCM, as `resample.StreamResampler` takes them

Warn = Callable[[str], None]


class Readable(Protocol):
    """Bytes of a pipe: fewer than asked for where no more are there yet."""

    def read(self, size: int, /) -> bytes | None: ...


class Ahead:
    """A pipe whose first bytes can be looked at before they are read."""

    def __init__(self, source: Readable):
        self._source, self._held = source, b""

    def peek(self, size: int) -> bytes:
        """The next bytes, waiting for them; fewer only where it ends."""
        while len(self._held) < size:
            data = self._source.read(size - len(self._held))
            if not data:
                break
            self._held += data
        return self._held[:size]

    def read(self, size: int = _READ, /) -> bytes:
        """Some bytes, none at the end."""
        if not self._held:
            return self._source.read(size) or b""
        made, self._held = self._held[:size], self._held[size:]
        return made


class Limited:
    """The first bytes of a pipe; `rest` counts what is behind them."""

    def __init__(self, source: Readable, size: int):
        self._source, self._left = source, size

    def read(self, size: int, /) -> bytes:
        """Some bytes, none at the end."""
        data = self._source.read(min(size, self._left)) if self._left else b""
        self._left -= len(data or b"")
        return data or b""

    def rest(self) -> int:
        """Read the pipe to its end: how many bytes were left."""
        count = 0
        while data := self._source.read(_READ):
            count += len(data)
        return count


def read_pcm(
    source: Readable, channels: int, frames: int, warn: Warn
) -> Iterator[np.ndarray]:
    """Raw 16 bit little-endian PCM in packets.

    Args:
        source: unbuffered.
        channels: whose samples alternate.
        frames: of a packet; only the last may have fewer.
        warn: told when the end is within a frame, whose bytes are dropped.

    Yields:
        int16 [S, channels].
    """
    width = 2 * channels
    wanted, held, ended = frames * width, bytearray(), False
    while not ended:
        read = source.read(min(wanted - len(held), _READ))
        held += read or b""
        ended = not read
        if len(held) < wanted and not ended:
            continue
        whole = len(held) // width * width
        if whole:
            samples = np.frombuffer(bytes(held[:whole]), "<i2").astype(np.int16)
            yield samples.reshape(-1, channels)
        del held[:whole]
    if held:
        warn(
            f"warning: stdin ended within a sample; {len(held)} of {width} bytes were "
            "dropped. Expected 16 bit samples: see --channels."
        )


def parse_channels(choice: str) -> tuple[int, str]:
    """How many channels raw samples have, and what is heard of a file's.

        "2"       (2, "mix")
        "left"    (1, "left")

    Raises:
        ValueError: neither a number nor a choice for streams.
    """
    if choice.isdecimal() and 1 <= int(choice) <= _MOST_CHANNELS:
        return int(choice), "mix"
    if choice in channels.CHOICES:
        return 1, choice
    raise ValueError(
        f"--channels={choice} is not for streams; use one of "
        f"{', '.join(channels.CHOICES)}, or for raw PCM on stdin a number, 1 to "
        f"{_MOST_CHANNELS}."
    )


def open_stdin(
    pipe: Readable, packet_ms: int, rate: int, choice: str, warn: Warn
) -> tuple[int, Iterator[np.ndarray]]:
    """Look at what a pipe begins with, and begin to read it.

    Args:
        pipe: unbuffered.
        packet_ms: audio of a packet.
        rate: of raw PCM, Hz.
        choice: as `parse_channels` takes it.
        warn: told of audio that is lost.

    Returns:
        The rate of the packets in Hz, and the packets.

    Raises:
        AudioError: a header with a rate or channels that no speech has.
    """
    count, channel = parse_channels(choice)
    ahead = Ahead(pipe)
    head = ahead.peek(detect.HEAD)
    if riff.is_wave(head) and (found := riff.read_format(ahead.peek(_WAVE_HEAD))):
        rate, count, first, size = found
        audio_error.check_header(rate, count, "stdin")
        ahead.read(first)
        stated = Limited(ahead, 1 << 62 if riff.is_unknown(size) else size)
        frames = max(1, round(rate * packet_ms / 1000))
        return rate, _read_wave(stated, count, frames, channel, warn)
    frames_too = detect.may_be_frames(head)
    if detect.name_container(head) or (
        frames_too and detect.name_frames(ahead.peek(detect.FRAMES))
    ):
        return reading.SAMPLE_RATE, _read_file(ahead, packet_ms / 1000, channel)
    return rate, read_pcm(ahead, count, max(1, round(rate * packet_ms / 1000)), warn)


def _read_wave(
    source: Limited, count: int, frames: int, channel: str, warn: Warn
) -> Iterator[np.ndarray]:
    """Packets of a WAV, of one channel if one is chosen."""
    try:
        number = channels.find_channel(channel, count)
    except ValueError as error:
        raise reading.AudioError("unsupported audio", "stdin", str(error)) from error
    for packet in read_pcm(source, count, frames, warn):
        yield packet if number is None else packet[:, number : number + 1]
    left = source.rest()
    if left > _STRAY:
        warn(
            f"warning: stdin: {left} bytes behind the end that its WAV header states "
            "were not read; save joined recordings to a file, all of which is read."
        )


def _read_file(source: Ahead, seconds: float, channel: str) -> Iterator[np.ndarray]:
    """Packets of a file that only its end makes whole: kept on disk until then."""
    with tempfile.NamedTemporaryFile() as file:
        shutil.copyfileobj(source, file, _READ)
        file.flush()
        yield from reading.read_blocks(
            file.name, seconds, channel=channel, name="stdin"
        )
