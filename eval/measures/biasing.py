"""Errors on words of names, and on all other words: B-WER and U-WER.

Every unit of a reference belongs to a name or to none; its substitution or deletion
counts there. An inserted unit counts to the names if it is part of one as the output
has it, else to the others: so it is usual in the literature of contextual biasing.
Hence errors and units of both together are those of the whole.

    reference   call  anna  maria  now  please           names: anna maria
    output      call  a     maria  now  anna     maria
    U           .                  .    S                1 of 3
    B                 S     .                    I       2 of 2

What is more than one unit long (a name of two words, or of three characters) is a name
only where it stands whole: neither "hotel" nor "california" is one by itself.

Source: Le et al., "Contextualized streaming end-to-end speech recognition with
trie-based deep biasing and shallow fusion", Interspeech 2021, section 3.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Iterator, Sequence

from nim4_jax.eval.measures import error_rates
from nim4_jax.eval.measures.error_rates import Counts


class NameList:
    """Names to be found in texts that are split into units.

    Attributes:
        names: as they are written.
        normaliser: that the texts have been through.
    """

    def __init__(self, names: Iterable[str], normaliser: str = "ours"):
        """Names are split when a text of their language comes."""
        self.names = tuple(dict.fromkeys(names))
        self.normaliser = normaliser
        self._indices: dict[str, dict[str, list[tuple[list[str], str]]]] = {}

    def find(self, units: Sequence[str], lang: str) -> tuple[str, ...]:
        """The names that a text has, in the order of the text, each once."""
        return tuple(dict.fromkeys(name for _, _, name in self._scan(units, lang)))

    def mark(self, units: Sequence[str], lang: str) -> list[bool]:
        """Whether each unit of a text is part of a name."""
        marks = [False] * len(units)
        for start, end, _ in self._scan(units, lang):
            marks[start:end] = [True] * (end - start)
        return marks

    def _scan(self, units: Sequence[str], lang: str) -> Iterator[tuple[int, int, str]]:
        """Begin, end and name of every place where a name stands."""
        if lang not in self._indices:
            self._indices[lang] = self._index(lang)
        index = self._indices[lang]
        for start, unit in enumerate(units):
            for key, name in index.get(unit, ()):
                if list(units[start : start + len(key)]) == key:
                    yield start, start + len(key), name

    def _index(self, lang: str) -> dict[str, list[tuple[list[str], str]]]:
        """Names and their units by the first of these."""
        index = collections.defaultdict(list)
        for name in self.names:
            if key := error_rates.split(name, lang, self.normaliser):
                index[key[0]].append((key, name))
        return index


def score(
    reference: Sequence[str], output: Sequence[str], lang: str, names: NameList
) -> tuple[Counts, Counts]:
    """Edits outside of names, and in them.

    Args:
        reference: units of what was said, as `metrics.split` gives them.
        output: units of what was recognised.
        lang: of both.
        names: which units belong to names.
    """
    said, written = names.mark(reference, lang), names.mark(output, lang)
    parts: tuple[list[error_rates.Edit], list[error_rates.Edit]] = ([], [])
    for edit in error_rates.align(reference, output):
        tag, place, other = edit
        parts[written[other] if tag == "insert" else said[place]].append(edit)
    unbiased, biased = parts
    inside = sum(said)
    return (
        error_rates.count(unbiased, len(reference) - inside),
        error_rates.count(biased, inside),
    )
