"""Live transcription, from a source to stdout."""

import io
import itertools
import json
import os
import signal
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from absl import app

from nim4_jax.data.audio import reading
from nim4_jax.data.sources import opening
from nim4_jax.decode.live import display
from nim4_jax.decode.live.listener import Listener
from nim4_jax.decode.live.stream_config import StreamConfig
from nim4_jax.launch import transcribe
from nim4_jax.retrieval.hotwords import HotwordRetriever
from nim4_jax.serving import live_transcription, recognisers

RATE = 16_000
CONFIG = StreamConfig(chunk=4, left=4, chunks=40, text_tokens=64, suffix_tokens=40)


@pytest.fixture(scope="module")
def listener(model_files) -> Listener:
    loaded = recognisers.load(
        model_files[0], chunk_ms=CONFIG.chunk_ms, left=CONFIG.left
    )
    return Listener(loaded.recogniser, config=CONFIG)


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    """Two short commands with pauses around them, int16."""
    records = opening.open_source("bundled:commands:test")
    decoded = (reading.decode(records[i]["audio"]) for i in range(30))
    short = [samples for samples in decoded if len(samples) < 2.2 * RATE][:2]
    quiet = np.zeros(round(0.8 * RATE), np.float32)
    parts = [quiet, *itertools.chain(*((samples, quiet) for samples in short))]
    return reading.to_int16(np.concatenate(parts))


@pytest.fixture(scope="module")
def recording(speech, tmp_path_factory) -> str:
    path = str(tmp_path_factory.mktemp("live") / "speech.wav")
    soundfile.write(path, speech, RATE)
    return path


@pytest.fixture
def run_program(monkeypatch, listener, tmp_path):
    """`transcribe --stream`: (recordings, stdin's bytes or file, **flags) → code."""
    made = []

    def load(model, chunk_ms, left, detector, hotwords, warn):
        made.append((model, chunk_ms, left, detector, hotwords))
        return listener

    monkeypatch.setattr(live_transcription, "load_listener", load)

    def run(recordings, stdin=b"", **flags) -> int:
        values = {
            "model": "M",
            "bundle": None,
            "stream": True,
            "format": "text",
            "out": None,
        }
        values |= {"chunk_ms": 0, "left": 4, "pace": "fast", "packet_ms": 100}
        values |= {"detector": "silero", "hotwords": "", "rate": RATE, "channels": 1}
        values |= {"near": "lattice"}
        values |= flags
        fake = SimpleNamespace(FLAGS=SimpleNamespace(**values))
        monkeypatch.setattr(transcribe, "flags", fake)
        if isinstance(stdin, bytes):
            (tmp_path / "stdin").write_bytes(stdin)
            stdin = (tmp_path / "stdin").open("rb")
        with stdin:
            monkeypatch.setattr(sys, "stdin", stdin)
            try:
                transcribe.main(["transcribe", *recordings])
            except SystemExit as left:
                return left.code
            return 0

    run.made = made
    return run


@pytest.fixture
def told(run_program, recording, capsys) -> list[dict]:
    """JSON events of the recording."""
    assert run_program([recording], format="json") == 0
    return read_lines(capsys)


def read_lines(capsys) -> list[dict]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


# --- the whole


@pytest.mark.parametrize("packet_ms", [7, 1000])
def test_no_size_of_packets_changes_stdout(
    run_program, recording, speech, told, capsys, packet_ms
):
    options = {"format": "json", "packet_ms": packet_ms}
    assert run_program([recording], **options) == 0
    assert read_lines(capsys) == told
    assert run_program(["-"], speech.tobytes(), **options) == 0
    assert read_lines(capsys) == told


def test_every_event_is_a_json_object(told):
    assert {event["event"] for event in told} == {
        "speech started",
        "partial",
        "speech stopped",
        "final",
    }
    finals = [event for event in told if event["event"] == "final"]
    assert [final["utterance"] for final in finals] == [0, 1]
    (word, *_) = finals[0]["words"]
    assert set(word) == {"text", "start", "end", "confidence"}
    times = [event[key] for event in told for key in ("heard", "end") if key in event]
    assert all(time == round(time, 3) for time in times)


