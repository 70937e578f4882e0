"""Error rates: WER for English, CER for Mandarin, MER for both mixed, PER for phonemes.

rate = (substitutions + deletions + insertions) / reference units, over a whole set:
sums are divided once. Texts are normalised first, unless the rate is a raw one. Where a
set has no reference unit at all, the divisor is 1: an answer to silence is as many
errors as it has units.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Hashable, Iterable, Sequence

from rapidfuzz.distance import Levenshtein

from nim4_jax.eval.measures import normalisers
from nim4_jax.text import normalise

METRICS = {"en": "WER", "zh": "CER", "mixed": "MER"}
"""Language → the metric that is usual for it."""

LONGER = 1.5
"""A hallucination has more than so many times the units of its reference,"""
OVERLAP = 0.2
"""and at most this share of the reference's units in it, in order."""

LOOP_TIMES = 3
"""An output loops if a phrase stands in it so many times in a row or more,"""
LOOP_UNITS = 6
"""which makes so many units or more,"""
LOOP_SHARE = 0.5
"""and at least this share of the output."""

_CHARACTERS = re.compile("[\u3007\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff]")
_LATIN = re.compile("[a-z\u00df-\u024f]")

Edit = tuple[str, int, int]
"""("replace", "delete" or "insert"; place in the reference; place in the output)."""


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
    """Language of a reference: "en", "zh" or "mixed"; its script decides for "auto".

    | script                          | language               |
    | Chinese characters, kana        | zh: counted one by one |
    | these and Latin letters         | mixed                  |
    | any other, or nothing but signs | en: counted in words   |

    Raises:
        ValueError: an unknown language.
    """
    if lang in METRICS:
        return lang
    if lang != "auto":
        raise ValueError(f"unknown language {lang!r}; use {[*METRICS, 'auto']}.")
    # By Chinese rules ½ is 2分之1, by English ones 1 half: neither is in the text.
    if not _CHARACTERS.search(normalise.normalise(text, "en")):
        return "en"
    return "mixed" if _LATIN.search(normalise.normalise(text, "mixed")) else "zh"


def score_text(
    reference: str, hypothesis: str, lang: str, normaliser: str = "ours"
) -> Counts:
    """Edits between two transcripts in the units of the language.

    Args:
        reference: what was said.
        hypothesis: what was recognised.
        lang: "en" counts words, "zh" characters, "mixed" English words and Chinese
            characters.
        normaliser: of `normalisers.NAMES`; "raw" leaves both as they are.

    Raises:
        ValueError: an unknown language or normaliser.
    """
    said = split(reference, lang, normaliser)
    return count(align(said, split(hypothesis, lang, normaliser)), len(said))


def split(text: str, lang: str, normaliser: str = "ours") -> list[str]:
    """The units of a text that are compared, as `score_text` takes its arguments."""
    if lang not in METRICS:
        raise ValueError(f"unknown language {lang!r}; use one of {sorted(METRICS)}.")
    return normalisers.split(normalisers.normalise(text, lang, normaliser), lang)


def align(reference: Sequence[Hashable], hypothesis: Sequence[Hashable]) -> list[Edit]:
    """The fewest edits that turn one sequence into the other, in order of place."""
    edits = Levenshtein.editops(reference, hypothesis)
    return [(edit.tag, edit.src_pos, edit.dest_pos) for edit in edits]


def count(edits: Iterable[Edit], reference: int) -> Counts:
    """Edits by kind, of a reference of so many units."""
    tags = [tag for tag, _, _ in edits]
    return Counts(
        tags.count("replace"), tags.count("delete"), tags.count("insert"), reference
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


def is_looped(reference: Sequence[str], output: Sequence[str]) -> bool:
    """Whether an output repeats itself as nothing that was said does.

    Rule: some phrase of one or more units stands in the output LOOP_TIMES times in a
    row or more (what follows may be the beginning of another time), all of which is at
    least LOOP_UNITS units and LOOP_SHARE of the output, and the same is not true of the
    reference.

    output                                    | looped
    nothing                                   | no
    "no no no"                                | no: 3 units of 6
    "no no no no no no"                       | yes
    "thank you thank you thank you"           | yes: 3 times 2 units
    "open the window open the window"         | no: twice
    "a b c a b c a b c a"                     | yes: 3 times, and a beginning
    "well the car is at home no no no no no no" | yes: 6 units of 12
    "well the car is at home now no no no no no no" | no: 6 units of 13
    "8 8 8 8 8 8", and so is the reference    | no

    Args:
        reference: units of what was said, as `split` gives them; none where nobody
            spoke.
        output: units of what was written.
    """
    return _has_loop(output) and not _has_loop(reference)


def _has_loop(units: Sequence[str]) -> bool:
    least = max(LOOP_UNITS, LOOP_SHARE * len(units))
    for period in range(1, len(units) // LOOP_TIMES + 1):
        longest = run = 0
        for before, unit in zip(units, units[period:]):
            run = run + 1 if unit == before else 0
            longest = max(longest, run)
        length = longest + period
        if length >= max(least, LOOP_TIMES * period):
            return True
    return False


def score_phonemes(reference: Sequence[int], hypothesis: Sequence[int]) -> Counts:
    """Edits between two phoneme sequences, ids without blanks."""
    return count(align(reference, hypothesis), len(reference))
