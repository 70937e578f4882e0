"""Transcribing files of all kinds with a tiny random model."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from nim4_jax.data.audio import reading
from nim4_jax.data.sources import opening
from nim4_jax.decode import longform, transcripts
from nim4_jax.decode.hotwords import HotwordList
from nim4_jax.launch import transcribe
from nim4_jax.serving import recognisers, transcription
from nim4_jax.serving.transcription import Options


def make_noise(seconds: float, rate: int = 16_000, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.normal(0, 0.1, round(seconds * rate)).astype(np.float32)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Name → path of good and of bad recordings."""
    folder = tmp_path_factory.mktemp("audio")

    def write(name, samples, rate=16_000, **options):
        soundfile.write(folder / name, samples, rate, **options)

    write("short.wav", make_noise(0.5))
    write("long.flac", make_noise(5.0))
    noise = make_noise(1.0, 48_000)
    write("stereo.wav", np.stack([noise, -0.5 * noise], axis=1), 48_000)
    write("phone.wav", make_noise(0.7, 8_000), 8_000)
    write("voice.ogg", make_noise(1.0), format="OGG", subtype="OPUS")
    write("silence.wav", np.zeros(16_000, np.float32))
    write("tiny.wav", make_noise(0.01))
    write("nan.wav", np.full(8_000, np.nan, np.float32), subtype="FLOAT")
    write("nothing.wav", np.zeros(0, np.float32))
    (folder / "empty.wav").write_bytes(b"")
    (folder / "text.wav").write_text("no audio", encoding="utf8")
    (folder / "cut.wav").write_bytes((folder / "short.wav").read_bytes()[:9000])
    return folder


@pytest.fixture(scope="module")
def loaded(model_files):
    return recognisers.load(model_files[0])


@pytest.fixture(scope="module")
def done(loaded, files):
    """All recordings, transcribed together; noise is no speech, so vad is off."""
    names = sorted(path.name for path in files.iterdir())
    paths = [str(files / name) for name in [*names, "missing.wav"]]
    stream = longform.transcribe_files(
        loaded, paths, longform.Options(batch=3, vad="none")
    )
    return dict(zip([*names, "missing.wav"], stream, strict=True))


@pytest.mark.parametrize(
    ("name", "seconds"),
    [
        ("short.wav", 0.5),
        ("long.flac", 5.0),
        ("stereo.wav", 1.0),
        ("phone.wav", 0.7),
        ("voice.ogg", 1.0),
    ],
)
def test_any_format_is_transcribed(done, name, seconds):
    recording = done[name]
    assert recording.error == "" and recording.text
    assert recording.duration == pytest.approx(seconds, abs=0.02)
    words = [word for passage in recording.passages for word in passage.words]
    times = [time for word in words for time in (word.start, word.end)]
    assert times == sorted(times) and 0.0 <= times[0] <= times[-1] <= seconds + 0.02


@pytest.mark.parametrize("name", ["silence.wav", "tiny.wav"])
def test_no_speech_is_the_empty_string(done, name):
    assert (done[name].error, done[name].text) == ("", "")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nan.wav", "not finite"),
        ("nothing.wav", "zero length"),
        ("empty.wav", "zero length"),
        ("text.wav", "unreadable audio"),
        ("missing.wav", "missing file"),
    ],
)
def test_a_bad_file_is_named_with_its_reason(done, name, reason):
    assert name in done[name].error and reason in done[name].error


def test_what_came_before_a_broken_end_is_transcribed(done):
    recording = done["cut.wav"]
    assert recording.error == "" and recording.text
    assert recording.duration == pytest.approx((9000 - 44) / 32_000)
    assert "cut.wav: truncated" in recording.warning
    assert "truncated" in json.loads(transcripts.render(recording, "json"))["warning"]


def test_a_file_is_the_same_alone_and_among_others(loaded, files, done):
    # Alone too it fills the rows of a batch: the shape is compiled already.
    paths = [str(files / "long.flac")]
    (alone,) = longform.transcribe_files(
        loaded, paths, longform.Options(batch=3, vad="none")
    )
    assert alone.text == done["long.flac"].text
    assert len(alone.passages) >= 4
    starts = [passage.start for passage in alone.passages]
    ends = [passage.end for passage in alone.passages]
    assert starts == sorted(starts) and starts[1:] == pytest.approx(ends[:-1])
    assert all(end - start <= 1.6 + 1e-6 for start, end in zip(starts, ends))


