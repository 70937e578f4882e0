"""Sampling of the hints (keywords and distractors) in an utterance's training prompt.

An LLM that always sees the right name copies it, one that sees it too seldom ignores
the prompt. So some hints are said, some only sound like what is said, some have nothing
to do with it, and some prompts have none.

Source: NIM4-ASR §2.2.4; the shares are ours.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from nim4_jax.context.distractors import Distractors
from nim4_jax.context.keywords import occurs, spell

_TRIES = 4  # names drawn for each random distractor, as some are said already


@dataclasses.dataclass(frozen=True)
class HintConfig:
    """How hints are drawn.

    | share of utterances        | their hints                                  |
    | p_none                     | none                                         |
    | p_misleading               | distractors, at least one; nothing that is   |
    |                            | said                                         |
    | the others                 | keywords and distractors                     |

    Attributes:
        p_keyword: with which each keyword is a hint.
        p_distractor: with which a distractor joins such a keyword.
        p_none: with which there is no hint.
        p_misleading: with which all keywords are left out, their distractors not.
        extra: up to so many random distractors besides, every number as likely.
        most: hints at most; random distractors go first, then those that sound alike.
        nearest: a distractor is one of so many names that sound most alike.
        max_distance: how different they may sound, see `distractors.measure`.
    """

    p_keyword: float = 0.8
    p_distractor: float = 0.5
    p_none: float = 0.2
    p_misleading: float = 0.1
    extra: int = 4
    most: int = 10
    nearest: int = 5
    max_distance: float = 0.25

    def __post_init__(self):
        shares = (self.p_keyword, self.p_distractor, self.p_none, self.p_misleading)
        if not all(0 <= p <= 1 for p in shares) or self.p_none + self.p_misleading > 1:
            raise ValueError(
                f"got {self}; expected shares from 0 to 1, p_none + p_misleading ≤ 1."
            )
        if min(self.extra, self.most, self.nearest) < 0 or not self.max_distance >= 0:
            raise ValueError(
                f"got {self}; expected 0 or more for extra, most, nearest and "
                "max_distance."
            )


def choose_hints(
    text: str,
    keywords: Sequence[str],
    pool: Sequence[str],
    distractors: Distractors,
    rng: np.random.Generator,
    config: HintConfig,
) -> tuple[str, ...]:
    """Draw the hints of one utterance.

    Args:
        text: its transcript; no distractor is said in it.
        keywords: of the utterance, all of them said in the text.
        pool: names from which random distractors come, S or a sample of it.
        distractors: of the same names.
        rng: of this example and epoch, so that the draw can be repeated.
        config: the shares.

    Returns:
        Hints in random order, each once, at most `config.most`.
    """
    kind = _draw_kind(rng, config)
    if kind == "none":
        return ()
    misleading = kind == "misleading"
    drawn = [keyword for keyword in keywords if rng.random() < config.p_keyword]
    drawn = _shuffle(drawn, rng)
    said = spell(text)
    hints: dict[str, str] = {} if misleading else {spell(k): k for k in drawn}
    alike, wanted = [], int(rng.integers(config.extra + 1))
    for keyword in drawn:
        if rng.random() >= config.p_distractor:
            continue
        near = distractors.of(keyword, config.nearest, config.max_distance)
        fitting = [name for name, _ in near if not occurs(spell(name), said)]
        if fitting:
            alike.append(fitting[int(rng.integers(len(fitting)))])
        else:
            wanted += 1
    for name in alike:
        hints.setdefault(spell(name), name)
    wanted = max(wanted, int(misleading and not alike))
    for spelled, name in _draw(pool, _TRIES * wanted, rng):
        if wanted and spelled not in hints and not occurs(spelled, said):
            hints[spelled] = name
            wanted -= 1
    return _shuffle(list(hints.values())[: config.most], rng)


def mix_hints(
    said: Sequence[str],
    draw_other: Callable[[np.random.Generator], str],
    rng: np.random.Generator,
    config: HintConfig,
) -> tuple[str, ...]:
    """Draw the hints of one text where names are drawn too and no set S exists.

    The shares are those of `HintConfig`, but that all distractors are random.

    Args:
        said: names in the text.
        draw_other: gives a name that is most likely not said.
        rng: of this example.
        config: the shares.

    Returns:
        Hints in random order, each once, at most `config.most`.
    """
    kind = _draw_kind(rng, config)
    if kind == "none":
        return ()
    misleading = kind == "misleading"
    drawn = [name for name in said if rng.random() < config.p_keyword]
    extra = int(rng.integers(config.extra + 1))
    others = [draw_other(rng) for _ in range(max(extra, int(misleading)))]
    others = [name for name in others if name not in said]
    hints = list(dict.fromkeys([*(() if misleading else drawn), *others]))
    return _shuffle(hints[: config.most], rng)


def _draw_kind(rng: np.random.Generator, config: HintConfig) -> str:
    """Which row of `HintConfig`'s table a prompt belongs to."""
    fate = rng.random()
    if fate < config.p_none:
        return "none"
    return "misleading" if fate < config.p_none + config.p_misleading else "mixed"


def _shuffle(names: Sequence[str], rng: np.random.Generator) -> tuple[str, ...]:
    return tuple(names[int(i)] for i in rng.permutation(len(names)))


def _draw(
    names: Sequence[str], count: int, rng: np.random.Generator
) -> Iterator[tuple[str, str]]:
    """Different names, spelled and as they are; all are equally likely."""
    count = min(count, len(names))
    for index in rng.choice(len(names), count, replace=False) if count else ():
        name = names[int(index)]
        yield spell(name), name
