"""Error rates: WER for English, CER for Mandarin, MER for both mixed, PER for phonemes.

rate = (substitutions + deletions + insertions) / reference units, over a whole set:
sums are divided once. Texts are normalised first. Where a set has no reference unit at
all, the divisor is 1: an answer to silence is as many errors as it has units.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import jiwer
from rapidfuzz.distance import Levenshtein

from nim4_jax.text import normalise

METRICS = {"en": "WER", "zh": "CER", "mixed": "MER"}
"""Language → the metric that is usual for it."""

LONGER = 1.5
"""A hallucination has more than so many times the units of its reference,"""
OVERLAP = 0.2
"""and at most this share of the reference's units in it, in order."""


@dataclasses.dataclass(frozen=True)
class Counts:
    """Edits that turn references into hypotheses.

    Attributes:
        substitutions: units replaced.
        deletions: reference units that are missing.
        insertions: units too many.
        reference: reference units.
    """

    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0
    reference: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.substitutions + other.substitutions,
            self.deletions + other.deletions,
            self.insertions + other.insertions,
            self.reference + other.reference,
        )

    @property
    def errors(self) -> int:
        """All edits."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def hits(self) -> int:
        """Reference units that the hypothesis has, in order."""
        return self.reference - self.substitutions - self.deletions

    @property
    def output(self) -> int:
        """Units of the hypothesis."""
        return self.hits + self.substitutions + self.insertions

    @property
    def percent(self) -> float:
        """Error rate in %, above 100 when there are more edits than reference units."""
        return 100.0 * self.errors / max(self.reference, 1)


def add_up(counts: Iterable[Counts]) -> Counts:
    """The counts of a whole set."""
    return sum(counts, Counts())


def find_language(text: str, lang: str) -> str:
    """Language of a reference: "en", "zh" or "mixed"; its units decide for "auto".

    Raises:
        ValueError: an unknown language.
    """
    if lang in METRICS:
        return lang
    if lang != "auto":
        raise ValueError(f"unknown language {lang!r}; use {[*METRICS, 'auto']}.")
    units = normalise.split_units(normalise.normalise(text, "mixed"), "mixed")
    chinese = any(not unit.isascii() for unit in units)
    latin = any(unit.isascii() and unit.isalpha() for unit in units)
    return ("mixed" if latin else "zh") if chinese else "en"


def score_text(reference: str, hypothesis: str, lang: str) -> Counts:
    """Edits between two transcripts in the units of the language.

    Args:
        reference: what was said.
        hypothesis: what was recognised.
        lang: "en" counts words, "zh" characters, "mixed" English words and Chinese
            characters.

    Raises:
        ValueError: an unknown language.
    """
    if lang not in METRICS:
        raise ValueError(f"unknown language {lang!r}; use one of {sorted(METRICS)}.")
    said, written = (normalise.normalise(t, lang) for t in (reference, hypothesis))
    if lang == "zh":
        output = jiwer.process_characters(
            "".join(said.split()), "".join(written.split())
        )
    elif lang == "mixed":
        output = jiwer.process_words(
            " ".join(normalise.split_units(said, lang)),
            " ".join(normalise.split_units(written, lang)),
        )
    else:
        output = jiwer.process_words(said, written)
    return Counts(
        output.substitutions,
        output.deletions,
        output.insertions,
        output.hits + output.substitutions + output.deletions,
    )


def is_hallucinated(counts: Counts) -> bool:
    """Whether an output is much longer than what was said, and something else.

    Rule: output > LONGER · reference and hits ≤ OVERLAP · reference, in words or
    characters after normalisation. The paper says "hardly any overlap" without a
    number; OVERLAP is ours.

    reference        | output                        | hallucinated
    "go home now ok" | "thank you for watching that" | no: 5 units are ≤ 1.5 · 4
    "go home"        | "thank you for watching"      | yes
    "go home"        | "go home go home go home"     | no: all of it is there
    nothing          | any word                      | yes
    nothing          | nothing, or punctuation alone | no

    Args:
        counts: edits from the reference to the output.

    Source: NIM4-ASR §3 (hallucination rate).
    """
    longer = counts.output > LONGER * counts.reference
    return longer and counts.hits <= OVERLAP * counts.reference


def score_phonemes(reference: Sequence[int], hypothesis: Sequence[int]) -> Counts:
    """Edits between two phoneme sequences, ids without blanks."""
    edits = [edit.tag for edit in Levenshtein.editops(reference, hypothesis)]
    return Counts(
        edits.count("replace"),
        edits.count("delete"),
        edits.count("insert"),
        len(reference),
    )
