"""Tokenisation of the prompt: the parts before and behind the speech, and the answer.

    <|im_start|>system
    You are a Multilingual Speech Recognition Model.<|im_end|>
    <|im_start|>user
    [speech embeddings]
    Transcribe the speech into text. Contextual hints: a, b.<|im_end|>
    <|im_start|>assistant
    transcript<|im_end|>

Speech comes before the instruction, so that streaming can append speech to a prefix
that is computed once, and training sees the same layout. Without hints their sentence
is left out. Text never becomes a special token.

Source: NIM4-ASR §2.4.1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Int

from nim4_jax.text import template
from nim4_jax.text.tokenizer import Tokenizer

SUFFIX_STEP = 32
"""Widths of packed suffixes are multiples of it."""


def encode_prefix(tokenizer: Tokenizer) -> list[int]:
    """Ids before the speech."""
    start, end = (
        tokenizer.special_id(template.IM_START),
        tokenizer.special_id(template.IM_END),
    )
    return [
        start,
        *tokenizer.encode(template.SYSTEM),
        end,
        *tokenizer.encode("\n"),
        start,
        *tokenizer.encode(template.USER),
    ]


def encode_suffix(tokenizer: Tokenizer, hints: Sequence[str] = ()) -> list[int]:
    """Ids behind the speech, up to where the answer begins.

    Args:
        tokenizer: of the language model.
        hints: hotwords for the prompt; empty ones are left out.
    """
    named = [hint.strip() for hint in hints if hint.strip()]
    request = template.INSTRUCTION + (
        template.HINTS.format(", ".join(named)) if named else ""
    )
    return [
        *tokenizer.encode(request),
        tokenizer.special_id(template.IM_END),
        *tokenizer.encode("\n"),
        tokenizer.special_id(template.IM_START),
        *tokenizer.encode(template.ASSISTANT),
    ]


def fit_hints(tokenizer: Tokenizer, hints: Sequence[str], size: int) -> tuple[str, ...]:
    """The first hints, each whole, whose suffix has at most `size` tokens.

    Raises:
        ValueError: the suffix without any hint is longer.
    """
    fitting: tuple[str, ...] = ()
    for hint in hints:
        if len(encode_suffix(tokenizer, (*fitting, hint))) <= size:
            fitting = (*fitting, hint)
    bare = len(encode_suffix(tokenizer))
    if bare > size:
        raise ValueError(f"{size} tokens hold no prompt: it has {bare} without hints.")
    return fitting


def pack_suffixes(
    tokenizer: Tokenizer, hints: Sequence[Sequence[str]], size: int | None = None
) -> tuple[Int[np.ndarray, "B L"], Bool[np.ndarray, "B L"]]:
    """`encode_suffix` of many rows in arrays of one width, for jitted programs.

    Args:
        tokenizer: of the language model.
        hints: hotwords of each row.
        size: L; None for the least multiple of SUFFIX_STEP that holds all rows.

    Returns:
        Ids, int32, zeros behind the last; and where they are real.

    Raises:
        ValueError: a row does not fit.
    """
    rows = [encode_suffix(tokenizer, row) for row in hints]
    longest = max(map(len, rows), default=1)
    width = -(-longest // SUFFIX_STEP) * SUFFIX_STEP if size is None else size
    if longest > width:
        raise ValueError(
            f"hints make a prompt of {longest} tokens behind the speech, there is room "
            f"for {width}; choose them with a smaller budget."
        )
    ids, mask = (
        np.zeros((len(rows), width), np.int32),
        np.zeros((len(rows), width), bool),
    )
    for row, tokens in enumerate(rows):
        ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, True
    return ids, mask


def encode_answer(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a transcript and the `<|im_end|>` that ends it."""
    return [*tokenizer.encode(text), tokenizer.end_id]


def encode_names(tokenizer: Tokenizer, names: Sequence[str]) -> list[int]:
    """Ids of names, `<|im_end|>` after each, to travel in arrays."""
    return [i for name in names for i in encode_answer(tokenizer, name)]


def decode_names(decode: Callable[[list[int]], str], ids, end_id: int) -> list[str]:
    """The names of `encode_names`.

    Args:
        decode: ids → text.
        ids: without padding.
        end_id: what ends a name; a name that was cut off is left out.
    """
    names, name = [], []
    for i in map(int, ids):
        if i == end_id:
            names.append(decode(name))
            name = []
        else:
            name.append(i)
    return [text for text in names if text]
