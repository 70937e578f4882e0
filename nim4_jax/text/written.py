"""Texts as a recogniser should write them: cased, punctuated, and nothing that no
voice says.

Sentences of books, dialogues and manuals become targets of one style: without quotation
marks and title marks, with a capital at the head and a mark at the end. What stands in
a text must be what G2P reads aloud, so texts with other signs are refused.
"""

from __future__ import annotations

import re

_HAN = "\u3007\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff"
_LATIN = "A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f"
_READABLE = re.compile(rf"[{_HAN}{_LATIN}0-9\s.,!?;:'%$€£&@+·，。！？；：、-]+")
_ANY_HAN = re.compile(f"[{_HAN}]")
_REPLACED = str.maketrans(
    {
        **dict.fromkeys('"“”„«»「」『』《》〈〉‘', ""),
        "’": "'",
        "—": ", ",
        "–": "-",
        "…": ".",
        "\u3000": " ",
        "\u00a0": " ",
        "‧": "·",
        "％": "%",
        "＄": "$",
    }
)
_MENDS = tuple(
    (re.compile(pattern), replaced)
    for pattern, replaced in (
        (r"--+", ", "),
        (r"\.{2,}", "."),
        (rf"(?<=[{_HAN}]) ?,", "，"),
        (rf"(?<=[{_HAN}])\.(?![\w.])", "。"),
        (rf"(?<=[{_HAN}])\?", "？"),
        (rf"(?<=[{_HAN}])!", "！"),
        (r"\s+", " "),
        (r" +(?=[,.!?;:，。！？；：、])", ""),
        (r"(?<=[，。！？；：、]) +", ""),
        (r"([,;:，；：、])(?:[,;:，；：、])+", r"\1"),
        (r"^[^\w$€£+@&-]+|(?<=\s)'(?=\w)|(?<=\w[.,!?])'(?=\s|$)", ""),
        (r"[,;:、，；：\s-]+$", ""),
        (r"\bi(?=\b(?!\.))", "I"),
    )
)
_ASKED = re.compile(
    r"(?:what|who|whom|whose|which|when|where|why|how|is|are|am|was|were|do|does|did|"
    r"can|could|will|would|shall|should|may|have|has|had)\b",
    re.IGNORECASE,
)
_ASKED_CHINESE = re.compile("[吗呢么]$|什么|怎么|谁|哪|几点|多少|为什么|是不是|有没有")
_ENDS = tuple(".!?。！？")


def write(text: str) -> str:
    """The text in written style, "" where it holds what no voice says.

    | what                                | becomes                                    |
    | quotation and title marks           | nothing                                    |
    | dashes between words, dots          | a comma, a full stop                       |
    | a Latin letter at the head, i alone | a capital                                  |
    | no mark at the end                  | ".", "?" after question words; "。", "？"  |
    | brackets, URLs, other scripts, code | the whole text is refused                  |

    write(write(x)) == write(x) for every text.
    """
    text = text.translate(_REPLACED)
    if not _READABLE.fullmatch(text):
        return ""
    for _ in range(8):
        passed = _mend(text)
        if passed == text:
            break
        text = passed
    if not re.search(r"\w", text):
        return ""
    text = text[0].upper() + text[1:] if len(text[0].upper()) == 1 else text
    return text if text.endswith(_ENDS) else text + choose_end(text)


def choose_end(text: str) -> str:
    """The mark that a text without one ends with, by its words."""
    if _ANY_HAN.search(text):
        return "？" if _ASKED_CHINESE.search(text) else "。"
    return "?" if _ASKED.match(text) else "."


def _mend(text: str) -> str:
    for pattern, replaced in _MENDS:
        text = pattern.sub(replaced, text)
    return text.strip()
