"""Parsing of segment times (offset, duration) in manifest lines.

    begin           end             who writes it so
    offset          duration        NeMo, Whisper fine-tuning sets
    start           duration        Lhotse
    begin, start    end, stop       Kaldi and Audacity exports

All in seconds. `duration` alone is the length of the whole file. A key that looks like
another timing (`start_ms`, `end_time`, `num_frames_from`) is an error: read without it,
the whole recording would be trained on and scored with one segment's text.
"""

from __future__ import annotations

import re
import sys
from typing import Any

BEGINS = ("offset", "begin", "start")
ENDS = ("end", "stop")
_TOLERANCE = 0.05  # s by which begin + duration may differ from end

_LOOKS = re.compile(
    r"(?:(?:audio|seg|segment|utt|utterance|cut|clip|chunk|speech|t|ts|time)_?)?"
    r"(?:start|begin|end|stop|offset|onset|from|to|tbeg|tend)"
    r"(?:_?(?:time|at|pos|position|s|sec|secs|seconds?|ms|msec|milliseconds?|samples?|"
    r"frames?|ts|timestamp))?|(?:segment|time_?range|time_?span|interval|timestamps?)"
)


def is_seconds(value: Any) -> bool:
    """Whether a value of JSON is a time: no NaN, no integer beyond any float."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and 0 <= value <= sys.float_info.max


def find_segment(row: dict, origin: str) -> tuple[float | None, float | None]:
    """Where the segment begins and how long it is, s; (None, duration) for no segment.

    Raises:
        ValueError: naming the line: no number, an end before the begin, two keys that
            differ, or a key that looks like a timing and is not known.
    """
    begin, begin_key = _choose(row, BEGINS, origin)
    end, end_key = _choose(row, ENDS, origin)
    for key, value in row.items():
        known = key in BEGINS or key in ENDS
        # A list may be a pair of times; a text or an object is something else.
        timing = isinstance(value, (int, float, list)) and not isinstance(value, bool)
        if timing and not known and _LOOKS.fullmatch(key.lower()):
            raise ValueError(
                f"{origin}: the key {key!r} ({value!r}) looks like a timing and is not "
                f"known; a segment is given by one of {', '.join(BEGINS)} and duration "
                f"or one of {', '.join(ENDS)}, in seconds; rename or drop it"
            )
    duration = row.get("duration")
    if begin is None and end is None:
        return None, duration
    begin = begin or 0.0
    if end is None:
        return begin, duration
    if end <= begin:
        raise ValueError(
            f"{origin}: {end_key!r} is {end:g}, expected more than "
            f"{begin_key or 'the begin'!r}, {begin:g}"
        )
    if duration is not None and abs(begin + duration - end) > _TOLERANCE:
        raise ValueError(
            f"{origin}: 'duration' is {duration:g}, and from {begin:g} to {end_key!r} "
            f"({end:g}) it is {end - begin:g}; drop the one that is wrong"
        )
    return begin, end - begin


def _choose(row: dict, keys: tuple[str, ...], origin: str) -> tuple[float | None, str]:
    """The value of those of some keys that a line has, and its key."""
    found: float | None = None
    where = ""
    for key in keys:
        value = row.get(key)
        if value is None:
            continue
        if not is_seconds(value):
            raise ValueError(
                f"{origin}: {key!r} is {value!r}, expected seconds (a number ≥ 0)"
            )
        if found is not None and found != value:
            raise ValueError(
                f"{origin}: {where!r} is {found:g} and {key!r} is {value:g}; they mean "
                "the same, drop one"
            )
        found, where = float(value), key
    return found, where
