"""Weighted sampling of texts from several sources, with the names in them."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from nim4_jax.data.corpora import grammar, inserted_names, open_names
from nim4_jax.data.sources import opening, text_files
from nim4_jax.data.sources.skips import SkipReport
from nim4_jax.data.sources.text_files import Texts
from nim4_jax.text import written

GRAMMAR = "grammar:commands"
_CHINESE = 0.45  # share of the names drawn for prompts

Drawn = tuple[str, tuple[str, ...]]
"""A text and the names in it."""


class TextDraws:
    """Draws texts from sources of given weights.

    Attributes:
        fingerprint: of the text files' lines; 0 where there is none.
    """

    def __init__(
        self,
        sources: Sequence[str | tuple[str, float]],
        share: float,
        style: str,
        report: SkipReport,
    ):
        """Open the sources.

        Args:
            sources: as `TextConfig.sources`.
            share: of the texts with open names.
            style: of `text_files.STYLES`, for the grammar.
            report: counts lines of text files that cannot be used.

        Raises:
            ValueError: no source, a weight that is none, a file that cannot be opened,
                or one whose held-out texts are asked for.
        """
        pairs = [(each, 1.0) if isinstance(each, str) else each for each in sources]
        pairs.sort(key=lambda pair: pair[0] == GRAMMAR)  # it comes last
        specs = [spec for spec, _ in pairs]
        weights = np.array([weight for _, weight in pairs], float)
        if not specs:
            raise ValueError(
                f"sources {sources} name no text; use {GRAMMAR!r}, a text file or a "
                "manifest."
            )
        if not (np.isfinite(weights) & (weights > 0)).all():
            raise ValueError(f"sources {sources}: every weight must be above 0")
        self._share, self._written = share, style == "written"
        self._opened = _open(specs, report)
        self._bounds = np.cumsum(weights / weights.sum())
        self._even = len(set(weights)) == 1
        files = [each for each in self._opened if isinstance(each, Texts)]
        found = [each.fingerprint for each in files]
        self.fingerprint = zlib.crc32(repr(found).encode()) if found else 0

    def draw(self, rng: np.random.Generator) -> Drawn:
        """A text and the names in it; sources are as likely as their weights."""
        if self._even:
            choice = int(rng.integers(len(self._opened)))
        else:
            choice = int(np.searchsorted(self._bounds[:-1], rng.random(), "right"))
        source = self._opened[choice]
        if source is None:
            return self._draw_command(rng)
        place = int(rng.integers(len(source)))
        if isinstance(source, Texts):
            return self._draw_line(rng, source[place])
        record = source[place]
        return record["text"], record["keywords"]

    def draw_name(self, rng: np.random.Generator) -> str:
        """A name for the prompt that has nothing to do with the text."""
        if rng.random() < self._share:
            lang = "zh" if rng.random() < _CHINESE else "en"
            return self._draw_open_name(rng, lang)
        lists = tuple(grammar.NAME_SLOTS.values())
        names = grammar.load_wordlist(lists[int(rng.integers(len(lists)))])
        return self._style_name(names[int(rng.integers(len(names)))])

    def _draw_command(self, rng: np.random.Generator) -> Drawn:
        langs, shares = zip(*grammar.LANGUAGE_MIX.items())
        lang = str(rng.choice(langs, p=np.array(shares) / sum(shares)))
        # Without open names nothing is drawn for them: texts stay what they were.
        opened = self._share and rng.random() < self._share
        names = open_names.sample if opened else None
        command = grammar.sample(rng, lang, held_out=False, draw_name=names)
        if not self._written:
            return command.text, command.keywords
        text = command.text
        for name in command.keywords:
            text = text.replace(name, self._style_name(name))
        return written.write(text), tuple(map(self._style_name, command.keywords))

    def _draw_line(self, rng: np.random.Generator, text: str) -> Drawn:
        if self._share and rng.random() < self._share:
            changed, names = inserted_names.insert_names(
                text, rng, self._draw_open_name
            )
            if names:
                return changed, names
        return text, inserted_names.find_names(text)

    def _draw_open_name(self, rng: np.random.Generator, lang: str) -> str:
        return self._style_name(open_names.sample(rng, lang))

    def _style_name(self, name: str) -> str:
        if not self._written:
            return name
        return " ".join(word[:1].upper() + word[1:] for word in name.split(" "))


def _open(specs: Sequence[str], report: SkipReport) -> list[Any]:
    """A source of each specification; None stands for the grammar."""
    files = [spec for spec in specs if text_files.is_text_file(spec)]
    texts = dict(zip(files, text_files.open_texts(files, report)))
    held_out = [spec for spec in files if texts[spec].split != "train"]
    if held_out:
        raise ValueError(
            f"source {held_out[0]!r} has held-out texts in it, which are for measuring "
            "alone; train on split=train"
        )

    def open_one(spec: str) -> Any:
        return texts[spec] if spec in texts else opening.open_source(spec)

    return [None if spec == GRAMMAR else open_one(spec) for spec in specs]
