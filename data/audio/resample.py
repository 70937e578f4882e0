"""Packets of any rate, size and channel count to mono float32 at 16 kHz, as they come.

`reading.read_blocks` does the same for a file; here the samples come from outside, so
each packet is checked, and a bad one is refused whole.
"""

from __future__ import annotations

import numpy as np
import soxr
from jaxtyping import Float, Float32, Int16

from nim4_jax.data.audio.audio_error import LARGEST
from nim4_jax.data.audio.reading import SAMPLE_RATE, to_float32

LOWEST_RATE = 1000
"""Hz; below it one sample becomes so many that soxr runs out of memory."""
HIGHEST_RATE = 1_000_000
"""Hz; far above any sound card's; soxr hangs on absurd rates."""

_QUALITY = "HQ"  # as `audio.resample`: streams must equal files
_MOST_CHANNELS = 64

Packet = (
    Float32[np.ndarray, "S"]
    | Float32[np.ndarray, "S channels"]
    | Int16[np.ndarray, "S"]
    | Int16[np.ndarray, "S channels"]
)


class StreamResampler:
    """One stream's way from its own rate to the target rate.

    The outputs of `feed` and `finish`, joined, are bit for bit the same for all packet
    sizes, and the same as `audio.resample` of the whole (soxr 1.1, rates from 8 to 192
    kHz); S samples become S · target / source of them, rounded.

    soxr's filter works in blocks and holds audio back: at 44.1 and 48 kHz 22 ms on
    average and 40 ms at most, at 8 kHz 64 ms and 117 ms; nothing at equal rates.
    """

    def __init__(self, source_rate: float, target_rate: float = SAMPLE_RATE):
        """Start a stream.

        Args:
            source_rate: samples a second of the packets, Hz.
            target_rate: samples a second of the outputs, Hz.

        Raises:
            ValueError: a rate outside LOWEST_RATE … HIGHEST_RATE.
        """
        for name, rate in (("source_rate", source_rate), ("target_rate", target_rate)):
            if not LOWEST_RATE <= rate <= HIGHEST_RATE:
                raise ValueError(
                    f"{name} is {rate} Hz, expected {LOWEST_RATE} to {HIGHEST_RATE}; "
                    "give the sample rate in Hz, not in kHz."
                )
        self.source_rate = source_rate
        self.target_rate = target_rate
        self._stream = None
        if source_rate != target_rate:
            self._stream = soxr.ResampleStream(
                source_rate, target_rate, 1, "float32", _QUALITY
            )
        self._finished = False

    def feed(self, samples: Packet) -> Float[np.ndarray, " S2"]:
        """Take a packet; hand out what is ready, which may be nothing.

        Args:
            samples: float32 in [-1, 1), or int16, which is scaled to that; one column
                per channel, which are averaged. Any number of samples, 0 too. At equal
                rates the values pass unchanged, in an array of their own.

        Raises:
            ValueError: another dtype or shape, NaN or infinite samples, or a stream
                that was finished. The stream is then as it was before the packet.
        """
        self._check_open("feed")
        mono = _mix(samples)
        if self._stream is None:
            return mono.copy() if np.may_share_memory(mono, samples) else mono
        return self._stream.resample_chunk(mono)

    def finish(self) -> Float[np.ndarray, " S2"]:
        """End the stream; hand out what the filter still holds.

        Raises:
            ValueError: a stream that was finished.
        """
        self._check_open("finish")
        self._finished = True
        nothing = np.zeros(0, np.float32)
        if self._stream is None:
            return nothing
        return self._stream.resample_chunk(nothing, last=True)

    def _check_open(self, name: str) -> None:
        if self._finished:
            raise ValueError(
                f"{name}() after finish(): the stream is over; "
                "make a new StreamResampler for the next one."
            )


def _mix(samples: Packet) -> Float[np.ndarray, " S"]:
    """A checked packet as mono float32."""
    if not isinstance(samples, np.ndarray) or samples.dtype not in (
        np.float32,
        np.int16,
    ):
        got = getattr(samples, "dtype", type(samples).__name__)
        raise ValueError(
            f"the packet is {got}, expected a numpy array of float32 in [-1, 1) or of "
            "int16; convert it, or read raw bytes with np.frombuffer."
        )
    wide = samples.ndim == 2 and 1 <= samples.shape[1] <= _MOST_CHANNELS
    if samples.ndim != 1 and not wide:
        raise ValueError(
            f"the packet has shape {samples.shape}, expected [S] or [S, channels] with "
            f"1 to {_MOST_CHANNELS} channels; transpose [channels, S]."
        )
    # One memory layout: the order of a mean's sum must not depend on the packet.
    mono = np.ascontiguousarray(samples)
    if mono.dtype == np.int16:
        mono = to_float32(mono)
        return mono.mean(axis=1, dtype=np.float32) if wide else mono
    with np.errstate(over="ignore", invalid="ignore"):
        if wide:
            mono = mono.mean(axis=1, dtype=np.float32)
        usable = np.abs(mono) <= LARGEST  # False for NaN
    if not usable.all():
        place = int(np.flatnonzero(~usable)[0])
        raise ValueError(
            f"sample {place} of the packet is {mono[place]}, expected finite numbers "
            f"in [-1, 1); {int((~usable).sum())} of {len(mono)} "
            "samples are NaN, infinite or absurdly large: send silence as zeros."
        )
    return mono
