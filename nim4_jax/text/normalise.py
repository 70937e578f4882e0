"""Scoring normalisation: texts that a reader calls the same become the same string.

English in the spirit of Whisper's normaliser, Chinese as CER scoring does; the code and
the tables are our own.
"""

from __future__ import annotations

import re
import unicodedata

from nim4_jax.text import chinese_numbers, english_numbers, signs

LANGUAGES = ("en", "zh", "mixed", "auto")
_HAN = "\u3007\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff"
_ANY_HAN = re.compile(f"[{_HAN}]")
_BRACKETED = re.compile(r"<[^<>]*>|\[[^\[\]]*\]|\([^()]*\)")
_FILLERS_ZH = re.compile("[嗯呃]")
_FILLERS = frozenset(
    ["hmm", "hm", "mm", "mhm", "mmm", "uh", "uhm", "um", "umm", "er", "erm"]
)
_CONTRACTIONS = tuple(
    (re.compile(pattern), spoken)
    for pattern, spoken in (
        (r"\bwon't\b", "will not"),
        (r"\bcan't\b", "can not"),
        (r"\bcannot\b", "can not"),
        (r"\bshan't\b", "shall not"),
        (r"\blet's\b", "let us"),
        (r"\bain't\b", "is not"),
        (r"\by'all\b", "you all"),
        (r"\bma'am\b", "madam"),
        (r"\bo'clock\b", "oclock"),
        (r"\bwanna\b", "want to"),
        (r"\bgonna\b", "going to"),
        (r"\bgotta\b", "got to"),
        (r"\blemme\b", "let me"),
        (r"\bgimme\b", "give me"),
        (r"\bokay\b", "ok"),
        (r"n't\b", " not"),
        (r"'re\b", " are"),
        (r"'ll\b", " will"),
        (r"'ve\b", " have"),
        (r"'m\b", " am"),
        (r"'d\b", " would"),
        (r"'s\b", " is"),
    )
)
_TITLES = {"mr": "mister", "mrs": "missus", "dr": "doctor", "prof": "professor"}
_SPELLINGS = (
    "colour:color colours:colors favourite:favorite favourites:favorites "
    "centre:center centres:centers theatre:theater theatres:theaters "
    "neighbour:neighbor neighbours:neighbors neighbourhood:neighborhood "
    "honour:honor harbour:harbor labour:labor behaviour:behavior flavour:flavor "
    "humour:humor rumour:rumor grey:gray travelling:traveling "
    "travelled:traveled traveller:traveler cancelled:canceled "
    "cancelling:canceling organise:organize organised:organized "
    "organisation:organization realise:realize realised:realized "
    "recognise:recognize recognised:recognized apologise:apologize "
    "analyse:analyze defence:defense offence:offense licence:license "
    "programme:program programmes:programs metre:meter metres:meters "
    "litre:liter litres:liters kilometre:kilometer kilometres:kilometers "
    "catalogue:catalog dialogue:dialog tyre:tire tyres:tires kerb:curb "
    "jewellery:jewelry aluminium:aluminum cheque:check cheques:checks "
    "mum:mom plough:plow pyjamas:pajamas storey:story fibre:fiber"
)
_AMERICAN: dict[str, str] = {
    british: american
    for british, _, american in (pair.partition(":") for pair in _SPELLINGS.split())
}
_CURRENCY_WORDS = {"$": "dollars", "€": "euros", "£": "pounds", "¥": "yuan"}
_CURRENCY_ZH = {"$": "美元", "€": "欧元", "£": "英镑", "¥": "元"}
_PRICE = re.compile(r"([$€£¥]) ?([0-9]+(?:\.[0-9]+)?)")
_NUMERALS = "0123456789零〇一二两三四五六七八九十百千万亿"
_MOST_PASSES = 64


def _strip_marks(text: str) -> str:
    """Without Latin accents: é → e, ø → o; other scripts' letters keep their marks."""
    plain = "".join(
        c for c in unicodedata.normalize("NFD", text) if not "\u0300" <= c <= "\u036f"
    )
    return signs.replace_letters(unicodedata.normalize("NFC", plain))


