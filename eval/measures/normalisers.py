"""Text normalisers of error rates, and the units that they count.

| name    | rule                                                       | needs      |
| ours    | nim4_jax.text.normalise, the project's own                 |            |
| raw     | none: punctuation and case count as they are written       |            |
| whisper | Whisper's for English, its basic one for other languages   | extra eval |
| wetext  | WeTextProcessing's text normalisation: numbers in words    | extra eval |

Behind "whisper" and "wetext" stand libraries that carry their own tables and download
nothing. WeTextProcessing leaves case, and punctuation in English: both are taken off.

Source: Radford et al., "Robust speech recognition via large-scale weak supervision",
appendix C; github.com/wenet-e2e/WeTextProcessing.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Callable
from typing import Any

from nim4_jax.text import normalise as own
from nim4_jax.text import signs

NAMES = ("ours", "raw", "whisper", "wetext")

_APOSTROPHE = re.compile(r"(?<=\w)'(?=\w)")


def check(name: str) -> None:
    """Raise ValueError if a normaliser is unknown, or its library is not installed."""
    if name not in NAMES:
        raise ValueError(
            f"unknown normaliser {name!r}; choose from {', '.join(NAMES)}."
        )
    if name == "whisper":
        _open_whisper()
    if name == "wetext":
        _open_wetext("zh")


def normalise(text: str, lang: str, name: str = "ours") -> str:
    """The form of a text that is scored.

    Args:
        text: reference or hypothesis.
        lang: "en", "zh" or "mixed".
        name: of `NAMES`.

    Raises:
        ValueError: an unknown normaliser, or one whose library is not installed.
    """
    if name == "ours":
        return own.normalise(text, lang)
    if name == "raw":
        return text
    check(name)
    if name == "whisper":
        english, basic = _open_whisper()
        return (english if lang == "en" else basic)(text).strip()
    if not text.strip():
        return ""
    return _strip(_open_wetext("en" if lang == "en" else "zh")(text))


def split(text: str, lang: str) -> list[str]:
    """The units of a normalised text.

    Args:
        text: what `normalise` gives.
        lang: "en" has words, "zh" characters, "mixed" English words and Chinese
            characters.
    """
    if lang == "zh":
        return list("".join(text.split()))
    if lang == "mixed":
        return own.split_units(text, lang)
    return text.split()


def _strip(text: str) -> str:
    """Lower case, letters and numbers alone; an apostrophe within a word goes."""
    text = signs.unify_apostrophes(signs.strip_invisible(text))
    text = _APOSTROPHE.sub("", unicodedata.normalize("NFKC", text).lower())
    kept = (c if unicodedata.category(c)[0] in "LMN" else " " for c in text)
    return " ".join("".join(kept).split())


@functools.cache
def _open_whisper() -> tuple[Callable[[str], str], Callable[[str], str]]:
    """Whisper's normalisers for English and for other languages."""
    try:
        from whisper_normalizer import basic, english
    except ImportError as error:
        raise _describe_absence("whisper", "whisper-normalizer") from error
    return english.EnglishTextNormalizer(), basic.BasicTextNormalizer()


@functools.cache
def _open_wetext(lang: str) -> Callable[[str], str]:
    """WeTextProcessing's normaliser of a language, with its default switches."""
    try:
        import wetext
    except ImportError as error:
        raise _describe_absence("wetext", "wetext") from error
    options: dict[str, Any] = {"lang": lang, "operator": "tn", "remove_puncts": True}
    if lang == "zh":
        options |= {
            "traditional_to_simple": True,
            "full_to_half": True,
            "remove_interjections": True,
        }
    normaliser = wetext.Normalizer(**options)
    return lambda text: str(normaliser.normalize(text))


def _describe_absence(name: str, package: str) -> ValueError:
    return ValueError(
        f"the normaliser {name!r} needs the package {package}, which is not installed: "
        "pip install 'nim4-jax[eval]'."
    )
