"""The benchmark of the input pipeline counts what it says; no test looks at a time."""

import json
import shutil

import numpy as np
import pytest

from nim4_jax.data.audio import reading
from nim4_jax.data.pipeline import iterators
from nim4_jax.data.sources import builders
from nim4_jax.eval.speed import input_pipeline
from nim4_jax.eval.speed.input_pipeline import Rate, Reader

COUNT = 6
CLEAN = {"speed_perturb": (1.0,), "noise_share": 0.0}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Folder and the two sources of a few utterances."""
    folder = tmp_path_factory.mktemp("speech")
    return folder, *input_pipeline.write_corpus(folder, COUNT, threads=2)


def read_batches(source: str) -> list[dict]:
    config = input_pipeline.configure(source, **CLEAN)
    iterator = iterators.make_train_iterator(config)
    batches = list(iterator)
    iterator.close()
    return batches


def test_utterances_are_of_one_voice_and_2_to_15_s():
    known = builders.open_bundled("commands", "train")
    spoken = {}
    for record in (known[index] for index in range(len(known))):
        spoken.setdefault(record["voice"], set()).add(record["text"])
    made = list(input_pipeline.join_commands(COUNT))
    assert len({record["voice"] for record in made}) == COUNT
    for record in made:
        rest = record["text"]
        for text in sorted(spoken[record["voice"]], key=len, reverse=True):
            rest = rest.replace(text, "")
        assert not rest.strip(", ")
        assert 2 <= len(record["samples"]) / reading.SAMPLE_RATE <= 15


def test_files_and_archive_hold_the_same_speech(corpus):
    _, files, archive = corpus
    pairs = list(zip(read_batches(files), read_batches(archive), strict=True))
    assert pairs
    for one, two in pairs:
        for key in one:
            np.testing.assert_array_equal(one[key], two[key], err_msg=key)


@pytest.mark.parametrize("changes", [CLEAN, {"noise_share": 1.0}])
def test_seconds_are_those_of_the_recordings(corpus, changes):
    """Not of what speed and silence made of them, and each time again."""
    _, files, _ = corpus
    config = input_pipeline.configure(files, **changes)
    with open(files, encoding="utf8") as lines:
        stored = np.array([json.loads(line)["duration"] for line in lines])
    batches = list(iterators.make_train_iterator(config))
    index = np.concatenate([batch["index"] for batch in batches])
    assert set(index.tolist()) == set(range(COUNT))
    reader = Reader(config)
    for _ in range(2):
        assert reader.read() == pytest.approx(stored[index].sum())
    heard = sum(int(batch["audio_mask"].sum()) for batch in batches) / 16000
    assert (heard == pytest.approx(stored[index].sum(), rel=1e-3)) == (changes is CLEAN)


def test_a_profile_names_where_the_time_goes(corpus):
    _, _, archive = corpus
    decode = reading.decode
    clean = input_pipeline.profile(input_pipeline.configure(archive, **CLEAN))
    noisy = input_pipeline.profile(
        input_pipeline.configure(archive, noise_share=1.0, epochs=2)
    )
    for shares in (clean, noisy):
        assert sum(shares.values()) == pytest.approx(100)
        assert list(shares.values()) == sorted(shares.values(), reverse=True)
        assert min(shares.values()) >= 0
    kinds = ("babble", "vehicle", "music", "mixing")
    assert not any(clean[kind] for kind in kinds) and noisy["mixing"]
    for part in ("decoding", "reading", "rounding", "padding", "rest"):
        assert clean[part] > 0
    assert reading.decode is decode


def test_a_row_that_is_missing_is_no_figure(corpus, tmp_path):
    """Reading nothing would be the fastest pipeline of all."""
    folder, files, _ = corpus
    for path in folder.glob("*.opus"):
        shutil.copy(path, tmp_path)
    manifest = shutil.copy(files, tmp_path)
    reader = Reader(input_pipeline.configure(str(manifest), **CLEAN))
    (tmp_path / "speech-0.opus").unlink()
    with pytest.raises(ValueError, match=r"rows are missing:(.|\n)*missing file"):
        reader.read()


def test_runs_take_turns_and_the_first_one_does_not_count():
    calls = []

    def work(name: str, seconds: float) -> float:
        calls.append(name)
        return 0.0 if calls.count(name) == 1 else seconds

    works = {"a": lambda: work("a", 1.0), "b": lambda: work("b", 2.0)}
    rates = input_pipeline.time_works(works, runs=3)
    assert calls == ["a", "b"] * 4
    assert all(rate.cpu > 0 and rate.wall > 0 for rate in rates.values())


def test_a_larger_rate_is_the_better_one():
    rows = input_pipeline._show("work", 3, Rate(30.0, 20.0), Rate(20.0, 40.0))
    assert [row.figure for row in rows] == [
        "work_x_realtime_per_core_cpu",
        "work_x_realtime_per_core_wall",
    ]
    assert [row.ratio for row in rows] == [1.5, 0.5]
    alone = input_pipeline._show("work", 3, Rate(30.0, 20.0))
    assert all(row.peer is None and row.ratio is None for row in alone)