def test_lines_are_the_finals_without_escapes(run_program, recording, told, capsys):
    assert run_program([recording]) == 0
    printed = capsys.readouterr()
    texts = [event["text"] for event in told if event["event"] == "final"]
    assert printed.out.splitlines() == [display.clean(text) for text in texts]
    assert "\x1b" not in printed.out + printed.err and "\r" not in printed.out
    assert printed.err == ""


def test_stdin_may_have_another_rate_and_more_channels(
    run_program, speech, told, capsys
):
    fast = reading.resample(reading.to_float32(speech), RATE, 44_100)
    stereo = reading.to_int16(np.stack([1.5 * fast, 0.5 * fast], axis=1))
    options = {"rate": 44_100, "channels": 2, "format": "json"}
    assert run_program(["-"], stereo.tobytes(), **options) == 0
    heard = read_lines(capsys)
    finals = [
        [event for event in events if event["event"] == "final"]
        for events in (told, heard)
    ]
    for one, other in zip(*finals, strict=True):
        assert other["start"] == pytest.approx(one["start"], abs=0.1)
        assert other["end"] == pytest.approx(one["end"], abs=0.1)
    assert run_program(["-"], stereo.tobytes(), **options, packet_ms=13) == 0
    assert read_lines(capsys) == heard


def test_an_odd_byte_is_dropped_with_a_warning(run_program, speech, told, capsys):
    assert run_program(["-"], speech.tobytes() + b"\x01", format="json") == 0
    printed = capsys.readouterr()
    assert [json.loads(line) for line in printed.out.splitlines()] == told
    assert "1 of 2 bytes" in printed.err


@pytest.mark.parametrize(("seconds", "shown"), [(0, "0"), (1.25, "1.2"), (3, "3")])
def test_no_speech_is_a_note_on_stderr(run_program, capsys, seconds, shown):
    assert run_program(["-"], bytes(2 * round(seconds * RATE))) == 0
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", f"no speech in {shown} s\n")


def test_ctrl_c_ends_the_stream_and_what_was_said_is_printed(
    run_program, speech, told, capsys, monkeypatch
):
    """The pipe stays open: nothing but the interrupt can end the stream."""
    begun = threading.Event()
    make_show = display.make_show

    def make_watched_show(form, out):
        show = make_show(form, out)

        def watch(event):
            show(event)
            if not begun.is_set():
                begun.set()
                signal.raise_signal(signal.SIGINT)

        return watch

    monkeypatch.setattr(display, "make_show", make_watched_show)
    reading, writing = os.pipe()
    # As much as ends within the first command: it fits in the pipe.
    os.write(writing, speech[: round(1.3 * RATE)].tobytes())
    before = signal.getsignal(signal.SIGINT)
    assert run_program(["-"], os.fdopen(reading, "rb"), format="json") == 0
    os.close(writing)
    assert signal.getsignal(signal.SIGINT) is before
    events = read_lines(capsys)
    assert events[0] == told[0] and begun.is_set()
    assert [event["reason"] for event in events if event["event"] == "final"] == [
        "stream ended"
    ]


def test_a_bad_packet_is_left_out_and_the_stream_goes_on(listener, speech):
    shown, warned = [], []
    good = reading.to_float32(speech)
    packets = [good[:9_000], np.full(50, np.nan, np.float32), good[9_000:]]
    outcome = live_transcription.run_stream(
        listener, packets, shown.append, warn=warned.append
    )
    expected = []
    live_transcription.run_stream(listener, [good], expected.append)
    assert shown == expected
    assert (outcome.failed, outcome.seconds) == (False, len(good) / RATE)
    (warning,) = warned
    assert warning.startswith("warning: sample 0 of a packet of 50")


def test_what_came_before_a_break_is_transcribed(run_program, recording, capsys):
    cut = recording.replace("speech", "cut")
    with open(recording, "rb") as whole, open(cut, "wb") as part:
        part.write(whole.read()[:-9_000])
    assert run_program([cut]) == 1
    printed = capsys.readouterr()
    assert "cut.wav: truncated" in printed.err and printed.out


def test_a_stream_that_fails_leaves_its_place(listener, speech):
    def break_down(_event):
        raise RuntimeError("no more paper")

    for _ in range(2):
        with pytest.raises(RuntimeError, match="paper"):
            live_transcription.run_stream(
                listener, [reading.to_float32(speech)], break_down
            )


