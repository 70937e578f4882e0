"""Lists of names as others write them: encodings, columns, weights, and the fault of a
line by its number."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nim4_jax.retrieval import names
from nim4_jax.retrieval.names import Name

BOTH = [Name("NIO House", weight=2.0), Name("张三")]


def read(tmp_path, suffix, content):
    path = tmp_path / f"list{suffix}"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(names.read_names(str(path)))


@pytest.mark.parametrize(
    ("suffix", "content"),
    [
        (".csv", "text,weight\nNIO House,2.0\n张三,\n"),
        (".csv", "Weight;Text\r\n2;NIO House\r\n;张三\r\n"),
        (".csv", '"NIO House",2\n张三\n'),
        (".csv", "hotword,boost,,\nNIO House,2,,\n张三,,,\n"),
        (".CSV", "\ufefftext\tweight\nNIO House\t2\n张三\n"),
        (".tsv", "text\tpronunciation\tweight\nNIO House\t\t2.0\n张三\n"),
        (".tsv", "NIO House\t2\n张三\n"),
        (".txt", "NIO House :2.0\n张三\n"),
        (".jsonl", '{"text": "NIO House", "weight": 2}\n{"text": "张三", "tag": null}'),
        (".txt", "NIO House :2\n张三\n".encode("utf-16")),
        (".txt", "NIO\u200b Ho\u00aduse :2\n\u2060张\u200b三\ufeff\n"),
    ],
)
def test_lists_of_others_are_read(tmp_path, suffix, content):
    assert read(tmp_path, suffix, content) == BOTH


def test_a_comma_in_quotes_is_part_of_a_name(tmp_path):
    assert read(tmp_path, ".csv", '"Smith, John",2\n') == [
        Name("Smith, John", weight=2.0)
    ]


def test_what_only_looks_like_a_header_is_a_name(tmp_path):
    assert [n.text for n in read(tmp_path, ".txt", "text\nRatio 3:2\n9 :x\n")] == [
        "text",
        "Ratio 3:2",
        "9 :x",
    ]
    assert [n.text for n in read(tmp_path, ".tsv", "Name\nWord\n")] == ["Name", "Word"]


@pytest.mark.parametrize(
    ("suffix", "content", "message"),
    [
        (".jsonl", '{"text": "x", "weight": "2"}', "1: weight '2'.* is a string"),
        (".jsonl", '{"text": "x", "weight": true}', "1: weight True.* a boolean"),
        (".jsonl", '{"text": "x", "tag": ["a"]}', "1: tag .* is a list"),
        (".jsonl", '{"text": "x", "weight": 1e999}', "1: weight inf"),
        (".csv", "text,weigth,tag\nx,1,a\n", "1: a header .*weigth"),
        (".csv", "text,text,tag\nx,1,a\n", "1: a header "),
        (".csv", 'x\n"y\n', "2: unexpected end of data"),
        (".csv", "x\ny,1,2,3,4,5\n", "2: 6 columns"),
        (".txt", b"NIO\n" + "张三".encode("gbk"), "2: not UTF-8.*'张三'"),
        (".txt", "caf\u00e9".encode("latin-1"), "1: not UTF-8"),
    ],
)
def test_a_line_that_does_not_fit_is_named(tmp_path, suffix, content, message):
    with pytest.raises(ValueError, match=rf"list\{suffix}:{message}"):
        read(tmp_path, suffix, content)


@given(st.text(st.characters(), max_size=20))
def test_clean_names_are_stable_and_can_be_written(text):
    cleaned = names.clean(text)
    cleaned.encode()
    assert names.clean(cleaned) == cleaned and "\n" not in cleaned


PIECES = st.sampled_from(
    ["text", "weight", ",", ";", "\t", '"', "\n", " :2", "2", "N IY", "\u200b", "张三",
     "\r", "\ufeff", '{"text": ', "}", "null", "NaN", "[[", "\\ud83d", "\x00", ":"]
)  # fmt: skip
LISTS = st.one_of(
    st.binary(max_size=40),
    st.lists(PIECES, max_size=14).map(lambda pieces: "".join(pieces).encode()),
    st.dictionaries(
        st.sampled_from(["text", "weight", "tag", "tenant", "pronunciation"]),
        st.one_of(st.none(), st.integers(), st.floats(), st.text(max_size=4)),
    ).map(lambda row: json.dumps(row).encode()),
)


@settings(max_examples=400, deadline=None)
@given(LISTS, st.sampled_from([".txt", ".tsv", ".csv", ".jsonl"]))
def test_any_list_is_read_or_its_line_named(tmp_path_factory, content, suffix):
    path = tmp_path_factory.getbasetemp() / f"fuzz{suffix}"
    path.write_bytes(content)
    try:
        listed = list(names.read_names(str(path)))
    except ValueError as error:
        assert str(error).startswith(f"{path}:")
        return
    for name in listed:
        assert name.text == names.clean(name.text) and 0 < name.weight < float("inf")
        f"{name.text}{name.tag}{name.tenant}".encode()
