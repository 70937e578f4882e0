"""AudioError, and limits on what a header may claim."""

from __future__ import annotations

LOWEST_RATE = 4000
"""Hz. Below it no speech can be understood; old answering machines use 4 to 6 kHz."""
HIGHEST_RATE = 192_000
"""Hz; the highest that sound cards and speech corpora use."""
MOST_CHANNELS = 8
LARGEST = 2.0**31
"""Samples beyond it are no audio: not even floats that hold 32 bit integers. Far above
it, powers overflow float32 and spectra turn into NaN."""

AUDIO_REASONS = (
    "missing file",
    "not a file",
    "unreadable audio",
    "unsupported audio",
    "zero length",
    "truncated",
    "damaged audio",
    "not finite",
    "too long",
)


class AudioError(ValueError):
    """Audio that cannot be used; `reason` is one of `AUDIO_REASONS`."""

    def __init__(self, reason: str, name: str, detail: str):
        # Names may hold bytes of any encoding, which no text file takes.
        message = f"{name}: {reason}: {detail}"
        super().__init__(message.encode("utf8", "backslashreplace").decode("utf8"))
        self.reason = reason
        self.name = name
        self.detail = detail

    def __reduce__(self):
        # Errors travel from worker processes: three arguments, not one message.
        return type(self), (self.reason, self.name, self.detail)


def check_header(rate: float, channels: int, name: str) -> None:
    """See that a header claims what audio of speech can have.

    Rate and channels decide how much one stored sample becomes, so that a file of some
    kB could otherwise claim gigabytes.

    Args:
        rate: Hz.
        channels: of the audio.
        name: what errors call the audio.

    Raises:
        AudioError: a rate outside LOWEST_RATE … HIGHEST_RATE, or channels outside
            1 … MOST_CHANNELS.
    """
    if not LOWEST_RATE <= rate <= HIGHEST_RATE:
        raise AudioError(
            "unsupported audio",
            name,
            f"its header says {rate} Hz, expected {LOWEST_RATE} to {HIGHEST_RATE} Hz; "
            "convert it: ffmpeg -i IN -ar 16000 OUT.wav, or mend its header",
        )
    if not 1 <= channels <= MOST_CHANNELS:
        raise AudioError(
            "unsupported audio",
            name,
            f"its header says {channels} channels, expected 1 to {MOST_CHANNELS}; "
            "take out those with speech: ffmpeg -i IN -ac 1 OUT.wav",
        )


def check_seconds(seconds: float, max_seconds: float | None, name: str) -> None:
    """Refuse audio that is longer than a limit.

    Raises:
        AudioError: it is "too long".
    """
    if max_seconds is not None and seconds > max_seconds:
        raise AudioError(
            "too long", name, f"{seconds:.2f} s, the limit is {max_seconds:.2f} s"
        )
