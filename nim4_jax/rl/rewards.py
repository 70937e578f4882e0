"""Rewards of a sampled transcript: accuracy, length and expected names.

R = R_acc + 0.5 · R_hallu + 0.5 · R_context, on the host, one number a transcript.
Everything is judged after the scoring normalisation of `nim4_jax.text.normalise`.

Source: arXiv 2604.18105 §2.2.5.
"""

from __future__ import annotations

import dataclasses
import math
import re
import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float
from rapidfuzz.distance import Levenshtein

from nim4_jax.text import normalise

_HAN = "\u3007\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff"
_LETTER = rf"[^\W{_HAN}]"
"""A letter or digit of a script that puts spaces between words."""


@dataclasses.dataclass(frozen=True)
class RewardConfig:
    """Weights and bounds of the parts.

    Attributes:
        accuracy: weight of R_acc.
        hallucination: weight of R_hallu.
        context: weight of R_context.
        steepness: s of R_acc = exp(−s · CER).
        longest: a hypothesis of more than so many times the reference's length is
            hallucinated.
        shortest: one of less than so many times is cut short, as bad.
        keyword: what a present keyword adds, and a missing one takes.
    """

    accuracy: float = 1.0
    hallucination: float = 0.5
    context: float = 0.5
    steepness: float = 2.0
    longest: float = 2.0
    shortest: float = 0.5
    keyword: float = 0.5

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not 0.0 <= value < math.inf:
                raise ValueError(
                    f"reward.{field.name}={value} must be a number ≥ 0; 0 as a weight "
                    "leaves a part out."
                )
        if not self.shortest <= 1.0 <= self.longest:
            raise ValueError(
                f"reward.shortest={self.shortest} and reward.longest={self.longest} "
                "are multiples of the reference's length, at most and at least 1."
            )


@dataclasses.dataclass(frozen=True)
class Sample:
    """An utterance as the rewards see it.

    Attributes:
        reference: what was said; "" for silence and noise.
        lang: "en", "zh", "mixed" or "auto" (by the reference's characters).
        prompted: names that were said and that the prompt hinted at; a distractor in
            the prompt is none of them.
        important: names that were said and count whether prompted or not.
    """

    reference: str
    lang: str = "auto"
    prompted: tuple[str, ...] = ()
    important: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Reward:
    """A transcript's reward and its unweighted parts.

    Attributes:
        accuracy: R_acc in [0, 1].
        hallucination: R_hallu, −1 or 0.
        context: R_context in [−keyword, keyword].
        total: their weighted sum.
    """

    accuracy: float
    hallucination: float
    context: float
    total: float


@dataclasses.dataclass(frozen=True)
class Rewards:
    """The same for G utterances with K transcripts each; every array is [G, K].

    Attributes:
        accuracy: R_acc.
        hallucination: R_hallu.
        context: R_context.
        total: their weighted sums.
    """

    accuracy: Float[np.ndarray, "G K"]
    hallucination: Float[np.ndarray, "G K"]
    context: Float[np.ndarray, "G K"]
    total: Float[np.ndarray, "G K"]


def _find_rules(reference: str, lang: str) -> str:
    """The language by whose rules reference and hypothesis are both normalised."""
    if lang not in normalise.LANGUAGES:
        raise ValueError(
            f"unknown language {lang!r}; choose from {normalise.LANGUAGES}"
        )
    if lang != "auto":
        return lang
    return "mixed" if re.search(f"[{_HAN}]", reference) else "en"


def _measure_cer(said: str, written: str, lang: str) -> float:
    """Edits over characters of the reference; spaces count but for Mandarin."""
    if lang == "zh":
        said, written = "".join(said.split()), "".join(written.split())
    return Levenshtein.distance(said, written) / len(said)


def _stands_in(word: str, text: str) -> bool:
    """Whether `text` has `word`: Latin words and numbers whole, Chinese anywhere."""
    before = f"(?<!{_LETTER})" if re.match(_LETTER, word[0]) else ""
    after = f"(?!{_LETTER})" if re.match(_LETTER, word[-1]) else ""
    return re.search(before + re.escape(word) + after, text) is not None


def _fold(text: str) -> str:
    """As written, but for case and width."""
    return unicodedata.normalize("NFKC", text).lower().strip()


