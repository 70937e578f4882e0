"""Shards of a corpus: what is listed, what is left to do, and what is stored."""

import dataclasses
import json

import numpy as np
import pytest
import soundfile
from pyarrow import parquet

from nim4_jax.decode import longform
from nim4_jax.serving import corpus, recognisers
from nim4_jax.serving.corpus import CorpusConfig, Shard


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """Five files, one of which is no audio."""
    folder = tmp_path_factory.mktemp("recordings")
    random = np.random.default_rng(0)
    for number, seconds in enumerate((0.5, 1.4, 3.1, 0.7)):
        samples = random.normal(0, 0.1, round(seconds * 16_000)).astype(np.float32)
        (folder / f"{number}").mkdir()
        soundfile.write(folder / f"{number}" / "a.wav", samples, 16_000)
    (folder / "4.flac").write_text("no audio", encoding="utf8")
    (folder / "notes.md").write_text("no recording", encoding="utf8")
    return folder


@pytest.fixture(scope="module")
def config(model_files):
    return CorpusConfig(model_files[0], batch=2, vad="none", shard_files=2)


@pytest.fixture(scope="module")
def worker(config, tmp_path_factory):
    return corpus.Worker(str(tmp_path_factory.mktemp("parts")), config)


def test_all_listings_of_the_same_files_are_alike(recordings):
    found = corpus.list_files(str(recordings))
    assert [path.removeprefix(f"{recordings}/") for path in found] == [
        *(f"{number}/a.wav" for number in range(4)),
        "4.flac",
    ]
    names = [path.removeprefix(f"{recordings}/") for path in found]
    (recordings / "all.txt").write_text("\n\n".join(names), encoding="utf8")
    lines = [json.dumps({"audio": name, "text": ""}) for name in names]
    (recordings / "all.jsonl").write_text("\n".join(lines), encoding="utf8")
    corpus._write_parquet(
        [{"audio": name} for name in names], recordings / "all.parquet"
    )
    for form in ("txt", "jsonl", "parquet"):
        assert corpus.list_files(str(recordings / f"all.{form}")) == found


def test_a_listing_of_no_use_is_told(tmp_path):
    (tmp_path / "empty.txt").write_text("\n", encoding="utf8")
    (tmp_path / "songs.xml").write_text("", encoding="utf8")
    corpus._write_parquet([{"path": "a.wav"}], tmp_path / "other.parquet")
    for name, reason in (
        ("", "no recording"),
        ("empty.txt", "no recording"),
        ("absent.txt", "no file and no folder"),
        ("songs.xml", "no listing"),
        ("other.parquet", "'path'.*\"audio\""),
        ("absent.jsonl", "no manifest"),
    ):
        with pytest.raises(ValueError, match=reason):
            corpus.list_files(str(tmp_path / name))


def test_shards_hold_every_file_once_and_done_ones_are_left_out(tmp_path, config):
    paths = [f"{number}.wav" for number in range(5)]
    shards = corpus.plan(paths, str(tmp_path), config)
    assert [path for shard in shards for path in shard.paths] == paths
    assert [len(shard.paths) for shard in shards] == [2, 2, 1]
    # What a killed worker leaves is no shard.
    (tmp_path / "part-00000.jsonl.17.tmp").write_text("{", encoding="utf8")
    corpus.name_part(str(tmp_path), 1, "jsonl").write_text("", encoding="utf8")
    assert corpus.plan(paths, str(tmp_path), config) == [shards[0], shards[2]]
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"vad": "silero"}, "vad was 'none' and is 'silero'"),
        ({"shard_files": 3}, "shard_files was 2 and is 3"),
        ({"model": "other"}, "model was"),
    ],
)
def test_shards_of_different_runs_are_not_mixed(tmp_path, config, changed, told):
    corpus.plan(["a.wav"], str(tmp_path), config)
    with pytest.raises(ValueError, match=told):
        corpus.plan(["a.wav"], str(tmp_path), dataclasses.replace(config, **changed))
    with pytest.raises(ValueError, match="sha256 was"):
        corpus.plan(["b.wav"], str(tmp_path), config)


