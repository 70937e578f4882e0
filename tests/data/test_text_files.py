"""Text files: every line is taken, left out by its split, or counted and named."""

import gzip
import lzma

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nim4_jax.data.sources import text_files
from nim4_jax.data.sources.skips import SkipReport
from nim4_jax.text import phonemes, written

LINES = [f"a\tSentence number {number}." for number in range(900)]


def write_lines(path, lines):
    content = "\n".join(lines).encode("utf8")
    opened = {".xz": lzma.open, ".gz": gzip.open}.get(path.suffix, open)
    with opened(path, "wb") as file:
        file.write(content)
    return str(path)


def read(spec, report=None):
    (texts,) = text_files.open_texts([spec], report)
    return [texts[index] for index in range(len(texts))]


@pytest.mark.parametrize("ending", ["tsv", "tsv.gz", "tsv.xz"])
def test_the_splits_share_no_text_and_miss_none(tmp_path, ending):
    path = write_lines(tmp_path / f"lines.{ending}", LINES)
    train, dev = read(path), read(f"{path}?split=dev")
    assert sorted([*train, *dev]) == sorted(line[2:] for line in LINES)
    assert 0 < len(dev) < 20
    assert all(map(text_files.is_held_out, dev))


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=30))
def test_copies_of_a_text_are_in_its_split(text):
    """Case, marks and blanks make no other text of it."""
    held = text_files.is_held_out(text)
    assert text_files.is_held_out(f"“ {text} ”!") == held
    assert text_files.is_held_out(written.write(text) or text) == held


def test_lines_are_selected_by_tag_and_files_are_read_once(tmp_path, monkeypatch):
    lines = ["b\tHello.", "a\tGood morning.", "b\t你好。", "c\tNo."]
    path = write_lines(tmp_path / "lines.tsv", lines)
    opened = []
    unpack = text_files._unpack
    monkeypatch.setattr(
        text_files, "_unpack", lambda *given: opened.append(1) or unpack(*given)
    )
    several = text_files.open_texts(
        [f"{path}?tag=b&split=all", f"{path}?tag=a|c&split=all"]
    )
    assert [[texts[i] for i in range(len(texts))] for texts in several] == [
        ["Hello.", "你好。"],
        ["Good morning.", "No."],
    ]
    assert len(opened) == 1


def test_bad_lines_are_counted_and_named(tmp_path):
    path = tmp_path / "lines.tsv"
    lines = ["a\tFine.", "no tab", "", "a\t", "a\tsee <b>", "a\t" + "x" * 9000, "a\tOk"]
    content = "\ufeff" + "\r\n".join(lines) + "\r\n"
    path.write_bytes(content.encode("utf8") + b"a\tcaf\xe9\n" + "a\t好".encode())
    report = SkipReport()
    assert read(f"{path}?split=all", report) == ["Fine.", "Ok.", "好。"]
    assert report.counts == {
        text_files.NO_TAG: 1,
        text_files.EMPTY_LINE: 2,
        text_files.NOT_READABLE: 1,
        text_files.TOO_LONG: 1,
        text_files.NOT_UTF8: 1,
    }
    assert f"{path}:8" in report.examples(text_files.NOT_UTF8)[0]
    plain = read(f"{path}?split=all&style=plain")
    assert plain == ["Fine.", "see <b>", "Ok", "好"]


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("?tag=zz", r"by the tags \['zz'\]; the file's tags are \['a'\]"),
        ("?split=test", "split=test must be one of train, dev, all"),
        ("?lang=en", r"\['lang'\] are unknown"),
    ],
)
def test_selections_of_nothing_are_refused(tmp_path, query, message):
    path = write_lines(tmp_path / "lines.tsv", LINES[:9])
    with pytest.raises(ValueError, match=message):
        text_files.open_texts([path + query])


def test_a_missing_file_and_a_damaged_archive_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"no text file at .*none\.txt"):
        text_files.open_texts([str(tmp_path / "none.txt")])
    path = tmp_path / "lines.txt.xz"
    write_lines(path, LINES)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"lines\.txt\.xz: the archive is damaged"):
        text_files.open_texts([str(path)])


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (
            '"No, Miss; but save us," he said -- slowly',
            "No, Miss; but save us, he said, slowly.",
        ),
        ("what time is it", "What time is it?"),
        ("你有任何一日游的行程吗", "你有任何一日游的行程吗？"),
        ("第二点,我们确实要保持“中立”，", "第二点，我们确实要保持中立。"),
        ("i think i'm fine", "I think I'm fine."),
        ("Hosty used, quote,", "Hosty used, quote."),
        ("那个是不可以…", "那个是不可以。"),
        ("see https://a.b/c", ""),
        ("привет", ""),
        ("?!", ""),
    ],
)
def test_texts_are_written_in_one_style(given, expected):
    assert written.write(given) == expected


PIECES = st.sampled_from(
    [*"aI你吗 ,.;:!?-'“”，。：、…—", "i", "what", "--", "...", "5", "%", "\u3000", "é"]
)


@settings(max_examples=300, deadline=None)
@given(text=st.lists(PIECES, max_size=12).map("".join))
def test_written_texts_stay_as_they_are_and_sound_the_same(text):
    made = written.write(text)
    if made:
        assert written.write(made) == made
        letters = ["".join(filter(str.isalnum, one.casefold())) for one in (text, made)]
        assert letters[0] == letters[1]
        assert phonemes.phonemize(made) or not made
