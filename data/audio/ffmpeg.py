"""Decoding by the `ffmpeg` on the PATH of what libsndfile cannot read.

It runs as a process of its own that sees one local file, and writes AU with 32 bit
floats into a pipe, which is read as far as is asked for: its header states rate and
channels, so that they are held to the same limits.
"""

from __future__ import annotations

import os
import re
import select
import shutil
import subprocess
from collections.abc import Iterator
from typing import IO

import numpy as np

from nim4_jax.data.audio.audio_error import AudioError

READABLE = "wav, flac, mp3, ogg (Vorbis, Opus), aiff, au, caf, w64"
"""What is read without ffmpeg, for messages."""

_CONTAINERS = ",".join(
    # Recorders, phones and browsers.
    "wav w64 aiff caf au flac ogg mp3 aac mov mp4 m4a 3gp matroska webm amr amrnb "
    # Video and broadcast.
    "amrwb asf avi flv mpeg mpegts mpegvideo mxf rm ac3 eac3 dts truehd "
    # Archives and telephony.
    "ape wv tta tak mpc mpc8 shn dsf voc gsm g722 g729 ilbc sln".split()
)
"""Of ffmpeg's demuxers those that may be used: no playlist, no picture, no script."""

_PATIENCE = 60.0  # s without a byte, after which ffmpeg hangs
_HEADER = 24  # bytes of AU's
_FLOAT32 = 6  # AU's number of it
_MOST_MESSAGE = 300  # characters of ffmpeg's own that are passed on
_DURATION = re.compile(rb"Duration: (\d+):(\d\d):(\d\d(?:\.\d+)?)")


def find() -> str | None:
    """The program, None if there is none."""
    return shutil.which("ffmpeg")


class FfmpegFile:
    """Audio that ffmpeg decodes.

    Attributes:
        rate: Hz.
        channels: of the audio.
        frames: None, its header does not state them.
    """

    frames = None

    def __init__(self, program: str, path: str | os.PathLike, name: str):
        """Start ffmpeg and read its header.

        Raises:
            AudioError: ffmpeg cannot read it either, or says nothing.
        """
        self._path, self._program, self._name = path, program, name
        self._said = b""
        command = [*_begin(program, path), "-v", "error", "-map", "0:a:0"]
        command += ["-f", "au", "-c:a", "pcm_f32be", "pipe:1"]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        except OSError as error:
            raise AudioError("unreadable audio", name, f"{program}: {error}") from error
        try:
            head = self._read(_HEADER)
            if len(head) < _HEADER or head[:4] != b".snd":
                raise AudioError("unreadable audio", name, self._explain())
            numbers = [int.from_bytes(head[n : n + 4], "big") for n in range(4, 24, 4)]
            offset, _, encoding, self.rate, self.channels = numbers
            if encoding != _FLOAT32 or not _HEADER <= offset <= 1 << 16:
                raise AudioError("unreadable audio", name, "ffmpeg wrote no 32 bit AU")
            self._read(offset - _HEADER)
        except AudioError:
            self.close()
            raise

    def read_blocks(self, frames: int) -> Iterator[np.ndarray]:
        """All samples, float32 [S, channels], in blocks of `frames`.

        Raises:
            AudioError: behind the last block, where ffmpeg failed or hangs.
        """
        width = 4 * self.channels
        while data := self._read(frames * width):
            whole = len(data) // width * width
            samples = np.frombuffer(data[:whole], ">f4").astype(np.float32)
            yield samples.reshape(-1, self.channels)
        if self._wait() or self._said:
            reason = "truncated" if self._process.returncode else "damaged audio"
            raise AudioError(reason, self._name, self._explain())

    def skip(self, frames: int) -> int:
        """Go over samples; returns how many there were."""
        done = 0
        while done < frames:
            wanted = min(frames - done, 1 << 16)
            got = len(self._read(wanted * 4 * self.channels)) // (4 * self.channels)
            done += got
            if got < wanted:
                break
        return done

    def measure(self) -> float:
        """Seconds of the file as ffmpeg states them, else as it decodes them."""
        try:
            done = subprocess.run(
                _begin(self._program, self._path),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_PATIENCE,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise AudioError("unreadable audio", self._name, str(error)) from error
        if found := _DURATION.search(done.stderr):
            hours, minutes, seconds = found.groups()
            return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
        return sum(map(len, self.read_blocks(1 << 16))) / self.rate

    def close(self) -> None:
        """End ffmpeg, wherever it is."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe:
                pipe.close()

    def _read(self, size: int) -> bytes:
        """That many bytes of audio, fewer at the end."""
        parts, left = [], size
        while left and (data := self._receive(self._process.stdout, left)):
            parts.append(data)
            left -= len(data)
        return b"".join(parts)

    def _receive(self, wanted: IO[bytes] | None, size: int) -> bytes:
        """Some bytes of one of the pipes, none at its end; messages are kept.

        Both are emptied, or ffmpeg would wait for ever within a long message.
        """
        pipes = {p.fileno(): p for p in (self._process.stderr, wanted) if p}
        while True:
            poll = select.poll()
            for number in pipes:
                poll.register(number, select.POLLIN)
            ready = [number for number, _ in poll.poll(_PATIENCE * 1000)]
            if not ready:
                raise AudioError(
                    "unreadable audio",
                    self._name,
                    f"ffmpeg wrote nothing for {_PATIENCE:.0f} s",
                )
            for number in ready:
                data = os.read(number, min(size, 1 << 16))
                if pipes[number] is not self._process.stderr:
                    return data
                self._said = (self._said + data)[-_MOST_MESSAGE:]
                if not data and wanted is self._process.stderr:
                    return b""
                if not data:
                    del pipes[number]

    def _wait(self) -> int:
        """The exit status, all messages read; −1 if it does not end."""
        try:
            self._receive(self._process.stderr, 1 << 16)
            return self._process.wait(_PATIENCE)
        except (AudioError, subprocess.TimeoutExpired):
            return -1

    def _explain(self) -> str:
        """ffmpeg's last words."""
        status = self._wait()
        said = self._said.decode("utf8", "replace").strip()
        return f"ffmpeg: {said or f'exit status {status}'}"


def _begin(program: str, path: str | os.PathLike) -> list[str]:
    """The command up to its input: a local file, whatever its name looks like.

    Playlists may name other files, and addresses: only files are opened, and only as
    what holds sound itself.
    """
    lists = ["-protocol_whitelist", "file,pipe", "-format_whitelist", _CONTAINERS]
    source = b"file:" + os.fsencode(os.path.abspath(path))
    return [program, "-nostdin", "-hide_banner", *lists, "-i", os.fsdecode(source)]
