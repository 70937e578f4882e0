"""Timed words as subtitles: SubRip (.srt) and WebVTT (.vtt).

A cue has at most two lines of 42 columns; a Chinese character counts as wide as 42 / 16
Latin ones, which makes 16 a line.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence

from nim4_jax.decode.timing import Word, split_words

COLUMNS = 42.0
LINES = 2
_WIDE = COLUMNS / 16.0
_LONGEST = 7.0  # seconds that a cue stays
_PAUSE = 1.0  # seconds of silence that end a cue
_APART = 5.0  # seconds without speech that end a line of text
_SHORTEST = 0.8  # seconds that a cue stays at least, if the next one lets it
_HAN = re.compile("[\u3007\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff]")


@dataclasses.dataclass(frozen=True)
class Cue:
    """One subtitle.

    Attributes:
        start: seconds.
        end: seconds, > start.
        lines: one or two lines of text.
    """

    start: float
    end: float
    lines: tuple[str, ...]


def measure_width(text: str) -> float:
    """Columns of a text: 1 for a character, 42 / 16 for a Chinese one."""
    return sum(_WIDE if _HAN.match(c) else 1.0 for c in text)


def join_texts(texts: Iterable[str]) -> str:
    """Pieces of a text in a row, a space between, none beside a Chinese character."""
    joined = ""
    for text in texts:
        glued = not joined or _HAN.match(text[:1]) or _HAN.search(joined[-2:])
        joined += text if glued or not text else f" {text}"
    return joined


def join_passages(passages: Iterable[tuple[float, float, str]]) -> str:
    """The text of a recording: a line for what follows a long silence.

    Args:
        passages: start and end in seconds, and text, in the order of time.
    """
    lines: list[list[str]] = []
    before = 0.0
    for start, end, text in passages:
        if not text:
            continue
        if not lines or start - before >= _APART:
            lines.append([])
        lines[-1].append(text)
        before = end
    return "\n".join(map(join_texts, lines))


def make_cues(passages: Iterable[tuple[str, Sequence[Word]]]) -> list[Cue]:
    """Cues of a recording.

    A cue ends when the next word does not fit, after a pause of 1 s, after 7 s, after
    the end of a sentence, and at the end of each passage.

    Args:
        passages: text and its timed words, in the order of time. Words are found again
            in the text, so that spaces are those of the text.

    Returns:
        Cues in the order of time that do not overlap.
    """
    cues: list[Cue] = []
    for text, words in passages:
        cues.extend(_cut_passage(list(_with_gaps(text, words))))
    return _settle(cues)


def _with_gaps(text: str, words: Sequence[Word]) -> Iterable[tuple[str, Word]]:
    """Each word with the space before it; words that are wider than a line in parts."""
    spans = split_words(text)
    end = 0
    for number, word in enumerate(words):
        gap = ""
        if number < len(spans) and spans[number][0] == word.text:
            gap = " " if number and spans[number][1] > end else ""
            end = spans[number][2]
        elif number:
            gap = " "
        parts = _split_wide(word.text)
        step = (word.end - word.start) / len(parts)
        for place, part in enumerate(parts):
            start = word.start + place * step
            timed = Word(part, start, start + step, word.confidence)
            yield ("" if place else gap), timed


def _split_wide(text: str) -> list[str]:
    """A word in parts, none wider than a line."""
    parts = [""]
    for c in text:
        if measure_width(parts[-1] + c) > COLUMNS:
            parts.append("")
        parts[-1] += c
    return parts


def _cut_passage(words: list[tuple[str, Word]]) -> list[Cue]:
    cues: list[Cue] = []
    lines: list[str] = []
    start = end = 0.0

    def close() -> None:
        if lines:
            cues.append(Cue(start, end, tuple(lines)))
            lines.clear()

    for gap, word in words:
        late = word.end - start > _LONGEST or word.start - end > _PAUSE
        ended = bool(lines) and lines[-1][-1:] in ".!?。！？"
        if lines and (late or ended):
            close()
        fits = lines and measure_width(lines[-1] + gap + word.text) <= COLUMNS
        if fits:
            lines[-1] += gap + word.text
        else:
            if len(lines) == LINES:
                close()
            if not lines:
                start = word.start
            lines.append(word.text)
        end = word.end
    close()
    return cues


def _settle(cues: list[Cue]) -> list[Cue]:
    """Cues that follow each other on whole milliseconds and can be read."""
    settled: list[Cue] = []
    for number, cue in enumerate(cues):
        start = round(cue.start, 3)
        if settled:
            start = max(start, settled[-1].end)
        end = max(round(cue.end, 3), round(start + 0.04, 3))
        following = cues[number + 1].start if number + 1 < len(cues) else float("inf")
        wished = min(round(start + _SHORTEST, 3), round(following, 3))
        settled.append(Cue(start, max(end, wished), cue.lines))
    return settled


def _format_time(seconds: float, mark: str) -> str:
    milliseconds = round(seconds * 1000)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    whole, milliseconds = divmod(milliseconds, 1000)
    return f"{hours:02d}:{minutes:02d}:{whole:02d}{mark}{milliseconds:03d}"


def to_srt(cues: Iterable[Cue]) -> str:
    """A SubRip file."""
    blocks = []
    for number, cue in enumerate(cues, start=1):
        start, end = _format_time(cue.start, ","), _format_time(cue.end, ",")
        lines = "\n".join(cue.lines)
        blocks.append(f"{number}\n{start} --> {end}\n{lines}\n")
    return "\n".join(blocks)


def to_vtt(cues: Iterable[Cue]) -> str:
    """A WebVTT file; &, < and > are escaped."""
    blocks = ["WEBVTT\n"]
    for cue in cues:
        start, end = _format_time(cue.start, "."), _format_time(cue.end, ".")
        text = "\n".join(cue.lines)
        text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        blocks.append(f"{start} --> {end}\n{text}\n")
    return "\n".join(blocks)
