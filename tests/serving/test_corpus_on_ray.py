"""A corpus on a real Ray, started here."""

import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile

from nim4_jax.decode import longform
from nim4_jax.serving import corpus, corpus_on_ray, recognisers
from nim4_jax.serving.corpus import CorpusConfig

pytest.importorskip("ray.data", reason="needs the extra ray")


@pytest.fixture
def recordings(tmp_path):
    folder = tmp_path / "recordings"
    folder.mkdir()
    random = np.random.default_rng(1)
    for number, seconds in enumerate((0.5, 2.1, 0.7)):
        samples = random.normal(0, 0.1, round(seconds * 16_000)).astype(np.float32)
        soundfile.write(folder / f"{number}.wav", samples, 16_000)
    (folder / "bad.wav").write_text("no audio", encoding="utf8")
    return folder


@pytest.fixture
def workers_like_us(monkeypatch):
    """Workers compile as this process does: else sums differ in their last bits.

    Nor do they stand back behind all other processes, as Ray's do.
    """
    flags = (
        "--xla_backend_optimization_level=0 --xla_force_host_platform_device_count=8"
    )
    monkeypatch.setenv("XLA_FLAGS", f"{os.environ.get('XLA_FLAGS', '')} {flags}")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("RAY_worker_niceness", "0")


def read_rows(out):
    rows = []
    for part in sorted(out.glob("part-*.jsonl")):
        rows += map(json.loads, part.read_text(encoding="utf8").splitlines())
    return rows


def test_a_run_gives_the_texts_of_transcribe_and_leaves_what_is_done(
    recordings, tmp_path, model_files, workers_like_us
):
    out = tmp_path / "out"
    config = CorpusConfig(model_files[0], batch=2, vad="none", shard_files=2)
    paths = corpus.list_files(str(recordings))
    first, second = corpus.plan(paths, str(out), config)
    kept = corpus.name_part(str(out), second.number, "jsonl")
    kept.write_text('{"file": "done before"}\n', encoding="utf8")
    done = corpus_on_ray.run(str(recordings), str(out), config)
    assert done["files"] == 2
    *rows, before = read_rows(out)
    assert before == {"file": "done before"}
    assert [row["file"] for row in rows] == list(first.paths)
    loaded = recognisers.load(model_files[0])
    for row in rows:
        (alone,) = longform.transcribe_files(
            loaded, [row["file"]], longform.Options(batch=2, vad="none")
        )
        assert (row["text"], row["error"]) == (alone.text, "") and alone.text
    # Nothing is left: Ray is not even started.
    assert corpus_on_ray.run(str(recordings), str(out), config)["files"] == 0


@pytest.mark.long
def test_a_killed_run_goes_on_and_ends_with_the_same_rows(
    recordings, tmp_path, model_files, workers_like_us
):
    def start(name):
        command = [sys.executable, "-m", "nim4_jax.launch.cli", "transcribe_corpus"]
        command += [f"--model={model_files[0]}", f"--files={recordings}", "--vad=none"]
        command += ["--batch=2", "--shard_files=1", f"--out={tmp_path / name}"]
        return subprocess.Popen(command)

    assert start("whole").wait() == 0
    killed, out = start("killed"), tmp_path / "killed"
    while not list(out.glob("part-*.jsonl")):
        assert killed.poll() is None
        time.sleep(0.05)
    killed.kill()
    killed.wait()
    assert start("killed").wait() == 0
    assert read_rows(out) == read_rows(tmp_path / "whole") and len(read_rows(out)) == 4
    assert not list(out.glob("*.tmp"))


@pytest.mark.long
def test_a_model_of_no_use_is_told_by_its_own_error(
    recordings, tmp_path, model_files, workers_like_us
):
    config = CorpusConfig(model_files[1], vad="none")
    with pytest.raises(ValueError, match=r"^a worker failed: .*no LLM: train stages 2"):
        corpus_on_ray.run(str(recordings), str(tmp_path / "out"), config)
    assert not list((tmp_path / "out").glob("part-*"))
