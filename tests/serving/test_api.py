"""`nim4_jax.load`: what Python users call."""

import subprocess
import sys

import numpy as np
import pytest
import soundfile

import nim4_jax
from nim4_jax.decode.hotwords import HotwordList
from nim4_jax.serving import api, recognisers, transcription
from nim4_jax.weights import snapshot


@pytest.fixture(scope="module")
def recogniser(model_files):
    return nim4_jax.load(model_files[0])


@pytest.fixture(scope="module")
def noise():
    random = np.random.default_rng(0)
    return random.normal(0, 0.1, 24_000).astype(np.float32)


def test_a_file_its_bytes_and_its_samples_are_the_same(recogniser, noise, tmp_path):
    """However a recording is given, and as `nim4 transcribe` writes it."""
    path = tmp_path / "noise.flac"
    soundfile.write(path, noise, 16_000)
    samples, _ = soundfile.read(path, dtype="float32")
    forms = (path, str(path), path.read_bytes(), samples)
    made = [recogniser.transcribe(form, vad="none") for form in forms]
    assert len({recording.text for recording in made}) == 1
    assert all(one.passages == made[0].passages for one in made)
    assert {round(recording.duration, 3) for recording in made} == {1.5}
    (listed,) = recogniser.transcribe_files([path], vad="none")
    assert listed.passages == made[0].passages


def test_samples_of_another_rate_are_resampled(recogniser, noise):
    """A second stays a second."""
    made = recogniser.transcribe(np.repeat(noise, 3), sample_rate=48_000, vad="none")
    assert made.duration == pytest.approx(1.5, abs=0.01)


def test_what_cannot_be_read_is_an_audio_error(recogniser, tmp_path):
    """Named, with its reason; of several files the others go on."""
    with pytest.raises(nim4_jax.AudioError, match=r"gone\.wav: missing file"):
        recogniser.transcribe(tmp_path / "gone.wav")
    with pytest.raises(nim4_jax.AudioError, match="bytes: "):
        recogniser.transcribe(b"no audio")
    with pytest.raises(nim4_jax.AudioError, match="zero length"):
        recogniser.transcribe(np.zeros(0, np.float32))
    good = tmp_path / "good.wav"
    soundfile.write(good, np.zeros(8_000), 16_000)
    bad, made = recogniser.transcribe_files([tmp_path / "gone.wav", good])
    assert "missing file" in bad.error and not made.error


def test_names_reach_the_prompt(recogniser, noise, tmp_path, monkeypatch):
    """Hints always, hotwords where they are heard; too many are refused."""
    seen = []
    inner = recogniser._loaded.recogniser
    transcribe = type(inner).transcribe

    def record(self, audio, *, hints=None, timings=True):
        seen.append(hints)
        return transcribe(self, audio, hints=hints, timings=timings)

    monkeypatch.setattr(type(inner), "transcribe", record)
    recogniser.transcribe(noise, hints=["  Anna Smith "], vad="none")
    assert set(seen.pop()) == {("Anna Smith",)}
    monkeypatch.setattr(HotwordList, "find", lambda *given: ("Oslo",))
    listed = tmp_path / "names.txt"
    listed.write_text("Oslo\n", encoding="utf8")
    for hotwords in (listed, HotwordList.open(str(listed))):
        recogniser.transcribe(noise, hints=["Bern"], hotwords=hotwords, vad="none")
        assert seen.pop()[0] == ("Bern", "Oslo")
    with pytest.raises(ValueError, match="one string"):
        recogniser.transcribe(noise, hints="Anna")
    with pytest.raises(ValueError, match=r"room for \d+ of 500 hints"):
        recogniser.transcribe(noise, hints=[f"name number {i}" for i in range(500)])


def test_streams_say_what_a_listener_says(recogniser, noise):
    """Events by their public names, from packets of any size."""
    listener = recogniser.listen(streams=2)
    stream = listener.open(hints=["Anna"])
    for packet in np.array_split(noise, 7):
        stream.feed(packet)
    stream.close()
    events = [event for _, event in listener.drain()]
    known = (
        nim4_jax.SpeechStarted,
        nim4_jax.Partial,
        nim4_jax.SpeechStopped,
        nim4_jax.Final,
    )
    assert all(isinstance(event, known) for event in events)
    assert isinstance(listener, nim4_jax.Listener) and listener.streams == 2


def test_a_model_that_only_hears_is_refused(model_files):
    """With what to train."""
    with pytest.raises(ValueError, match="train stages 2 and 4"):
        nim4_jax.load(model_files[1])


def test_what_only_hears_needs_no_tokenizer(model_files, tmp_path):
    """A stage-1 model is evaluated anywhere; one that writes names what it lacks."""
    for origin, fails in zip(model_files, (True, False)):
        params, meta = snapshot.read(origin)
        path = str(tmp_path / "moved.safetensors")
        snapshot.write(path, params, {**meta, "tokenizer": "gone/tokenizer.json"}, "")
        if fails:
            with pytest.raises((OSError, ValueError), match=r"gone/tokenizer\.json"):
                recognisers.load(path)
        else:
            assert not recognisers.load(path).recogniser.writes


def test_the_command_writes_the_same(recogniser, model_files, noise, tmp_path, capsys):
    """`nim4 transcribe` and `transcribe` are one thing."""
    path = tmp_path / "noise.wav"
    soundfile.write(path, noise, 16_000, subtype="FLOAT")
    options = transcription.Options(vad="none")
    transcription.run(model_files[0], [str(path)], options)
    said = capsys.readouterr().out
    assert recogniser.transcribe(path, vad="none").text == said.rstrip("\n")


def test_all_public_names_are_there():
    """A dozen, each found; importing the package imports neither JAX nor them."""
    assert len(nim4_jax.__all__) <= 13
    assert all(getattr(nim4_jax, name) for name in nim4_jax.__all__)
    assert nim4_jax.load is api.load
    with pytest.raises(AttributeError, match="no attribute 'loud'"):
        _ = nim4_jax.loud
    light = "import sys, nim4_jax; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", light], check=False).returncode == 0
