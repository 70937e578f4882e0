"""Events of a stream formatted for a terminal, as plain lines or as JSON."""

from __future__ import annotations

import dataclasses
import json
import shutil
import unicodedata
from collections.abc import Callable
from typing import Any, TextIO

from nim4_jax.decode.live.events import (
    Event,
    Failed,
    Final,
    Partial,
    SpeechStarted,
    SpeechStopped,
)

FORMATS = ("text", "json")
CLEAR = "\r\x1b[K"
"""What empties the terminal's line."""

_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"
_CUT = "…"
_PLACES = {"start": 3, "end": 3, "heard": 3, "log_prob": 4, "confidence": 4}
_NAMES = {
    SpeechStarted: "speech started",
    Partial: "partial",
    SpeechStopped: "speech stopped",
    Final: "final",
    Failed: "failed",
}


def describe(event: Event) -> dict[str, Any]:
    """The JSON form; seconds to the millisecond."""

    def settle(fields):
        return {
            key: round(value, _PLACES[key]) if key in _PLACES else value
            for key, value in fields
        }

    fields = dataclasses.asdict(event, dict_factory=settle)
    return {"event": _NAMES[type(event)], **fields}


def measure_columns(text: str) -> int:
    """Columns of a terminal that a text takes at most.

    Chinese characters take 2. So do those whose width depends on the terminal's font:
    too much only cuts a line earlier.
    """
    return sum(map(_count_columns, text))


def _count_columns(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me"):
        return 0  # sits on the character before
    return 2 if unicodedata.east_asian_width(character) in "WFA" else 1


def clean(text: str) -> str:
    """One line, with nothing in it that a terminal would obey."""
    spaced = (" " if character.isspace() else character for character in text)
    return "".join(c for c in spaced if unicodedata.category(c)[0] != "C")


def _keep_end(text: str, columns: int) -> str:
    """As much of the text's end as fits, behind a sign where something is missing."""
    if measure_columns(text) <= columns:
        return text
    room = columns - measure_columns(_CUT)
    if room < 0:
        return ""
    first = len(text)
    while (room := room - _count_columns(text[first - 1])) >= 0:
        first -= 1
    return _CUT + text[first:]


def draw(event: Event, columns: int) -> str:
    """Characters that show an event on a terminal.

    | event    | on the terminal                                                       |
    | -------- | --------------------------------------------------------------------- |
    | Partial  | the line is rewritten: its end, what may still change dimmed          |
    | Final    | the line is replaced by times and text, whole, and ended; or emptied  |
    | others   | nothing                                                               |

    Args:
        event: of one stream, in order.
        columns: the terminal's width, of which partials leave the last one free:
            writing it makes some terminals go on to the next line.
    """
    if isinstance(event, Final):
        text = clean(event.text)
        line = f"[{event.start:.2f}–{event.end:.2f}] {text}\n" if text.strip() else ""
        return CLEAR + line
    if not isinstance(event, Partial):
        return ""
    stable, rest = (
        clean(event.text[: event.stable]),
        clean(event.text[event.stable :]),
    )
    kept = _keep_end(stable + rest, columns - 1)
    border = max(0, len(kept) - len(rest))
    dimmed = f"{_DIM}{kept[border:]}{_PLAIN}" if kept[border:] else ""
    return CLEAR + kept[:border] + dimmed


def make_show(form: str, out: TextIO) -> Callable[[Event], None]:
    """A function that shows events on `out` as they come, in one of FORMATS."""
    terminal = out.isatty()

    def render(event: Event) -> str:
        if form == "json":
            described = describe(event)
            return json.dumps(described, ensure_ascii=False, allow_nan=False) + "\n"
        if terminal:
            return draw(event, shutil.get_terminal_size().columns)
        text = clean(event.text) if isinstance(event, Final) else ""
        return f"{text}\n" if text.strip() else ""

    def show(event: Event) -> None:
        if shown := render(event):
            out.write(shown)
            out.flush()

    return show
