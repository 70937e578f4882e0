"""Every kind of bad input: counted with file and line, never silent, never fatal."""

import numpy as np
import pytest
import soundfile

from nim4_jax.data.pipeline import iterators
from nim4_jax.data.pipeline.iterators import DataConfig, SkipReport


@pytest.fixture
def bad_corpus(tmp_path, make_tone, write_manifest):
    """One good example (line 1) and one of each kind of bad one."""

    def save(name: str, samples: np.ndarray, **options) -> str:
        soundfile.write(tmp_path / name, samples, 16000, **options)
        return name

    tone = make_tone(1.0)
    nan = tone.copy()
    nan[100] = np.nan
    save("cut.wav", make_tone(1.5))
    data = (tmp_path / "cut.wav").read_bytes()
    (tmp_path / "cut.wav").write_bytes(data[: len(data) // 2])
    (tmp_path / "empty.wav").touch()
    (tmp_path / "noise.mp3").write_bytes(bytes(range(256)) * 8)
    with soundfile.SoundFile(tmp_path / "hours.flac", "w", 16000, 1, "PCM_16") as file:
        for _ in range(120):
            file.write(np.zeros(16000 * 60, np.int16))
    good = save("good.wav", tone)
    rows = [
        (good, "hello", {}),
        ("gone.wav", "hello", {}),
        ("gone.wav", "hello", {"duration": 1.0}),
        ("empty.wav", "hello", {}),
        (save("none.wav", tone[:0]), "hello", {}),
        (good, "hello", {"duration": 0}),
        ("cut.wav", "hello", {}),
        (save("nan.wav", nan, subtype="FLOAT"), "hello", {}),
        ("noise.mp3", "hello", {}),
        ("hours.flac", "hello", {}),
        ("hours.flac", "hello", {"duration": 1.0}),
        (good, "  ", {}),
        (good, "!?…", {}),
        (good, "hello " * 30, {}),
        (save("short.wav", tone[:2000]), "hello there", {}),
        (save("stub.wav", tone[:2000]), "hello there", {"duration": 0.9}),
        (save("brief.wav", tone[:4000]), "hello there my", {"duration": 0.45}),
        (save("stereo.wav", np.stack([tone, tone], 1)), "你好", {}),
    ]
    entries = [{"audio": a, "text": t, **more} for a, t, more in rows]
    return write_manifest(tmp_path / "bad.jsonl", entries)


EXPECTED = {
    "missing file": [2, 3],
    "zero length": [4, 5, 6],
    "truncated": [7, 16],
    "not finite": [8],
    "unreadable audio": [9],
    "too long": [10, 11],
    "empty transcript": [12],
    "no phoneme": [13],
    "too short for CTC": [14, 15, 17],
}
GOOD = [1, 18]


def list_lines(report: SkipReport) -> dict[str, list[int]]:
    """Line numbers in the manifest by reason."""
    found = {}
    for reason in report.counts:
        places = [line.split(".jsonl:")[1] for line in report.examples(reason)]
        found[reason] = sorted(int(place.split(":")[0]) for place in places)
    return found


@pytest.mark.parametrize("threads", [0, 3])
def test_training_counts_each_bad_example_and_goes_on(bad_corpus, threads):
    config = DataConfig(
        sources=(str(bad_corpus),),
        batch_size=2,
        bucket_seconds=(2.0,),
        epochs=2,
        threads=threads,
        max_phonemes=(200,),
    )
    iterator = iterators.make_train_iterator(config)
    seen = set()
    for batch in iterator:
        assert np.isfinite(batch["audio"]).all()
        for row, valid in enumerate(batch["valid"]):
            assert batch["audio_mask"][row].any() == valid
            assert batch["phonemes_mask"][row].any() == valid
            if valid:
                seen.add(int(batch["index"][row]) + 1)
    iterator.close()
    assert sorted(seen) == GOOD
    # Two epochs, yet each example counts once.
    assert list_lines(iterator.report) == EXPECTED
    counts = {reason: len(lines) for reason, lines in EXPECTED.items()}
    assert iterator.report.counts == counts
    assert iterator.report.total == sum(counts.values())
    for reason, count in counts.items():
        assert f"skipped {count}: {reason}" in iterator.report.summary()
    assert "gone.wav" in iterator.report.examples("missing file")[0]


def test_too_many_labels(bad_corpus):
    config = DataConfig(
        sources=(f"{bad_corpus}?text=hello|hello there|你好",),
        batch_size=2,
        bucket_seconds=(2.0,),
        max_phonemes=(4,),
    )
    report = SkipReport()
    with pytest.raises(ValueError, match="no example can be used"):
        iterators.make_train_iterator(
            DataConfig(**{**vars(config), "max_phonemes": (3,)}), report=report
        )
    assert report.counts["too many labels"] > 1
    iterator = iterators.make_train_iterator(config)
    assert [int(i) for i in next(iterator)["index"]]
    assert iterator.report.counts["too many labels"] > 0
    iterator.close()


def test_evaluation_needs_the_audio_only(bad_corpus):
    config = DataConfig(sources=(str(bad_corpus),), batch_size=4, bucket_seconds=(2.0,))
    report = SkipReport()
    batches = list(iterators.iterate_eval(config, report=report))
    index = np.concatenate([batch["index"] for batch in batches])
    valid = np.concatenate([batch["valid"] for batch in batches])
    labelled = np.concatenate([batch["phonemes_mask"].any(1) for batch in batches])
    assert sorted((index[valid] + 1).tolist()) == [1, 12, 13, 14, 15, 17, 18]
    # The duration of line 17 is wrong: its labels look as if they fitted.
    assert sorted((index[labelled] + 1).tolist()) == [1, 17, 18]
    assert report.counts["labels left out: empty transcript"] == 1
    assert report.counts["labels left out: no phoneme"] == 1
    assert report.counts["labels left out: too short for CTC"] == 2
    assert report.counts["missing file"] == 2


def test_no_labels_needed(bad_corpus):
    config = DataConfig(
        sources=(str(bad_corpus),), batch_size=2, bucket_seconds=(2.0,), needs=()
    )
    report = SkipReport()
    batches = list(iterators.iterate_eval(config, report=report))
    assert all(batch["phonemes"].shape == (2, 1) for batch in batches)
    assert sum(batch["valid"].sum() for batch in batches) == 7
    assert not any("label" in reason for reason in report.counts)


def test_the_report_keeps_a_bounded_number_of_lines():
    report = SkipReport(kept_lines=2)
    assert report.summary() == "nothing skipped"
    for index in (0, 1, 2, 2):
        report.add("missing file", index, f"m.jsonl:{index}", "a.wav")
    assert report.counts == {"missing file": 3}
    assert report.examples("missing file")[1] == "m.jsonl:1: missing file: a.wav"
    assert len(report.examples("missing file")) == 2