def test_only_speech_of_a_long_file_is_transcribed(loaded, tmp_path):
    records = opening.open_source("bundled:commands:test")
    gap = np.random.default_rng(0).normal(0, 1e-3, 20 * 16_000).astype(np.float32)
    parts, spoken, position = [gap], [], len(gap)
    for index in (0, 60, 120):
        samples = reading.decode(records[index]["audio"])
        spoken.append((position / 16_000, (position + len(samples)) / 16_000))
        parts += [samples, gap]
        position += len(samples) + len(gap)
    path = str(tmp_path / "meeting.wav")
    soundfile.write(path, np.concatenate(parts), 16_000)
    (recording,) = longform.transcribe_files(loaded, [path], longform.Options(batch=3))
    assert recording.error == "" and recording.text
    assert recording.duration == pytest.approx(position / 16_000)
    heard = [0.0] * len(spoken)
    for passage in recording.passages:
        assert passage.end - passage.start <= loaded.bucket_seconds[-1] + 1e-6
        (number,) = [
            number
            for number, (start, end) in enumerate(spoken)
            if start - 0.5 < passage.start < passage.end < end + 1.0
        ]
        heard[number] += passage.end - passage.start
        times = [time for word in passage.words for time in (word.start, word.end)]
        assert times == sorted(times)
        assert all(passage.start - 1e-6 <= time <= passage.end + 1e-6 for time in times)
    for seconds, (start, end) in zip(heard, spoken):
        assert seconds > 0.8 * (end - start)


def test_a_long_file_without_speech_is_the_empty_string(loaded, files):
    paths = [str(files / "long.flac")]
    (recording,) = longform.transcribe_files(loaded, paths, longform.Options(batch=3))
    assert (recording.error, recording.text, recording.passages) == ("", "", [])
    assert recording.duration == 5.0
    assert json.loads(transcripts.render(recording, "json"))["segments"] == []


def test_a_short_file_is_heard_whole_with_vad_or_without(loaded, files, done):
    paths = [str(files / name) for name in ("short.wav", "stereo.wav", "silence.wav")]
    heard = longform.transcribe_files(loaded, paths, longform.Options(batch=3))
    for name, recording in zip(("short.wav", "stereo.wav", "silence.wav"), heard):
        assert recording.text == done[name].text
        assert len(recording.passages) == 1


def test_json_holds_words_and_segments(done):
    made = json.loads(transcripts.render(done["long.flac"], "json"))
    assert made["text"] == done["long.flac"].text
    assert made["duration"] == 5.0
    (word, *_) = made["segments"][1]["words"]
    assert set(word) == {"text", "start", "end", "confidence"}
    assert made["segments"][1]["start"] <= word["start"] <= word["end"]


@pytest.mark.parametrize("form", ["srt", "vtt"])
def test_subtitles_of_silence_are_valid(done, form):
    made = transcripts.render(done["silence.wav"], form)
    assert made == ("" if form == "srt" else "WEBVTT\n")


@pytest.fixture
def run_program(monkeypatch, model_files):
    """`transcribe` with paths and flags: (paths, **flags) → exit code."""

    def run(paths, **given) -> int:
        defaults = {"format": "text", "out": None, "batch": 3, "left": 4}
        defaults |= {"vad": "silero", "stream": False, "channels": "mix"}
        defaults |= {"chunk_ms": 0, "hotwords": "", "near": "lattice"}
        values = {"model": model_files[0], "bundle": None, **defaults, **given}
        # The process's own flags belong to the test runner and to other commands.
        given = SimpleNamespace(FLAGS=SimpleNamespace(**values))
        monkeypatch.setattr(transcribe, "flags", given)
        try:
            transcribe.main(["transcribe", *paths])
        except SystemExit as left:
            return left.code
        return 0

    return run


def test_the_program_goes_on_after_a_bad_file(run_program, files, capsys):
    names = ("text.wav", "cut.wav", "short.wav", "phone.wav")
    paths = [str(files / name) for name in names]
    assert run_program(paths) == 1
    printed = capsys.readouterr()
    assert "error: " in printed.err and "text.wav: unreadable" in printed.err
    assert "warning: " in printed.err and "cut.wav: truncated" in printed.err
    assert [line.split(": ")[0] for line in printed.out.splitlines()] == paths[1:]
    assert run_program(paths[1:2]) == 1  # a part is not all
    assert capsys.readouterr().out


