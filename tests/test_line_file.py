"""Lines of files that others wrote: every encoding is read or named, never another
exception."""

import ast
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nim4_jax import line_file

ROOT = Path(__file__).parents[1]
FOLDERS = ("nim4_jax", "data", "eval", "launch", "serving")
TEXT = '{"text": "蔚来 ½"}\n\n{"text": "NIO"}\n'


def read(tmp_path, content: bytes):
    path = tmp_path / "list.jsonl"
    path.write_bytes(content)
    return list(line_file.read(path))


@pytest.mark.parametrize(
    "encoding", ["utf8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le", "utf-16-be"]
)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_encodings_and_line_ends_change_nothing(tmp_path, encoding, end):
    content = TEXT.replace("\n", end).encode(encoding)
    lines = [(number, line) for number, line in read(tmp_path, content) if line]
    assert lines == [(1, '{"text": "蔚来 ½"}'), (3, '{"text": "NIO"}')]


def test_marks_of_joined_files_are_left_out(tmp_path):
    content = "a\n".encode("utf-8-sig") + "b\n".encode("utf-8-sig")
    assert read(tmp_path, content) == [(1, "a"), (2, "b")]


@pytest.mark.parametrize("sign", "\u2028\u2029\u0085\u000b\u000c\u001c\u001e")
def test_only_line_ends_end_lines(tmp_path, sign):
    """`str.splitlines` cuts a text in two at these."""
    path = tmp_path / "rows.jsonl"
    rows = [{"text": f"a{sign}b"}, {"text": "c"}]
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf8")
    assert list(line_file.read_json(path)) == [
        (f"{path}:1", rows[0]),
        (f"{path}:2", rows[1]),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("好\n".encode() + "中文".encode("gbk"), r"list\.jsonl:2: not UTF-8.*'中文'"),
        (b"a\n\nb\xe9\n", r"list\.jsonl:3: not UTF-8: byte 0xe9; save"),
        ("a\nb".encode("utf-16") + b"\x00\xd8", r"list\.jsonl:2: not UTF-16"),
        (b"\xed\xa0\xbd", r"list\.jsonl:1: not UTF-8"),
    ],
)
def test_other_encodings_are_named(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        read(tmp_path, content)


@pytest.mark.parametrize("value", ["{", "[" * 100_000, "1" * 5_000, "nope", '"\x01"'])
def test_what_is_no_json_is_named(value):
    with pytest.raises(ValueError, match=r"m\.jsonl:7: not JSON"):
        line_file.parse_json(value, "m.jsonl:7")


def test_halves_of_surrogate_pairs():
    half, pair = "cut \ud83d", "\ud83d\ude00"
    assert line_file.replace_surrogates(half) == "cut \ufffd"
    assert line_file.replace_surrogates(pair) == "😀"


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60), st.sampled_from(["", "\ufeff", "a\n"]))
def test_any_bytes_are_lines_or_an_error_with_their_place(tmp_path_factory, tail, head):
    path = tmp_path_factory.getbasetemp() / "fuzz.txt"
    path.write_bytes(head.encode() + tail)
    try:
        lines = list(line_file.read(path))
    except ValueError as error:
        assert str(error).startswith(f"{path}:")
    else:
        assert [number for number, _ in lines] == [*range(1, len(lines) + 1)]
        assert not any("\n" in line or "\r" in line for _, line in lines)


def calls(tree: ast.AST) -> set[str]:
    """Names of the methods that a file calls."""
    nodes = (node.func for node in ast.walk(tree) if isinstance(node, ast.Call))
    return {node.attr for node in nodes if isinstance(node, ast.Attribute)}


def test_json_lines_have_one_reader():
    """No file of the product cuts a text at U+2028 and reads the parts as JSON."""
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*.py"):
            called = calls(ast.parse(path.read_text(encoding="utf8")))
            assert not {"splitlines", "loads"} <= called, path
