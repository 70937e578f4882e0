"""The one prompt: what stands before and behind the speech, and the answer.

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

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nim4_jax.text.tokenizer import Tokenizer

IM_START, IM_END = "<|im_start|>", "<|im_end|>"
_SYSTEM = "system\nYou are a Multilingual Speech Recognition Model."
_USER = "user\n"
_INSTRUCTION = "\nTranscribe the speech into text."
_HINTS = " Contextual hints: {}."
_ASSISTANT = "assistant\n"
TEMPLATE_TEXTS = (_SYSTEM, _USER, _INSTRUCTION, _HINTS.format("a, b"), _ASSISTANT)
"""The plain texts of the template, which a tokenizer should spell in few tokens."""


def encode_prefix(tokenizer: Tokenizer) -> list[int]:
    """Ids before the speech."""
    start, end = tokenizer.special_id(IM_START), tokenizer.special_id(IM_END)
    return [
        start,
        *tokenizer.encode(_SYSTEM),
        end,
        *tokenizer.encode("\n"),
        start,
        *tokenizer.encode(_USER),
    ]


def encode_suffix(tokenizer: Tokenizer, hints: Sequence[str] = ()) -> list[int]:
    """Ids behind the speech, up to where the answer begins.

    Args:
        tokenizer: of the language model.
        hints: hotwords for the prompt; empty ones are left out.
    """
    named = [hint.strip() for hint in hints if hint.strip()]
    request = _INSTRUCTION + (_HINTS.format(", ".join(named)) if named else "")
    return [
        *tokenizer.encode(request),
        tokenizer.special_id(IM_END),
        *tokenizer.encode("\n"),
        tokenizer.special_id(IM_START),
        *tokenizer.encode(_ASSISTANT),
    ]


def encode_answer(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a transcript and the `<|im_end|>` that ends it."""
    return [*tokenizer.encode(text), tokenizer.end_id]