def test_a_choice_that_is_none_is_refused():
    with pytest.raises(ValueError, match=r"'xml'.*'jsonl', 'parquet'"):
        CorpusConfig("model", form="xml")
    with pytest.raises(ValueError, match="0 files a shard"):
        CorpusConfig("model", shard_files=0)


def test_a_shard_has_a_row_a_file_with_its_error(worker, recordings):
    paths = tuple(corpus.list_files(str(recordings))[-2:])
    done = worker.transcribe(Shard(7, paths))
    assert (done["files"], done["errors"]) == (2, 1)
    part = corpus.name_part(worker._out, 7, "jsonl")
    good, bad = map(json.loads, part.read_text(encoding="utf8").splitlines())
    assert [good["file"], bad["file"]] == list(paths)
    assert good["text"] and good["error"] == ""
    assert bad["text"] == "" and "4.flac: unreadable audio" in bad["error"]
    assert not list(part.parent.glob("*.tmp"))


@pytest.mark.parametrize("form", corpus.FORMATS)
def test_the_name_of_a_file_may_be_of_any_bytes(worker, monkeypatch, form):
    """One such name must not cost a shard."""
    config = dataclasses.replace(worker._config, form=form)
    monkeypatch.setattr(worker, "_config", config)
    assert worker.transcribe(Shard(8, ("caf\udce9.wav",)))["errors"] == 1
    part = corpus.name_part(worker._out, 8, form)
    if form == "jsonl":
        assert json.loads(part.read_text(encoding="utf8"))["file"] == "caf\udce9.wav"
    else:
        (row,) = parquet.read_table(part).to_pylist()
        assert row["file"] == r"caf\udce9.wav"


def test_a_list_from_windows(tmp_path):
    content = "\ufeffen06.wav\r\n循环\u2028.wav\r\n".encode()
    (tmp_path / "l.txt").write_bytes(content)
    found = corpus.list_files(str(tmp_path / "l.txt"))
    assert found == [str(tmp_path / name) for name in ("en06.wav", "循环\u2028.wav")]


def test_rows_are_the_same_in_parquet(worker, recordings, monkeypatch):
    config = dataclasses.replace(worker._config, segments=True)
    shard = Shard(0, tuple(corpus.list_files(str(recordings))))
    rows = {}
    for form in corpus.FORMATS:
        monkeypatch.setattr(worker, "_config", dataclasses.replace(config, form=form))
        worker.transcribe(shard)
    part = corpus.name_part(worker._out, 0, "jsonl").read_text(encoding="utf8")
    rows = list(map(json.loads, part.splitlines()))
    table = parquet.read_table(corpus.name_part(worker._out, 0, "parquet")).to_pylist()
    for row in table:
        row["segments"] = json.loads(row["segments"])
    assert table == rows and len(rows[2]["segments"]) > 1


def test_a_shard_that_cannot_be_written_leaves_nothing(worker, recordings, monkeypatch):
    def fail(source, target):
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr(corpus.os, "replace", fail)
    paths = tuple(corpus.list_files(str(recordings))[:1])
    with pytest.raises(OSError, match="No space left"):
        worker.transcribe(Shard(9, paths))
    assert not list(corpus.Path(worker._out).glob("part-00009*"))


def test_texts_are_those_of_transcribe(worker, recordings, model_files):
    paths = corpus.list_files(str(recordings))
    for shard in corpus.plan(paths, worker._out, worker._config):
        worker.transcribe(shard)
    texts = {}
    for part in corpus.Path(worker._out).glob("part-*.jsonl"):
        rows = map(json.loads, part.read_text(encoding="utf8").splitlines())
        texts |= {row["file"]: row["text"] for row in rows}
    loaded = recognisers.load(model_files[0])
    for path in paths:
        (alone,) = longform.transcribe_files(
            loaded, [path], longform.Options(batch=2, vad="none")
        )
        assert texts[path] == ("" if alone.error else alone.text)


def test_a_manifest_of_segments_is_refused(tmp_path):
    """Each whole recording would be transcribed once for every segment."""
    row = {"audio": "a.wav", "text": "", "offset": 1.0, "duration": 2.0}
    (tmp_path / "m.jsonl").write_text(json.dumps(row))
    with pytest.raises(ValueError, match=r"m\.jsonl:1: it names a segment of .*a\.wav"):
        corpus.list_files(str(tmp_path / "m.jsonl"))
