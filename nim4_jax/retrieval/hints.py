"""Selection of the prompt's hints from hotword hits, within a token budget."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from nim4_jax.retrieval.hotwords import Hit
from nim4_jax.text import prompt
from nim4_jax.text.tokenizer import Tokenizer

_CONSIDERED = 64  # names that are tried, however many were heard


def select_hints(
    hits: Iterable[Hit], tokenizer: Tokenizer, *, most: int = 10, budget: int = 64
) -> tuple[str, ...]:
    """Texts for the prompt, the best first, see `rank`.

    Args:
        hits: of a stream.
        tokenizer: of the LLM.
        most: number of hints.
        budget: tokens that the hints may add to the prompt; a name that does not fit is
            left out whole, a shorter one after it may still fit.
    """
    bare = len(prompt.encode_suffix(tokenizer))
    chosen: tuple[str, ...] = ()
    distinct = dict.fromkeys(hit.text for hit in rank(hits))
    for text in itertools.islice(distinct, _CONSIDERED):
        longer = (*chosen, text)
        if len(prompt.encode_suffix(tokenizer, longer)) - bare <= budget:
            chosen = longer
        if len(chosen) == most:
            break
    return chosen


def rank(hits: Iterable[Hit]) -> list[Hit]:
    """The strongest hit of each place, the strongest first; then its namesakes.

    Only one name can have been said in a place, so what overlaps a stronger hit is left
    out. Names that sound alike have the same place and evidence, and no ear can tell
    them apart: the LLM may, but every place has had its one before.
    """
    ranked = sorted(hits, key=lambda hit: (-hit.strength, hit.start, hit.text))
    first: list[Hit] = []
    namesakes: list[Hit] = []
    for hit in ranked:
        rivals = [one for one in first if one.start < hit.end and hit.start < one.end]
        if not rivals:
            first.append(hit)
        elif all(_sound_alike(hit, one) for one in rivals):
            namesakes.append(hit)
    return first + namesakes


def _sound_alike(one: Hit, other: Hit) -> bool:
    own, its = ((h.start, h.end, h.evidence, h.source) for h in (one, other))
    return own == its
