"""Subtitle files that players accept, with lines that people can read."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nim4_jax.decode import subtitles, timing
from nim4_jax.decode.timing import Word

TIME = re.compile(r"(\d{2,}):([0-5]\d):([0-5]\d)[,.](\d{3})")


def spread(text: str, start: float, step: float) -> tuple[Word, ...]:
    """The words of a text, one every `step` seconds."""
    spans = timing.split_words(text)
    return tuple(
        Word(word, start + place * step, start + (place + 1) * step, 0.5)
        for place, (word, _, _) in enumerate(spans)
    )


def test_srt_of_two_passages():
    passages = [
        ("Open the window, please.", spread("Open the window, please.", 0.0, 0.5)),
        ("打开空调。", spread("打开空调。", 3661.5, 0.25)),
    ]
    assert subtitles.to_srt(subtitles.make_cues(passages)) == (
        "1\n00:00:00,000 --> 00:00:02,000\nOpen the window, please.\n"
        "\n2\n01:01:01,500 --> 01:01:02,500\n打开空调。\n"
    )


def test_vtt_escapes_markup():
    cues = subtitles.make_cues([("a<b & c-->", spread("a<b & c-->", 0.0, 0.5))])
    assert subtitles.to_vtt(cues) == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.500\na&lt;b &amp; c--&gt;\n"
    )


@pytest.mark.parametrize(
    ("text", "width"), [("word " * 60, 42), ("打开窗户" * 30, 16), ("x" * 100, 42)]
)
def test_lines_are_short_and_no_text_is_lost(text, width):
    cues = subtitles.make_cues([(text, spread(text, 0.0, 0.3))])
    assert all(1 <= len(cue.lines) <= 2 for cue in cues)
    assert all(len(line) <= width for cue in cues for line in cue.lines)
    joined = "".join(line for cue in cues for line in cue.lines)
    assert joined.replace(" ", "") == text.replace(" ", "")


def test_a_pause_and_a_sentence_end_a_cue():
    words = (
        Word("Yes.", 0.0, 0.4, 1.0),
        Word("Call", 0.5, 0.9, 1.0),
        Word("home", 4.0, 4.4, 1.0),
    )
    cues = subtitles.make_cues([("Yes. Call home", words)])
    assert [cue.lines for cue in cues] == [("Yes.",), ("Call",), ("home",)]


@given(
    st.lists(
        st.tuples(
            st.text(alphabet="ab .，打开", max_size=120),
            st.floats(0.0, 0.6),
            st.floats(0.0, 2.0),
        ),
        max_size=4,
    )
)
def test_times_are_well_formed_and_do_not_overlap(parts):
    passages, start = [], 0.0
    for text, step, gap in parts:
        words = spread(text, start, step)
        passages.append((text, words))
        start = (words[-1].end if words else start) + gap
    cues = subtitles.make_cues(passages)
    for form in (subtitles.to_srt, subtitles.to_vtt):
        lines = [line for line in form(cues).splitlines() if " --> " in line]
        times = []
        for line in lines:
            for part in line.split(" --> "):
                hours, minutes, whole, thousandths = map(
                    int, TIME.fullmatch(part).groups()
                )
                times.append((hours * 3600 + minutes * 60 + whole) * 1000 + thousandths)
        assert times == sorted(times)
        assert all(end > begin for begin, end in zip(times[::2], times[1::2]))


@pytest.mark.parametrize(
    ("texts", "joined"),
    [
        (["Hello", "world"], "Hello world"),
        (["打开", "窗户"], "打开窗户"),
        (["打开。", "窗户"], "打开。窗户"),
        (["", "Hi.", "", "there"], "Hi. there"),
    ],
)
def test_join_texts(texts, joined):
    assert subtitles.join_texts(texts) == joined


@pytest.mark.parametrize(
    ("passages", "joined"),
    [
        ([(0, 2, "call george"), (3, 5, "green")], "call george green"),
        ([(0, 2, "at home"), (120, 122, "循环播放"), (125, 126, "咖啡")],
         "at home\n循环播放咖啡"),
        ([(9, 10, "a"), (11, 70, ""), (71, 72, "b")], "a\nb"),
        ([(60, 61, "alone")], "alone"),
        ([], ""),
    ],
)  # fmt: skip
def test_passages_far_apart_are_lines(passages, joined):
    assert subtitles.join_passages(passages) == joined
