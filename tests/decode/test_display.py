"""What a terminal and a pipe are sent of a stream's events."""

import io
import re

from hypothesis import given
from hypothesis import strategies as st

from nim4_jax.decode.live import display
from nim4_jax.decode.live.events import Final, Partial, SpeechStarted, SpeechStopped
from nim4_jax.decode.timing import Word

ESCAPES = re.compile(r"\x1b\[\d*[mK]|\r")
TEXTS = st.text(
    st.one_of(
        st.sampled_from("好的打开灯、。“e\u0301\u200b\x1b\n\t\u3000Ａ"), st.characters()
    ),
    max_size=60,
)


def make_final(text: str) -> Final:
    words = (Word("hi", 0.12345, 0.5, 0.98765),)
    return Final(0, text, words, 0.3, 62.25, "full", (), -1.23456, True, 2.0)


@given(TEXTS, st.integers(0, 60), st.integers(1, 50))
def test_partials_never_fill_the_line_and_show_the_end(text, stable, columns):
    event = Partial(0, text, min(stable, len(text)), (), 1.0)
    sent = display.draw(event, columns)
    assert sent.startswith("\r\x1b[K") and "\n" not in sent
    seen = ESCAPES.sub("", sent)
    assert not any(ord(c) < 32 for c in seen)
    width = display.measure_columns(seen)
    assert width < columns
    whole = display.clean(text[: event.stable]) + display.clean(text[event.stable :])
    if seen != whole:
        assert seen == "" or (seen[0] == "…" and whole.endswith(seen[1:]))
        # Not one character more would have fitted.
        assert columns - 1 - width < 2


def test_chinese_takes_two_columns_and_the_end_is_dimmed():
    assert display.measure_columns("打开 ok") == 7
    event = Partial(0, "打开客厅灯", 2, (), 1.0)
    assert display.draw(event, 80) == "\r\x1b[K打开\x1b[2m客厅灯\x1b[0m"
    assert display.draw(event, 11) == "\r\x1b[K打开\x1b[2m客厅灯\x1b[0m"
    assert display.draw(event, 10) == "\r\x1b[K…\x1b[2m客厅灯\x1b[0m"
    assert display.draw(event, 7) == "\r\x1b[K\x1b[2m…厅灯\x1b[0m"
    settled = Partial(0, "ok", 2, (), 1.0)
    assert display.draw(settled, 80) == "\r\x1b[Kok"


def test_a_final_replaces_the_partial_and_is_whole():
    assert display.draw(make_final("打开\n灯"), 5) == ("\r\x1b[K[0.30–62.25] 打开 灯\n")
    assert display.draw(make_final(""), 80) == "\r\x1b[K"
    for event in (SpeechStarted(0, 0.1, 0.2), SpeechStopped(0, 1.0, "full", 1.0)):
        assert display.draw(event, 80) == ""


def test_a_terminal_is_drawn_on(monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr(out, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    show = display.make_show("text", out)
    for event in (Partial(0, "ok", 0, (), 1.0), make_final("okay")):
        show(event)
    expected = "\r\x1b[K\x1b[2mok\x1b[0m\r\x1b[K[0.30–62.25] okay\n"
    assert out.getvalue() == expected


def test_json_is_rounded():
    made = display.describe(make_final("hi"))
    assert made["event"] == "final" and made["log_prob"] == -1.2346
    assert made["words"] == (
        {"text": "hi", "start": 0.123, "end": 0.5, "confidence": 0.9877},
    )
