"""Mandarin: characters → toned pinyin → initials and toned finals.

Every syllable that pypinyin can give is split into an optional initial and one final
with its tone (1–5, 5 = neutral). Zero-initial spellings are undone first, so that one
sound has one name: yi = i, ya = ia, you = iu, wu = u, wei = ui, yu = v, and j, q, x
are followed by v, never by u (ju = j v).
"""

from __future__ import annotations

import re
from functools import lru_cache
from importlib import resources
from typing import Any

_INITIAL_NAMES = "b p m f d t n l g k h j q x zh ch sh r z c s"
_FINAL_NAMES = (
    "a ai an ang ao e ei en eng er i ia ian iang iao ie in ing io iong iu o ong ou "
    "u ua uai uan uang ueng ui un uo v van ve vn"
)
INITIALS = tuple(_INITIAL_NAMES.split())
FINALS = tuple(_FINAL_NAMES.split())
TONES = "12345"
TONED_FINALS = tuple(final + tone for final in FINALS for tone in TONES)

_LONG_INITIALS_FIRST = sorted(INITIALS, key=len, reverse=True)
# Interjections without a vowel, and ê, take the nearest sound of the closed list.
_INTERJECTIONS = {"m": "en", "n": "en", "ng": "en", "hm": "heng", "hng": "heng"}
_ZERO_INITIALS = {
    "yi": "i",
    "ya": "ia",
    "yan": "ian",
    "yang": "iang",
    "yao": "iao",
    "ye": "ie",
    "yin": "in",
    "ying": "ing",
    "yo": "io",
    "yong": "iong",
    "you": "iu",
    "yu": "v",
    "yuan": "van",
    "yue": "ve",
    "yun": "vn",
    "wu": "u",
    "wa": "ua",
    "wai": "uai",
    "wan": "uan",
    "wang": "uang",
    "wei": "ui",
    "wen": "un",
    "weng": "ueng",
    "wong": "ueng",
    "wo": "uo",
    "ê": "ei",
}


@lru_cache(maxsize=4096)
def split_syllable(syllable: str) -> tuple[str, ...]:
    """One toned syllable as its phonemes: `zhang3` → (`zh`, `ang3`), `yu2` → (`v2`,).

    Args:
        syllable: pinyin with the tone as a last digit 1–5; no digit or 0 = neutral, 5.

    Returns:
        One or two names, each in INITIALS or TONED_FINALS.

    Raises:
        ValueError: the spelling is no Mandarin syllable.
    """
    base, tone = syllable, "5"
    if syllable[-1:].isdigit():
        base, tone = syllable[:-1], syllable[-1]
        tone = "5" if tone == "0" else tone
    base = _INTERJECTIONS.get(base.replace("ü", "v"), base.replace("ü", "v"))
    initial, final = "", _ZERO_INITIALS.get(base, base)
    if base not in _ZERO_INITIALS:
        initial = next((i for i in _LONG_INITIALS_FIRST if base.startswith(i)), "")
        final = base[len(initial) :]
        if initial in ("j", "q", "x") and final.startswith("u"):
            final = "v" + final[1:]
        final = {"iou": "iu", "uei": "ui", "uen": "un"}.get(final, final)
    if final not in FINALS or tone not in TONES:
        raise ValueError(
            f"{syllable!r} is no Mandarin syllable: expected pinyin such as 'zhang3', "
            f"an initial of {' '.join(INITIALS)} or none, then a final of "
            f"{' '.join(FINALS)}, then a tone 1-5"
        )
    return (initial, final + tone) if initial else (final + tone,)


def _keep_unknown(characters: str) -> list[str]:
    """pypinyin's callback for characters that it does not know: one blank each."""
    return [""] * len(characters)


@lru_cache(maxsize=1)
def load_corrections() -> tuple[re.Pattern[str], dict[str, list[str]]]:
    """Our own phrase readings and a pattern that finds the longest of them first."""
    file = resources.files("nim4_jax.text") / "resources" / "phrases.txt"
    lines = file.read_text(encoding="utf8").splitlines()
    rows = [line.split() for line in lines if not line.startswith("#")]
    table = {phrase: syllables for phrase, *syllables in rows}
    return re.compile("|".join(sorted(table, key=len, reverse=True))), table


@lru_cache(maxsize=4096)
def _number_tone(syllable: str) -> str:
    """zhōng → zhong1; pypinyin itself would work it out again for every character."""
    from pypinyin.contrib import tone_convert

    return tone_convert.to_tone3(syllable, neutral_tone_with_five=True)


@lru_cache(maxsize=65536)
def pronounce_characters(characters: str) -> tuple[tuple[str, ...], ...]:
    """Phonemes of each character of a run, read in the context of the whole run.

    Readings come from our own few phrases, then pypinyin's phrase dictionary, longest
    match, then the character's most frequent one. Tone sandhi is left to the acoustics,
    except where the phrase dictionary itself writes it (一个 = yi2 ge4).

    Args:
        characters: Chinese characters only, no punctuation.

    Returns:
        One tuple of phonemes a character; empty for a character without a reading.
    """
    from pypinyin import Style, lazy_pinyin

    unknown: Any = _keep_unknown  # pypinyin's annotation allows no lists
    syllables = lazy_pinyin(characters, style=Style.TONE, errors=unknown)
    if len(syllables) != len(characters):
        return tuple(
            pronounce_characters(one)[0] if len(characters) > 1 else ()
            for one in characters
        )
    pattern, table = load_corrections()
    syllables = [_number_tone(syllable) for syllable in syllables]
    for match in pattern.finditer(characters):
        syllables[match.start() : match.end()] = table[match[0]]
    return tuple(split_syllable(s) if s else () for s in syllables)
