"""Word segmentation of texts, with parts of speech and whether case is informative."""

from __future__ import annotations

import dataclasses
import functools
import logging
import re
from collections.abc import Iterator, Sequence
from typing import Any

from nim4_jax.context.keywords import HAN, Span

_WORD = re.compile(rf"(?P<han>[{HAN}]+)|(?P<word>[^\W_{HAN}]+(?:['’-][^\W_{HAN}]+)*)")
_BLANK = re.compile(r"[\s-]*")
_NAME_TAGS = ("nr", "ns", "nt", "nz")  # people, places, organisations, other names
_SENTENCE_END = re.compile(r"[.!?:;。！？：；\"“”\n]")
_PRONOUN = re.compile(r"i(?:'|$)")  # I, I'm


@dataclasses.dataclass(frozen=True, slots=True)
class Word:
    """A word of a text.

    Attributes:
        start: its first character.
        end: one past its last.
        form: in lower case.
        tag: jieba's part of speech of a Chinese word; "" for others.
        capital: it has one, and is not the pronoun I.
        opens: it begins a sentence, where any word would have its capital.
        joined: only blanks stand between it and the word before, of its own script.
    """

    start: int
    end: int
    form: str
    tag: str
    capital: bool
    opens: bool
    joined: bool

    @property
    def is_name(self) -> bool:
        """Whether jieba takes it for a name; single characters are mostly slips."""
        return self.tag.startswith(_NAME_TAGS) and self.end - self.start > 1


@dataclasses.dataclass(frozen=True, slots=True)
class Text:
    """The words of a text.

    Attributes:
        words: in order; numbers are words.
        cased: capitals tell, as some words have none. In Chinese text it is enough
            that not all letters are capitals.
    """

    words: tuple[Word, ...]
    cased: bool


def parse(text: str) -> Text:
    """Split a text, English, Chinese or both, into words."""
    words: list[Word] = []
    for match in _WORD.finditer(text):
        start = match.start()
        gap = text[words[-1].end : start] if words else "."
        pieces = _cut(match[0]) if match["han"] else ((match[0], ""),)
        for piece, tag in pieces:
            form = piece.lower().replace("’", "'")
            words.append(
                Word(
                    start=start,
                    end=start + len(piece),
                    form=form,
                    tag=tag,
                    capital=_has_capital(piece) and not _PRONOUN.match(form),
                    opens=bool(_SENTENCE_END.search(gap))
                    and not _has_capital(piece[1:]),
                    joined=bool(
                        words
                        and _BLANK.fullmatch(gap)
                        and bool(words[-1].tag) == bool(tag)
                    ),
                )
            )
            start, gap = start + len(piece), ""
    return Text(tuple(words), _is_cased(text, words))


def _has_capital(piece: str) -> bool:
    return any(c.isupper() for c in piece)


def _is_cased(text: str, words: Sequence[Word]) -> bool:
    pieces = [text[word.start : word.end] for word in words if not word.tag]
    if any(word.tag for word in words):
        plain = any(c.islower() for piece in pieces for c in piece)
    else:
        plain = any(piece.islower() for piece in pieces)
    return plain and any(map(_has_capital, pieces))


@functools.cache
def _load_tagger() -> Any:
    """jieba's tagger; its dictionary takes a second to load, and it would say so."""
    import jieba
    import jieba.posseg

    jieba.setLogLevel(logging.WARNING)
    return jieba.posseg.dt


@functools.lru_cache(maxsize=65536)
def _cut(characters: str) -> tuple[tuple[str, str], ...]:
    """(word, part of speech) of a run of Chinese characters."""
    return tuple((pair.word, pair.flag) for pair in _load_tagger().cut(characters))


def find_runs(words: Sequence[Word], flags: Sequence[bool]) -> Iterator[Span]:
    """Longest runs of flagged words with nothing between: first, one past the last."""
    first = None
    for place, (word, flag) in enumerate(zip(words, flags)):
        if first is not None and not (flag and word.joined):
            yield first, place
            first = None
        if flag and first is None:
            first = place
    if first is not None:
        yield first, len(words)
