"""Files and bytes to blocks of samples: libsndfile, and ffmpeg for what it cannot read.

The decoder is read until it ends, part by part of what `containers` find in the file.
What goes wrong is an `AudioError`, raised behind the last block that could be decoded.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import soundfile
from jaxtyping import Float

from nim4_jax.data.audio import ffmpeg
from nim4_jax.data.audio.audio_error import AudioError, check_header
from nim4_jax.data.audio.containers import detect
from nim4_jax.data.audio.containers.layout import Layout
from nim4_jax.data.audio.containers.view import View

_STEP = 4096  # frames asked of the decoder at once: what an error costs at most
_SLACK = 0.1  # s by which a length that a header states may be too long
_UNKNOWN = 1 << 40  # frames that no file has: libsndfile's way to say "unknown"
_MOST_FAULTS = 8  # errors, one behind the other, before a part is given up
_HEADERLESS = (".gsm", ".vox")
"""Suffixes of files without a header that libsndfile knows; others it guesses."""


class Part(Protocol):
    """One stream of samples."""

    @property
    def rate(self) -> int:
        """Hz."""
        ...

    @property
    def channels(self) -> int:
        """Of the audio."""
        ...

    @property
    def frames(self) -> int | None:
        """That the header states, None if it does not."""
        ...

    def read_blocks(self, frames: int) -> Iterator[Float[np.ndarray, "S C"]]:
        """What is left of it; raises AudioError behind the last block."""
        ...

    def skip(self, frames: int) -> int:
        """Go over frames; returns how many there were."""
        ...

    def measure(self) -> float:
        """Seconds."""
        ...

    def close(self) -> None:
        """Free what it holds."""
        ...


class Decoder:
    """An audio file, or its bytes.

    Attributes:
        name: what errors call it.
    """

    def __init__(self, audio: bytes | str | os.PathLike, name: str):
        """Look at the file; nothing is decoded.

        Raises:
            AudioError: missing, no file, or empty.
        """
        self.name = name
        self._audio = audio
        self._stack = contextlib.ExitStack()
        with self._stack, guard(name):
            if isinstance(audio, bytes):
                if not audio:
                    raise AudioError("zero length", name, "it has no byte")
                self._view, suffix = View.of(audio), ""
            else:
                check_file(audio, name)
                file = self._stack.enter_context(open(audio, "rb"))  # noqa: SIM115
                self._view, suffix = View.of(file), Path(os.fsdecode(audio)).suffix
            self._suffix = suffix.lower()
            self._layout = _lay_out(self._view, self._suffix)
            self._stack = self._stack.pop_all()

    def __enter__(self) -> Decoder:
        return self

    def __exit__(self, *_error) -> None:
        self._stack.close()

    def read_parts(self) -> Generator[Part]:
        """Its streams, one behind the other; each is closed when the next is asked for.

        Raises:
            AudioError: one that cannot be decoded, or has a header that is refused;
                behind the last, if it is known that something is missing.
        """
        for number in range(len(self._layout.parts)):
            with contextlib.ExitStack() as stack, guard(self.name):
                part = self._open(number)
                stack.callback(part.close)
                check_header(part.rate, part.channels, self.name)
                yield part
        if self._layout.damage:
            raise AudioError(self._layout.reason, self.name, self._layout.damage)

    def measure(self) -> float:
        """Seconds, as the headers state them; decoded only where none does.

        Raises:
            AudioError: it cannot be opened.
        """
        seconds = 0.0
        for number in range(len(self._layout.parts)):
            with guard(self.name), contextlib.closing(self._open(number)) as part:
                check_header(part.rate, part.channels, self.name)
                seconds += part.measure()
        return seconds

    def _open(self, number: int) -> Part:
        """A part; the first may be one for ffmpeg."""
        attempts = [self._layout.parts[number]]
        if self._layout.changed and len(self._layout.parts) == 1:
            attempts.append(self._view)  # what was mended may have been right
        failure = ""
        for view in attempts:
            stored = view is self._view and not isinstance(self._audio, bytes)
            try:
                return SoundPart(self._audio if stored else view, self)
            except (soundfile.SoundFileError, TypeError) as error:
                failure = str(error).split(": ", 1)[-1].strip() or "format unknown"
        if number:
            raise AudioError(
                "damaged audio", self.name, f"part {number + 1}: {failure}"
            )
        return self._open_ffmpeg(failure)

    @property
    def suffix(self) -> str:
        """Of its name, in lower case."""
        return self._suffix

    def _open_ffmpeg(self, failure: str) -> Part:
        program = ffmpeg.find()
        if program is None:
            kind = detect.name_container(self._view.read_at(0, detect.HEAD))
            known = f"it is {kind}, and " if kind else ""
            raise AudioError(
                "unreadable audio",
                self.name,
                f"{known}libsndfile says: {failure} Readable are {ffmpeg.READABLE}; "
                "for others install ffmpeg (it is then used), or convert: ffmpeg -i "
                "IN -ar 16000 -ac 1 OUT.wav",
            )
        if not isinstance(self._audio, bytes):
            return ffmpeg.FfmpegFile(program, self._audio, self.name)
        file = self._stack.enter_context(tempfile.NamedTemporaryFile())  # noqa: SIM115
        file.write(self._audio)
        file.flush()
        return ffmpeg.FfmpegFile(program, file.name, self.name)


class _SoundFile(soundfile.SoundFile):
    """soundfile without its own idea of where a file ends.

    It asks for no more than the header states, and seeks after every read.
    """

    def seekable(self) -> bool:
        """Not for `read`; `seek` itself works."""
        return False


class SoundPart:
    """A stream that libsndfile decodes.

    Attributes:
        rate: Hz.
        channels: of the audio.
        frames: that the header states, None if it does not.
    """

    def __init__(self, source: View | str | os.PathLike, decoder: Decoder):
        """Open it.

        Raises:
            SoundFileError, TypeError: it cannot be opened.
        """
        if not isinstance(source, View):
            headerless = decoder.suffix in _HEADERLESS
            # By its suffix soundfile takes some files for raw samples.
            known = decoder.suffix[1:].upper() != "RAW"
            opened = os.fsencode(source) if known else decoder._view
        else:
            headerless, opened = False, source
        if isinstance(opened, View):
            opened.seek(0)
        self._file = _SoundFile(opened)
        if self._file.format == "RAW" and not headerless:
            self._file.close()
            raise TypeError("format unknown: it has no header")
        self._name = decoder.name
        self.rate, self.channels = self._file.samplerate, self._file.channels
        stated = self._file.frames
        self.frames: int | None = stated if stated < _UNKNOWN else None
        self._done = 0

    def read_blocks(self, frames: int) -> Iterator[Float[np.ndarray, "S C"]]:
        """What is left, float32, in blocks of `frames`; only the last has fewer.

        Raises:
            AudioError: behind the last block, where decoding broke off or fewer frames
                came than the header states.
        """
        fault = ""
        while True:
            block = np.empty((frames, self.channels), np.float32)
            count, failed = self._fill(block)
            self._done += count
            fault = fault or failed
            if count:
                yield block[:count]
            if count < frames:
                break
        slack = round(_SLACK * self.rate)
        if self.frames is not None and self._done < self.frames - slack:
            why = f", then: {fault}" if fault else ""
            raise AudioError(
                "truncated",
                self._name,
                f"{self._done} of the header's {self.frames} frames decoded{why}",
            )
        if fault:
            raise AudioError("damaged audio", self._name, f"decoding failed: {fault}")

    def _fill(self, block: np.ndarray) -> tuple[int, str]:
        """Frames decoded into a block, and what went wrong, "" if nothing did."""
        count, faults, fault = 0, 0, ""
        while count < len(block):
            step = block[count : count + _STEP]
            step.fill(np.nan)  # tells what came before an error
            try:
                got = len(self._file.read(out=step))
            except soundfile.LibsndfileError as error:
                fault = str(error).strip() or f"libsndfile's error {error.code}"
                missing = np.isnan(step).any(axis=1)
                got = int(missing.argmax()) if missing.any() else len(step)
                faults = faults + 1 if got == 0 else 0
                if faults < _MOST_FAULTS:
                    count += got
                    continue
            if not got:
                break
            count += got
        return count, fault

    def skip(self, frames: int) -> int:
        """Go over frames, fewer where it ends."""
        target = self._done + frames
        if self.frames is not None:
            target = min(target, self.frames)
        try:
            place = self._file.seek(target)
            gone = place - self._done
        except soundfile.LibsndfileError:
            gone = 0
            block = np.empty((_STEP, self.channels), np.float32)
            while gone < frames:
                got, _ = self._fill(block[: frames - gone])
                gone += got
                if not got:
                    break
        self._done += gone
        return gone

    def measure(self) -> float:
        """Seconds that the header states, else those that are decoded."""
        if self.frames is not None:
            return self.frames / self.rate
        return sum(map(len, self.read_blocks(1 << 16))) / self.rate

    def close(self) -> None:
        """Close the file."""
        self._file.close()


@contextlib.contextmanager
def guard(name: str) -> Iterator[None]:
    """The decoder's border: whatever is raised within becomes an AudioError.

    Libraries raise what they like for bytes that they did not expect, and one file must
    not end a batch or a training run.
    """
    try:
        yield
    except AudioError:
        raise
    except FileNotFoundError as error:
        raise AudioError("missing file", name, "there is no such file") from error
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        raise AudioError("unreadable audio", name, what) from error


def check_file(path: str | os.PathLike, name: str) -> None:
    """See that a path is a file with something in it, else say what it is.

    Raises:
        AudioError: it is not.
    """
    try:
        found = os.stat(path)
    except ValueError as error:  # a zero byte in the name
        raise AudioError("missing file", name, str(error)) from error
    except FileNotFoundError as error:
        raise AudioError("missing file", name, "there is no such file") from error
    if stat.S_ISDIR(found.st_mode):
        detail = "it is a folder; give the files in it: DIR/*"
        raise AudioError("not a file", name, detail)
    if stat.S_ISFIFO(found.st_mode) or stat.S_ISSOCK(found.st_mode):
        raise AudioError(
            "not a file",
            name,
            "it is a pipe, which can be read only once; save it to a file first, or "
            "hear it: nim4 transcribe --stream - < PIPE",
        )
    if not stat.S_ISREG(found.st_mode):
        raise AudioError("not a file", name, "it is a device; expected a file")
    if not found.st_size:
        raise AudioError("zero length", name, "the file has no byte")


def _lay_out(view: View, suffix: str) -> Layout:
    """The file's layout; as it is where its bytes make no sense."""
    try:
        return detect.lay_out(view, suffix)
    except (ValueError, IndexError, KeyError, OverflowError):
        return Layout((view,))
