"""Language codes of requests, and the language of a text."""

from __future__ import annotations

import re
from collections.abc import Sequence

from nim4_jax.serving.server.config import ServerConfig
from nim4_jax.serving.server.errors import ServeError

_SAME = {"cmn": "zh", "zho": "zh", "chinese": "zh", "mandarin": "zh"} | {
    "eng": "en",
    "english": "en",
}
_HAN = re.compile("[\u3400-\u9fff\U00020000-\U0003ffff]")
NAMES = {"en": "english", "zh": "chinese"}


def check_languages(asked: Sequence[str], config: ServerConfig, param: str) -> None:
    """Refuse a language that the model does not write.

    The model knows by itself which of its languages is spoken.

    Args:
        asked: ISO 639 codes, a region behind them or not.
        config: which there are.
        param: field that asks.

    Raises:
        ServeError: 400.
    """
    for language in asked:
        code = re.split("[-_]", language.strip().lower())[0]
        if _SAME.get(code, code) not in config.languages:
            raise ServeError(
                400,
                "unsupported_language",
                f"the model writes {', '.join(config.languages)}.",
                param=param,
            )


def find_languages(text: str) -> list[str]:
    """Languages of a text by its letters, the one that has most of it first."""
    han = len(_HAN.findall(text))
    words = len(re.findall("[A-Za-z]+", text))
    found = [(han, "zh"), (words, "en")]
    return [code for count, code in sorted(found, reverse=True) if count]