def score_context(
    keywords: Iterable[str], hypothesis: str, lang: str, worth: float = 0.5
) -> float:
    """R_context: the mean over keywords of +`worth` if present, −`worth` if not.

    A keyword is present if its normalised form stands in the normalised hypothesis,
    Latin words and numbers whole, Chinese characters anywhere:

    keyword    | "去NIO House吧" | "去 nio中心" | "minions"
    NIO House  | present         | missing      | missing
    NIO        | present         | present      | missing
    中心       | missing         | present      | missing

    Numbers are read in context ("第一百货" has "一百" in it), so a keyword that stands
    there as it is written is present too. Equal keywords count once, and those of which
    normalisation leaves nothing not at all.

    Args:
        keywords: names that were said.
        hypothesis: a transcript.
        lang: rules of normalisation.
        worth: of one keyword.

    Returns:
        The mean; 0 without keywords.

    Raises:
        ValueError: an unknown language.
    """
    wanted = {normalise.normalise(word, lang): _fold(word) for word in keywords}
    wanted.pop("", None)
    if not wanted:
        return 0.0
    written, folded = normalise.normalise(hypothesis, lang), _fold(hypothesis)
    present = sum(
        _stands_in(word, written) or _stands_in(as_written, folded)
        for word, as_written in wanted.items()
    )
    return worth * (2 * present - len(wanted)) / len(wanted)


def score(
    sample: Sample, hypothesis: str, config: RewardConfig | None = None
) -> Reward:
    """The reward of one transcript.

    R_acc = exp(−2 · CER), in characters for English too, where the space between words
    is one. R_hallu by the length in Chinese characters and English words:

    reference | hypothesis                      | R_acc       | R_hallu
    some text | over 2 × or under 0.5 × as long | exp(−2 CER) | −1
    some text | anything between                | exp(−2 CER) | 0
    silence   | empty                           | 1           | 0
    silence   | anything                        | 0           | −1

    A silent reference is the empty one, where even punctuation is an output; one that
    normalisation empties (a filler) forgives what normalisation takes away.

    Args:
        sample: the utterance.
        hypothesis: the transcript.
        config: weights; those of the paper if None.

    Raises:
        ValueError: an unknown language.
    """
    config = config or RewardConfig()
    lang = _find_rules(sample.reference, sample.lang)
    said = normalise.normalise(sample.reference, lang)
    written = normalise.normalise(hypothesis, lang)
    if said:
        accuracy = math.exp(-config.steepness * _measure_cer(said, written, lang))
        length = len(normalise.split_units(written, lang))
        length = length / len(normalise.split_units(said, lang))
        wrong = not config.shortest <= length <= config.longest
    else:
        wrong = bool(written if sample.reference.strip() else hypothesis.strip())
        accuracy = 0.0 if wrong else 1.0
    hallucination = -1.0 if wrong else 0.0
    keywords = sample.prompted + sample.important
    context = score_context(keywords, hypothesis, lang, config.keyword)
    total = (
        config.accuracy * accuracy
        + config.hallucination * hallucination
        + config.context * context
    )
    return Reward(accuracy, hallucination, context, total)


def score_groups(
    samples: Sequence[Sample],
    hypotheses: Sequence[Sequence[str]],
    config: RewardConfig | None = None,
) -> Rewards:
    """The rewards of K transcripts of each of G utterances.

    Args:
        samples: G utterances.
        hypotheses: for each of them, its K transcripts.
        config: weights; those of the paper if None.

    Returns:
        float32 arrays [G, K].

    Raises:
        ValueError: not one group an utterance, groups of different sizes or of none, or
            an unknown language.
    """
    if len(samples) != len(hypotheses):
        raise ValueError(
            f"{len(samples)} utterances with {len(hypotheses)} groups of transcripts; "
            "give one group an utterance."
        )
    sizes = {len(group) for group in hypotheses}
    if len(sizes) != 1 or sizes == {0}:
        raise ValueError(
            f"groups of {sorted(sizes)} transcripts; give each utterance equally many, "
            "and at least one."
        )
    scored = [
        [score(sample, hypothesis, config) for hypothesis in group]
        for sample, group in zip(samples, hypotheses)
    ]

    def gather(name: str) -> Float[np.ndarray, "G K"]:
        rows = [[getattr(reward, name) for reward in group] for group in scored]
        return np.asarray(rows, np.float32)

    return Rewards(*(gather(field.name) for field in dataclasses.fields(Rewards)))
