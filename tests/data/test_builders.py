"""The bundled data sets: complete, clean, split as promised, and read without TF."""

import io
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from nim4_jax.data.corpora import grammar, synthesis
from nim4_jax.data.sources import builders

LIMIT = 12 * 2**20  # bytes of one bundled data set


@pytest.fixture(scope="module")
def commands():
    return {split: builders.open_bundled("commands", split) for split in
            builders.SPLITS["commands"]}  # fmt: skip


@pytest.fixture(scope="module")
def records(commands):
    return {split: list(recordings) for split, recordings in commands.items()}


def decode(record) -> np.ndarray:
    """The recording, checked: 16 kHz, mono, finite, of its stated length, audible."""
    audio, rate = soundfile.read(io.BytesIO(record["audio"]), dtype="float32")
    assert rate == 16000 and audio.ndim == 1, record["id"]
    assert np.isfinite(audio).all() and np.abs(audio).max() <= 1.5, record["id"]
    assert len(audio) / rate == pytest.approx(record["duration"], abs=0.05)
    assert np.sqrt(np.mean(audio**2)) > 0.005, record["id"]
    return audio


def test_commands_have_the_promised_amount(records):
    hours = {s: sum(r["duration"] for r in rs) / 3600 for s, rs in records.items()}
    assert hours["train"] > 0.69
    assert hours["test"] > 0.1
    assert len(records["test"]) >= 150
    counts = {la: sum(r["lang"] == la for r in records["test"]) for la in
              grammar.LANGUAGES}  # fmt: skip
    assert counts["en"] >= 80 and counts["zh"] >= 58 and counts["mixed"] >= 12


def test_commands_keep_voices_and_texts_of_the_splits_apart(records):
    texts = {s: {r["text"] for r in rs} for s, rs in records.items()}
    assert not texts["train"] & texts["test"]
    assert all(map(grammar.is_held_out, texts["test"]))
    assert not any(map(grammar.is_held_out, texts["train"]))
    voices = {
        s: {v for r in rs for v in r["voice"].partition(":")[0].split("+")}
        for s, rs in records.items()
    }
    held_out = {v for bank in synthesis.TEST_VOICES.values() for v in bank}
    assert voices["test"] == held_out
    assert not voices["train"] & held_out


def test_commands_are_well_formed(records):
    for split, rows in records.items():
        assert len({r["id"] for r in rows}) == len(rows)
        for number, record in enumerate(rows):
            assert record["origin"] == f"commands:{split}[{number}]"
            assert record["lang"] in grammar.LANGUAGES
            assert all(word in record["text"] for word in record["keywords"])
            assert record["audio"][:4] == b"OggS"
            assert 0.5 < record["duration"] < 9


def test_commands_can_be_heard(records):
    for record in [*records["test"][::8], *records["train"][::60]]:
        decode(record)


def test_prompts_are_complete_and_licensed():
    recordings = builders.open_bundled("prompts", "test")
    assert len(recordings) == 40
    for record in recordings:
        decode(record)
        assert record["text"] and record["lang"] == "en"
        assert 1 <= record["duration"] <= 8
    folder = builders.BUNDLED / "prompts"
    assert "ShareAlike 3.0" in (folder / "LICENSE.txt").read_text("utf8")
    assert "Allison Smith" in (folder / "ATTRIBUTION.md").read_text("utf8")


@pytest.mark.parametrize("name", builders.SPLITS)
def test_bundles_are_small(name):
    files = [p for p in (builders.BUNDLED / name).rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) <= LIMIT


def test_random_access(commands):
    recordings = commands["test"]
    assert recordings[-1]["id"] == recordings[len(recordings) - 1]["id"]
    assert recordings[np.int64(3)]["id"] == recordings[3]["id"]
    for index in (len(recordings), -len(recordings) - 1):
        with pytest.raises(IndexError, match=f"record {index} of"):
            recordings[index]
    again = pickle.loads(pickle.dumps(recordings))
    assert again[5] == recordings[5]


def test_reading_needs_neither_tensorflow_nor_network():
    code = (
        "import socket, sys\n"
        "socket.socket.connect = None\n"
        "from nim4_jax.data.sources import builders\n"
        "record = builders.open_bundled('prompts', 'test')[0]\n"
        "print(len(record['text']) > 0, 'tensorflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["True", "False"], done.stderr


def test_unknown_names_list_the_choices():
    with pytest.raises(ValueError, match="'noise'; there are: commands, prompts"):
        builders.open_bundled("noise", "test")
    with pytest.raises(ValueError, match="no split 'train'; it has: test"):
        builders.open_bundled("prompts", "train")


def write_manifest(folder, rows):
    folder.mkdir(exist_ok=True)
    (folder / "a.ogg").write_bytes(b"OggS\x00\xff")
    for split in ("train", "test"):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(lines, "utf8")


ROW = {
    "id": "u1",
    "audio": "a.ogg",
    "text": "导航到 boston",
    "lang": "mixed",
    "voice": "v",
    "keywords": ["boston", "北京"],
    "duration": 1.5,
}


def test_built_records_are_the_manifests(tmp_path):
    rows = [{**ROW, "id": f"u{n}", "keywords": ROW["keywords"][:n]} for n in range(3)]
    write_manifest(tmp_path / "in", rows)
    for _ in range(2):  # a second build replaces the first
        folder = builders.build(builders.Commands, tmp_path / "in", tmp_path / "out")
    found = list(builders.Recordings(folder, "train"))
    for row, record in zip(rows, found, strict=True):
        record.pop("origin")
        assert record == {**row, "audio": b"OggS\x00\xff"}
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["commands"]


@pytest.mark.parametrize(
    "line, reason",
    [
        ("{", "not JSON"),
        ('{"id": "u1"}', "missing audio, duration"),
        (json.dumps({**ROW, "audio": "lost.ogg"}), "no audio file .*lost.ogg"),
    ],
)
def test_bad_manifest_lines_are_named(tmp_path, line, reason):
    write_manifest(tmp_path, [ROW])
    manifest = tmp_path / "train.jsonl"
    manifest.write_text(f"{json.dumps(ROW)}\n{line}\n", "utf8")
    with pytest.raises(ValueError, match=rf"train.jsonl:2: {reason}"):
        list(builders.read_manifest(manifest))
