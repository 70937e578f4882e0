"""Decoding of a record's audio: all of it, or its segment and channel.

Beside `audio`, `sample_rate` and `duration` (see sources.py) a record may have

    offset        where its segment begins, s; its `duration`, if it has one, is then
                  that of the segment, else it reaches to the end
    channel       as `channels.py` describes; "mix" if there is none
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float

from nim4_jax.data.audio import reading
from nim4_jax.data.sources.examples import Record

_SLACK = 0.25  # s by which a segment may fall short of its stated length


def name(record: Record) -> str:
    """What messages call a record: its audio file, else its origin."""
    path = record["audio"]
    return path if isinstance(path, str) else record["origin"]


def decode(record: Record, max_seconds: float | None = None) -> Float[np.ndarray, " S"]:
    """Samples of a record at 16 kHz.

    Raises:
        AudioError: as `reading.decode`; "truncated" if a segment ends early.
    """
    options = {
        "sample_rate": record.get("sample_rate"),
        "name": name(record),
        "channel": record.get("channel", "mix"),
    }
    duration = record.get("duration")
    if record.get("offset") is None:
        return reading.decode(
            record["audio"], duration=duration, max_seconds=max_seconds, **options
        )
    if max_seconds is not None:
        reading.check_seconds(measure(record), max_seconds, name(record))
    samples = reading.decode_piece(
        record["audio"], record["offset"], duration, **options
    )
    seconds = len(samples) / reading.SAMPLE_RATE
    if duration is not None and seconds < duration - _SLACK:
        raise reading.AudioError(
            "truncated",
            name(record),
            f"its segment from {record['offset']:g} s holds {seconds:.2f} s, expected "
            f"{duration:.2f} s",
        )
    return samples


def decode_piece(
    record: Record, start: float, seconds: float
) -> Float[np.ndarray, " S"]:
    """A part of a record's audio at 16 kHz, as `reading.decode_piece` reads it."""
    return reading.decode_piece(
        record["audio"],
        (record.get("offset") or 0.0) + start,
        seconds,
        sample_rate=record.get("sample_rate"),
        name=name(record),
        channel=record.get("channel", "mix"),
    )


def read_blocks(record: Record, seconds: float) -> Iterator[np.ndarray]:
    """Blocks of a record whose audio is a file or bytes, as `reading.read_blocks`."""
    segment = record.get("offset") is not None
    return reading.read_blocks(
        record["audio"],
        seconds,
        channel=record.get("channel", "mix"),
        start=record["offset"] if segment else 0.0,
        length=record.get("duration") if segment else None,
    )


def measure(record: Record, *, stated: bool = True) -> float:
    """Seconds of a record, from its field or from the header of its audio.

    Args:
        record: as above.
        stated: whether a `duration` without `offset` is believed.

    Raises:
        AudioError: neither tells.
    """
    seconds, offset = record.get("duration"), record.get("offset")
    if seconds is not None and (stated or offset is not None):
        return float(seconds)
    whole = reading.read_duration(
        record["audio"], sample_rate=record.get("sample_rate"), name=name(record)
    )
    return max(0.0, whole - (offset or 0.0))
