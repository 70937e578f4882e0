"""The grammar of in-car commands: English, Mandarin and Mandarin with English names.

A command is a template with slots, `play {song} by {artist}`; a slot is a name from
`wordlists/` or a number written as it is spoken. Texts are what a recogniser has to
write: English in lower case, Chinese without punctuation, numbers in words.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nim4_jax.data.corpora import templates

LANGUAGES = ("en", "zh", "mixed")
LANGUAGE_MIX: Mapping[str, float] = {"en": 0.55, "zh": 0.37, "mixed": 0.08}
HELD_OUT_SHARE = 12  # one text in twelve is kept for testing
NAME_SLOTS = {  # a slot whose filling is a keyword -> the list that fills it
    "place_en": "places_en",
    "song_en": "songs_en",
    "artist_en": "artists_en",
    "app_en": "apps_en",
    "place_zh": "places_zh",
    "person_zh": "people_zh",
    "song_zh": "songs_zh",
    "artist_zh": "artists_zh",
}
DrawName = Callable[[np.random.Generator, str], str]
WORDLISTS = (*NAME_SLOTS.values(), "first_en", "last_en")


@dataclass(frozen=True)
class Command:
    """One spoken command: its text, its language and the names in it."""

    text: str
    lang: str
    keywords: tuple[str, ...]


@functools.cache
def load_wordlist(name: str) -> tuple[str, ...]:
    """The names of one list, in file order.

    Raises:
        ValueError: no such list; the message names them all.
    """
    if name not in WORDLISTS:
        known = ", ".join(WORDLISTS)
        raise ValueError(f"unknown word list {name!r}; the lists are: {known}")
    path = Path(__file__).parents[1] / "wordlists" / f"{name}.txt"
    return tuple(path.read_text(encoding="utf8").splitlines())


def is_held_out(text: str) -> bool:
    """Whether a text belongs to the test split: a hash of the text decides.

    The rule needs no list, so text of any amount, drawn anywhere, stays disjoint
    from the test texts.
    """
    digest = hashlib.sha256(text.encode("utf8")).digest()
    return int.from_bytes(digest[:8], "big") % HELD_OUT_SHARE == 0


def sample(
    rng: np.random.Generator,
    lang: str,
    held_out: bool | None = None,
    draw_name: DrawName | None = None,
) -> Command:
    """Draw one command.

    Args:
        rng: the source of randomness, advanced by the draw.
        lang: "en", "zh" or "mixed" (Mandarin with English names).
        held_out: True draws test texts only, False training texts only, None both.
        draw_name: gives the names instead of the lists; (rng, "en" or "zh") → name.

    Raises:
        ValueError: unknown language; the message lists the languages.
    """
    if lang not in LANGUAGES:
        raise ValueError(f"unknown language {lang!r}; choose from {LANGUAGES}")
    while True:
        command = _draw(rng, lang, draw_name)
        if held_out is None or is_held_out(command.text) == held_out:
            return command


def iterate_texts(
    seed: int, count: int, lang_mix: Mapping[str, float] = LANGUAGE_MIX
) -> Iterator[Command]:
    """Training commands without speech, for warming up a language model.

    Args:
        seed: the same seed gives the same commands.
        count: how many; a negative count means without end.
        lang_mix: share of each language; shares are normalised to sum to 1.

    Yields:
        Commands none of whose texts belongs to the test split.
    """
    unknown = sorted(set(lang_mix) - set(LANGUAGES))
    if unknown or not lang_mix or sum(lang_mix.values()) <= 0:
        raise ValueError(
            f"lang_mix must give positive shares of {LANGUAGES}, got {dict(lang_mix)}"
        )
    rng = np.random.default_rng([seed, 0x7E87])
    langs = list(lang_mix)
    shares = np.array([lang_mix[lang] for lang in langs], float)
    shares /= shares.sum()
    drawn = 0
    while drawn != count:
        lang = langs[int(rng.choice(len(langs), p=shares))]
        yield sample(rng, lang, held_out=False)
        drawn += 1


def _draw(rng: np.random.Generator, lang: str, draw_name: DrawName | None) -> Command:
    """One command, whichever split it belongs to."""
    groups = templates.TEMPLATES[lang]
    weights = np.array([group.weight for group in groups])
    group = groups[int(rng.choice(len(groups), p=weights / weights.sum()))]
    template = _pick(rng, group.lines)
    keywords: list[str] = []

    def fill(match: re.Match[str]) -> str:
        slot = match[1]
        is_name = slot in NAME_SLOTS or slot == "person_en"
        if draw_name and is_name:
            value = draw_name(rng, slot.rpartition("_")[2])
        else:
            value = _fill_slot(rng, slot)
        if is_name:
            keywords.append(value)
        return value

    text = re.sub(r"\{(\w+)\}", fill, template)
    return Command(text, lang, tuple(dict.fromkeys(keywords)))


def _pick(rng: np.random.Generator, choices: tuple[str, ...]) -> str:
    return choices[int(rng.integers(len(choices)))]


def _fill_slot(rng: np.random.Generator, slot: str) -> str:
    """The words of one slot: a name, a number or one of a fixed set of phrases."""
    if slot in NAME_SLOTS:
        return _pick(rng, load_wordlist(NAME_SLOTS[slot]))
    if slot == "person_en":
        first = _pick(rng, load_wordlist("first_en"))
        return f"{first} {_pick(rng, load_wordlist('last_en'))}"
    if slot in _NUMBERS:
        return _NUMBERS[slot](rng)
    return _pick(rng, templates.PHRASES[slot])


# --- numbers as they are spoken

ONES = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine",
    "ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen",
    "seventeen", "eighteen", "nineteen",
)  # fmt: skip
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
DIGITS_ZH = "零一二三四五六七八九"


def spell_en(number: int) -> str:
    """0 … 199 in English words: 45 -> "forty five", 101 -> "one hundred one"."""
    if not 0 <= number < 200:
        raise ValueError(f"can spell 0 to 199, got {number}")
    if number >= 100:
        rest = number - 100
        return "one hundred" + (f" {spell_en(rest)}" if rest else "")
    if number < 20:
        return ONES[number]
    tens, one = divmod(number, 10)
    return TENS[tens - 2] + (f" {ONES[one]}" if one else "")


def spell_zh(number: int) -> str:
    """0 … 199 in Chinese characters: 12 -> 十二, 45 -> 四十五, 101 -> 一百零一."""
    if not 0 <= number < 200:
        raise ValueError(f"can spell 0 to 199, got {number}")
    if number >= 100:
        rest = number - 100
        if rest == 0:
            return "一百"
        if rest < 10:
            return "一百零" + DIGITS_ZH[rest]
        return "一百" + ("一" if rest < 20 else "") + spell_zh(rest)
    tens, one = divmod(number, 10)
    if tens == 0:
        return DIGITS_ZH[one]
    head = "十" if tens == 1 else DIGITS_ZH[tens] + "十"
    return head + (DIGITS_ZH[one] if one else "")


def _draw_digits_en(rng: np.random.Generator) -> str:
    return " ".join(ONES[int(d)] for d in rng.integers(0, 10, int(rng.integers(3, 7))))


def _draw_digits_zh(rng: np.random.Generator) -> str:
    digits = rng.integers(0, 10, int(rng.integers(4, 9)))
    return "".join(DIGITS_ZH[int(d)] for d in digits)


def _draw_radio_en(rng: np.random.Generator) -> str:
    whole, tenth = int(rng.integers(88, 108)), int(rng.integers(0, 10))
    return f"{spell_en(whole)} point {ONES[tenth]}"


def _draw_radio_zh(rng: np.random.Generator) -> str:
    whole, tenth = int(rng.integers(88, 108)), int(rng.integers(0, 10))
    return f"{spell_zh(whole)}点{DIGITS_ZH[tenth]}"


def _draw_time_en(rng: np.random.Generator) -> str:
    hour, minute = int(rng.integers(1, 13)), int(rng.choice([0, 15, 20, 30, 40, 45]))
    return ONES[hour] + (f" {spell_en(minute)}" if minute else " o'clock")


def _draw_time_zh(rng: np.random.Generator) -> str:
    hour, minute = int(rng.integers(1, 13)), int(rng.choice([0, 15, 20, 30, 40, 45]))
    spoken = "两" if hour == 2 else spell_zh(hour)
    tail = {0: "", 30: "半"}.get(minute, f"{spell_zh(minute)}分")
    return f"{spoken}点{tail}"


def _within(
    spell: Callable[[int], str], low: int, high: int, step: int = 1
) -> Callable[[np.random.Generator], str]:
    """A drawer of spelled numbers low, low + step, … high."""
    return lambda rng: spell(low + step * int(rng.integers((high - low) // step + 1)))


_NUMBERS: dict[str, Callable[[np.random.Generator], str]] = {
    "degrees_en": _within(spell_en, 16, 30),
    "degrees_zh": _within(spell_zh, 16, 30),
    "level_en": _within(spell_en, 1, 8),
    "level_zh": _within(spell_zh, 1, 8),
    "percent_en": _within(spell_en, 10, 100, 5),
    "percent_zh": _within(spell_zh, 10, 100, 5),
    "speed_en": _within(spell_en, 30, 120, 5),
    "speed_zh": _within(spell_zh, 30, 120, 5),
    "minutes_en": _within(spell_en, 3, 59),
    "minutes_zh": _within(spell_zh, 3, 59),
    "digits_en": _draw_digits_en,
    "digits_zh": _draw_digits_zh,
    "radio_en": _draw_radio_en,
    "radio_zh": _draw_radio_zh,
    "time_en": _draw_time_en,
    "time_zh": _draw_time_zh,
}
