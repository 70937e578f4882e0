"""From what was heard to what the prompt says."""

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
    """Texts for the prompt, the best first.

    Args:
        hits: of a stream.
        tokenizer: of the LLM.
        most: number of hints.
        budget: tokens that the hints may add to the prompt; a name that does not fit is
            left out whole, a shorter one after it may still fit.
    """
    ranked = sorted(hits, key=lambda hit: (-hit.score, hit.start, hit.text))
    bare = len(prompt.encode_suffix(tokenizer))
    chosen: tuple[str, ...] = ()
    distinct = dict.fromkeys(hit.text for hit in ranked)
    for text in itertools.islice(distinct, _CONSIDERED):
        longer = (*chosen, text)
        if len(prompt.encode_suffix(tokenizer, longer)) - bare <= budget:
            chosen = longer
        if len(chosen) == most:
            break
    return chosen