def test_each_channel_is_transcribed_alone(run_program, files, tmp_path, capsys):
    path, out = str(files / "stereo.wav"), tmp_path / "channels"
    assert run_program([path], channels="each") == 0
    labels = [line.split(": ")[0] for line in capsys.readouterr().out.splitlines()]
    assert labels == [f"{path} (channel 1)", f"{path} (channel 2)"]
    assert run_program([path], channels="each", format="json", out=str(out)) == 0
    made = [json.loads((out / f"stereo.{n}.json").read_text()) for n in (1, 2)]
    assert [it["channel"] for it in made] == [1, 2]
    assert run_program([str(files / "phone.wav")], channels="right") == 1
    assert "1 channel, and no channel 'right'" in capsys.readouterr().err
    with pytest.raises(ValueError, match="mix, left, right, each"):
        run_program([path], channels="middle")


def test_files_are_written_beside_each_other(run_program, files, tmp_path, capsys):
    paths = [str(files / name) for name in ("short.wav", "stereo.wav", "phone.wav")]
    out = tmp_path / "made"
    assert run_program(paths, out=str(out), format="srt") == 0
    assert {path.name for path in out.iterdir()} == {
        "short.srt",
        "stereo.srt",
        "phone.srt",
    }
    assert (out / "short.srt").read_text().startswith("1\n00:00:00,")
    assert capsys.readouterr().out == ""


def test_a_transcript_that_cannot_be_written_costs_no_other(
    run_program, files, tmp_path, capsys
):
    out = tmp_path / "made"
    (out / "short.txt").mkdir(parents=True)
    paths = [str(files / name) for name in ("short.wav", "phone.wav")]
    assert run_program(paths, out=str(out)) == 1
    assert "short.wav: no transcript is written" in capsys.readouterr().err
    assert (out / "phone.txt").read_text(encoding="utf8").strip()


def test_passages_far_apart_are_lines_that_name_their_file(capsys):
    passages = [
        transcripts.Passage(start, start + 1.0, text, 0.0, ())
        for start, text in ((0.0, "call"), (1.5, "home"), (90.0, "播放"))
    ]
    recording = transcripts.Recording("long.wav", passages)
    assert (
        json.loads(transcripts.render(recording, "json"))["text"] == "call home\n播放"
    )
    for named, lead in ((True, "long.wav: "), (False, "")):
        transcription._deliver(recording, "text", None, named=named)
        assert capsys.readouterr().out == f"{lead}call home\n{lead}播放\n"


def test_outputs_that_collide_are_refused():
    with pytest.raises(ValueError, match=r"a/x\.wav and b/x\.flac"):
        transcription.plan_outputs(["a/x.wav", "b/x.flac"], "text", "out")
    with pytest.raises(ValueError, match="--out=DIR"):
        transcription.plan_outputs(["a.wav", "b.wav"], "vtt", None)


def test_a_model_without_llm_or_an_unknown_choice_is_refused(model_files, files):
    path = [str(files / "short.wav")]
    with pytest.raises(ValueError, match="no LLM: train stages 2 and 4"):
        transcription.run(model_files[1], path)
    with pytest.raises(ValueError, match="'text', 'json', 'srt', 'vtt'"):
        transcription.run(model_files[0], path, Options(form="xml"))
    with pytest.raises(ValueError, match="'silero', 'none'"):
        transcription.run(model_files[0], path, Options(vad="webrtc"))


@pytest.mark.parametrize("near", ["lattice", "scann"])
def test_a_list_of_names_is_looked_for_where_it_is_asked_for(
    run_program, files, tmp_path, monkeypatch, capsys, near
):
    listed, given = tmp_path / "names.txt", []
    listed.write_text("Wolfgang Mozart\nRotterdam\n", encoding="utf8")

    def find(self, log_probs, tokenizer, frame_seconds):
        given.append([layer.near for layer in self.retriever._layers])
        return ("Rotterdam",)

    monkeypatch.setattr(HotwordList, "find", find)
    path = str(files / "short.wav")
    assert run_program([path], hotwords=f"list:{listed}", near=near) == 0
    assert given and all(ways == [near] for ways in given)
    hinted = capsys.readouterr().out
    assert run_program([path]) == 0
    assert hinted != capsys.readouterr().out  # the prompt is another one
    with pytest.raises(ValueError, match="nowhere"):
        run_program([path], hotwords="list:nowhere.txt")