# --- what is refused, and what is loaded


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"format": "srt"}, "--format=srt is not for streams.*'text', 'json'"),
        ({"format": "vtt"}, "--format=vtt is not for streams"),
        ({"out": "DIR"}, "--out is not for streams"),
    ],
)
def test_what_streams_cannot_do_is_refused(run_program, recording, flags, message):
    with pytest.raises(ValueError, match=message):
        run_program([recording], **flags)


def test_one_recording_that_exists_is_wanted(run_program, recording, monkeypatch):
    with pytest.raises(app.UsageError, match=r"one recording .* got 2"):
        run_program([recording, recording])
    with pytest.raises(reading.AudioError, match="missing file"):
        run_program(["missing.wav"])
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    with pytest.raises(ValueError, match="stdin is a terminal"):
        run_program(["-"], terminal)
    assert run_program.made == []


def test_flags_reach_the_listener(run_program, recording):
    flags = {
        "chunk_ms": 320,
        "left": 2,
        "detector": "blank",
        "hotwords": "Ann, 小明，Bo,",
    }
    assert run_program([recording], **flags) == 0
    assert run_program.made == [("M", 320, 2, "blank", ("Ann", "小明", "Bo"))]
    config = StreamConfig.of(320, 2)
    assert (config.chunk, config.left, config.chunks) == (8, 2, 96)
    assert StreamConfig.of() == StreamConfig()


def test_hotwords_without_room_are_named(model_files):
    warned = []
    names = ["Ann", "extraordinarily long names " * 20]
    made = live_transcription.load_listener(
        model_files[0], 160, 4, "blank", names, warned.append
    )
    assert made.config == StreamConfig.of(160, 4)
    (warning,) = warned
    assert "1 of 2 hotwords" in warning and "Ann" not in warning
    with pytest.raises(ValueError, match="no LLM"):
        live_transcription.load_listener(
            model_files[1], 160, 4, "blank", (), warned.append
        )


def test_a_stream_that_breaks_off_is_told_and_no_success(listener):
    class Bad(HotwordRetriever):
        def scan(self, *_):
            raise OSError("a bad list")

    shown, warned = [], []
    loud = np.random.default_rng(0).normal(0, 0.1, RATE).astype(np.float32)

    def packets():
        listener._slots[0].session.retriever = Bad([])
        listener._slots[0].session.detector = Loud()
        yield loud
        yield loud

    outcome = live_transcription.run_stream(
        listener, packets(), shown.append, warn=warned.append
    )
    assert outcome.failed and shown[-1].error == "OSError: a bad list"
    assert any("broke off: OSError: a bad list" in line for line in warned)
    assert json.loads(json.dumps(display.describe(shown[-1])))["event"] == "failed"


class Loud:
    """Hears speech everywhere."""

    def score_many(self, states, windows):
        return [(state, np.ones(len(own))) for state, own in zip(states, windows)]


class FakeSound:
    """What of sounddevice is used; the microphone hears `samples` and is unplugged."""

    class PortAudioError(Exception):
        pass

    def __init__(self, samples=None):
        self.samples = samples

    def query_devices(self, kind):
        if self.samples is None:
            raise self.PortAudioError("Error querying device -1")
        return {"name": kind, "default_samplerate": float(RATE)}

    def InputStream(self, blocksize, callback, finished_callback, **options):
        assert options == {"samplerate": RATE, "channels": 1, "dtype": "int16"}
        for place in range(0, len(self.samples), blocksize):
            # PortAudio's own buffer, which it overwrites.
            heard = self.samples[place : place + blocksize, None].copy()
            callback(heard, len(heard), None, "overflow" if place == 0 else "")
            heard[:] = 0
        finished_callback()
        return io.BytesIO()  # any context


def test_the_microphone_is_heard(run_program, speech, told, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "sounddevice", FakeSound(speech))
    assert run_program(["mic"], format="json") == 0
    printed = capsys.readouterr()
    assert [json.loads(line) for line in printed.out.splitlines()] == told
    assert "microphone: overflow" in printed.err


def test_without_a_microphone_it_is_said_what_to_do(run_program, monkeypatch):
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(ValueError, match=r"pip install 'nim4-jax\[mic\]'"):
        run_program(["mic"])
    assert run_program.made == []
    monkeypatch.setitem(sys.modules, "sounddevice", FakeSound())
    with pytest.raises(ValueError, match=r"no microphone .* querying device -1"):
        run_program(["mic"])
