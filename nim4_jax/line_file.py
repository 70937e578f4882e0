"""Reading of text and JSON-lines files that may hold bad lines, with their numbers.

A line ends at "\\n", "\\r\\n" or "\\r" and nowhere else: U+2028, U+0085 and their like
stand in texts, and `str.splitlines` would cut a JSON value there.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any

from etils import epath

_MARKS = {
    # The marks of UTF-32 begin with those of UTF-16.
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_MARK = "\ufeff"
_HAN = re.compile("[\u4e00-\u9fff]")
_SHOWN = 40  # characters of a line in a message


def read(path: epath.PathLike) -> Iterator[tuple[int, str]]:
    """Number, from 1, and text of each line, without its end.

    The file is UTF-8, or UTF-16 or UTF-32 by its byte order mark; marks are left out,
    at the head of later lines too, where files were joined.

    Raises:
        ValueError: bytes of another encoding; names file and line.
        OSError: the file cannot be read.
    """
    with epath.Path(path).open("rb") as file:
        first = file.readline()
        if encoding := _find_encoding(first):
            lines = _decode(first + file.read(), encoding, path).split("\n")
        else:
            lines = _decode_utf8(first, file, path)
        number = 0
        for line in lines:
            for part in line.removesuffix("\r").split("\r"):
                number += 1
                yield number, part.removeprefix(_MARK)


def read_json(path: epath.PathLike) -> Iterator[tuple[str, Any]]:
    """Place ("file:line") and value of each line of JSON; empty lines are left out.

    Raises:
        ValueError: a line that is no JSON, or of another encoding; names file and line.
        OSError: the file cannot be read.
    """
    for number, line in read(path):
        if line.strip():
            place = f"{path}:{number}"
            yield place, parse_json(line, place)


def parse_json(line: str, place: str) -> Any:
    """The value of a line of JSON.

    Raises:
        ValueError: it is none; the message begins with the place.
    """
    try:
        return json.loads(line)
    # Brackets in brackets, thousands deep, are a RecursionError.
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{place}: not JSON: {error}; got {line[:_SHOWN]!r}"
        ) from error


def replace_surrogates(text: str) -> str:
    """The text with U+FFFD for each half of a surrogate pair that lost the other.

    JSON can hold such halves ("\\\\ud83d", an emoji cut in two), but no file can.
    """
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _find_encoding(head: bytes) -> str:
    """The encoding that a file's first bytes tell; "" for UTF-8."""
    for mark, encoding in _MARKS.items():
        if head.startswith(mark):
            return encoding
    # Without a mark, but each Latin letter has a zero byte beside it.
    if len(head) >= 4 and head[1] == head[3] == 0 and head[0] and head[2]:
        return "utf-16-le"
    if len(head) >= 4 and head[0] == head[2] == 0 and head[1] and head[3]:
        return "utf-16-be"
    return ""


def _decode(content: bytes, encoding: str, path: epath.PathLike) -> str:
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        before = content[: error.start].decode(encoding, "ignore")
        raise ValueError(
            f"{path}:{1 + before.count(chr(10))}: not {encoding.upper()}, as which the "
            f"file begins ({error.reason}); save it as UTF-8."
        ) from error


def _decode_utf8(first: bytes, file: Any, path: epath.PathLike) -> Iterator[str]:
    number, line = 1, first
    while line:
        try:
            yield line.removesuffix(b"\n").decode("utf8")
        except UnicodeDecodeError as error:
            raise ValueError(_describe_foreign(path, number, line, error)) from error
        number, line = number + 1, file.readline()


def _describe_foreign(
    path: epath.PathLike, number: int, line: bytes, error: UnicodeDecodeError
) -> str:
    told = f"{path}:{number}: not UTF-8: byte 0x{line[error.start]:02x}"
    try:
        guess = line.decode("gb18030").strip()
    except UnicodeDecodeError:
        guess = ""
    if _HAN.search(guess):
        return (
            f"{told}. As GB18030 (GBK) the line reads {guess[:_SHOWN]!r}: convert the "
            f"file with iconv -f GB18030 -t UTF-8, or save it as UTF-8."
        )
    return f"{told}; save the file as UTF-8."