def _strip_punctuation(text: str) -> str:
    """Letters, marks, numbers, decimal points and % behind a digit; else spaces."""
    text = re.sub(r"(?<=[0-9])[,](?=[0-9]{3}(?![0-9]))", "", text)
    text = re.sub(r"(?<=[a-z])'(?=[a-z])", "", text)
    kept = []
    for i, c in enumerate(text):
        before = text[i - 1 : i]
        digit_before = before.isascii() and before.isdigit()
        after = text[i + 1 : i + 2]
        point = c == "." and digit_before and after.isascii() and after.isdigit()
        if (
            unicodedata.category(c)[0] in "LNM"
            or point
            or (c == "%" and before and before in _NUMERALS)
        ):
            kept.append(c)
        else:
            kept.append(" ")
    return "".join(kept)


def _write_prices(text: str, chinese: bool) -> str:
    def spell(match: re.Match[str]) -> str:
        if chinese:
            return f"{match[2]}{_CURRENCY_ZH[match[1]]}"
        return f"{match[2]} {_CURRENCY_WORDS[match[1]]} "

    return _PRICE.sub(spell, text)


def _unify_english(text: str) -> str:
    """Contractions, titles, fillers, spelling and number words of the Latin words."""
    words = [
        _AMERICAN.get(_TITLES.get(word, word), _TITLES.get(word, word))
        for word in text.split()
        if word not in _FILLERS
    ]
    return " ".join(english_numbers.write_digits(words))


def _normalise_once(text: str, chinese: bool) -> str:
    text = signs.unify_apostrophes(signs.strip_invisible(text))
    text = unicodedata.normalize("NFKC", signs.part_numbers(text, chinese)).lower()
    text = _BRACKETED.sub(" ", _strip_marks(text))
    text = re.sub(r"\b(?:[a-z]\.){2,}", lambda m: m[0].replace(".", "") + " ", text)
    for pattern, spoken in _CONTRACTIONS:
        text = pattern.sub(spoken, text)
    text = _write_prices(signs.spell(text, chinese), chinese)
    if chinese:
        text = re.sub(r"(?<=[0-9]):(?=[0-9])", "点", text)
    else:
        text = re.sub(r"(?<=[0-9])%", " percent", text)
    text = _strip_punctuation(text)
    if not chinese:
        text = re.sub(r"(?<=[0-9])(?=(?:am|pm)\b)", " ", text)
        return _unify_english(text)
    text = re.sub(f"(?<=[{_HAN}])(?=[^{_HAN}])|(?<=[^{_HAN}])(?=[{_HAN}])", " ", text)
    text = _unify_english(_FILLERS_ZH.sub("", text))
    text = re.sub(f"(?<=[{_HAN}]) +| +(?=[{_HAN}])", "", text)
    return chinese_numbers.write_digits(text)


def _has_chinese_rules(text: str, lang: str) -> bool:
    if lang not in LANGUAGES:
        raise ValueError(f"unknown language {lang!r}; choose from {LANGUAGES}")
    return lang in ("zh", "mixed") or (lang == "auto" and bool(_ANY_HAN.search(text)))


def normalise(text: str, lang: str = "auto") -> str:
    """The form of a text that is scored.

    Rule: Unicode NFKC, lower case, no accents, brackets and their content, fillers or
    punctuation; contractions written out; American spelling; numbers in digits (five
    five one → 551, but 100 5 are two), fractions and minus as they are said. With
    Chinese rules also: numerals in digits, no space beside a Chinese character.
    normalise(normalise(x)) == normalise(x).

    Args:
        text: anything; lone surrogates too.
        lang: "en"; "zh" or "mixed", both with the Chinese rules; "auto": Chinese rules
            if the text has a Chinese character.

    Raises:
        ValueError: unknown language; the message lists them.
    """
    for _ in range(_MOST_PASSES):
        passed = _normalise_once(text, _has_chinese_rules(text, lang))
        if passed == text:
            break
        text = passed
    return text


def split_units(text: str, lang: str = "auto") -> list[str]:
    """Units of the mixed error rate: English words and Chinese characters.

    Args:
        text: normalised text.
        lang: in "en" a number is one word; in "zh" and "mixed" each digit is a unit, as
            each Chinese character is; "auto" is "zh" if there is a Chinese character.
    """
    if _has_chinese_rules(text, lang):
        return re.findall(rf"[{_HAN}]|\.?[0-9]%?|[^\s{_HAN}0-9.]+|\.", text)
    return re.findall(rf"[{_HAN}]|[^\s{_HAN}]+", text)
