"""Recordings that are too long for a batch: cut as nim4 transcribe cuts them."""

import functools
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from nim4_jax.data.audio import reading
from nim4_jax.data.pipeline import iterators
from nim4_jax.data.pipeline.config import DataConfig
from nim4_jax.data.sources import opening
from nim4_jax.data.sources.skips import SkipReport
from nim4_jax.decode import longform, segments
from nim4_jax.decode.endpoint import EndpointConfig
from nim4_jax.decode.hotwords import Prompted
from nim4_jax.decode.recogniser import Transcript
from nim4_jax.decode.silero import Silero
from nim4_jax.eval import recordings, scoring
from nim4_jax.eval.recordings import Gatherer
from nim4_jax.serving import recognisers

CLEAN = "bundled:commands:test"


def make_config(spec, seconds=(2.5, 4.0), rows=(8, 4)):
    return DataConfig(
        sources=(spec,), batch_size=rows, bucket_seconds=seconds, needs=(), threads=1
    )


def write(folder, number, samples, text="hi"):
    soundfile.write(folder / f"{number}.wav", samples, 16_000, "FLOAT")
    return f'{{"audio": "{number}.wav", "text": "{text}", "id": "{number}"}}'


@pytest.fixture(scope="module")
def long_set(tmp_path_factory):
    """Speech of 12 s, of 1.5 s, and 5 s in which nobody speaks; a broken long file."""
    folder = tmp_path_factory.mktemp("long")
    joined = opening.open_source(f"joined:12:{CLEAN}")[0]
    speech = reading.decode(joined["audio"])
    rows = [
        write(folder, 0, speech),
        write(folder, 1, speech[:24_000]),
        write(folder, 2, np.full(80_000, 1e-4, np.float32), ""),
        '{"audio": "none.wav", "text": "hi", "duration": 99, "id": "3"}',
    ]
    path = folder / "set.jsonl"
    path.write_text("\n".join(rows) + "\n", encoding="utf8")
    return str(path)


@functools.cache
def read_batches(seconds):
    """Every recording that fits a bucket, as training's pipeline delivers it."""
    read = {}
    for arrays in iterators.iterate_eval(make_config(CLEAN, seconds)):
        for row, index in enumerate(arrays["index"]):
            samples = arrays["audio"][row][arrays["audio_mask"][row]]
            read[int(index)] = samples
    return read


@given(
    chosen=st.sets(st.integers(0, 169), min_size=1, max_size=6),
    seconds=st.sampled_from([(1.0, 2.0), (2.5, 6.5)]),
)
def test_what_fits_is_read_as_ever_and_the_rest_comes_whole(chosen, seconds):
    config = make_config(CLEAN, seconds)
    read = dict(recordings.read(CLEAN, chosen, config, SkipReport()))
    assert set(read) == chosen
    expected = read_batches(seconds)
    source = opening.open_source(CLEAN)
    for index in chosen:
        whole = reading.decode(source[index]["audio"])
        if index in expected:
            np.testing.assert_array_equal(read[index], expected[index])
        else:
            assert len(whole) > seconds[-1] * 16_000
            np.testing.assert_allclose(read[index], whole, atol=1e-6)


def test_a_selection_counts_no_other_recording(long_set):
    report = SkipReport()
    read = dict(recordings.read(long_set, {1}, make_config(long_set), report))
    assert list(read) == [1] and not report.counts
    read = dict(recordings.read(long_set, range(4), make_config(long_set), report))
    assert list(read) == [1, 0, 2] and report.counts == {"missing file": 1}
    assert "set.jsonl:4" in report.examples("missing file")[0]


def test_pieces_are_those_of_cut_speech_in_batches_of_fixed_shape(long_set):
    read = dict(
        recordings.read(long_set, {0, 1, 2}, make_config(long_set), SkipReport())
    )
    gatherer = Gatherer((2.5, 4.0), (8, 4))
    rows = {}
    for batch in gatherer.gather(read.items()):
        assert batch.audio.values.shape in ((8, 40_000), (4, 64_000))
        for row, key in enumerate(batch.keys):
            mask = np.asarray(batch.audio.mask[row])
            rows[key] = np.asarray(batch.audio.values[row])[mask]
    cut = segments.cut_speech([read[0]], Silero(), EndpointConfig(), 4.0)
    expected = {(0, piece.start): piece.samples for piece in cut}
    assert len(expected) > 2
    expected[1, 0.0] = read[1]
    assert rows.keys() == expected.keys()
    for key, samples in expected.items():
        np.testing.assert_array_equal(rows[key], samples)
    assert gatherer.seconds == {i: len(read[i]) / 16_000 for i in read}
    assert gatherer.spent > 0.0


def test_streams_hear_long_recordings_whole(long_set):
    read = dict(recordings.read(long_set, {0, 1}, make_config(long_set), SkipReport()))
    batches = list(Gatherer((2.5, 4.0), (8, 4), whole=True).gather(read.items()))
    shapes = {batch.keys: batch.audio.values.shape for batch in batches}
    assert shapes == {((0, 0.0),): (1, len(read[0])), ((1, 0.0),): (8, 40_000)}
    assert all(bool(batch.audio.mask[0].any()) for batch in batches)


def test_pieces_join_to_one_transcript():
    pieces = [
        Transcript("go home", (1, 2), -1.0, True, (), (5,), 2.0),
        Transcript("", (), -0.5, True, (), (), 1.0),
        Transcript("打开", (3,), -2.0, False, (), (6, 7), 3.0),
    ]
    made = recordings.join(pieces, 9.0)
    expected = Transcript("go home打开", (1, 2, 3), -3.5, False, (), (5, 6, 7), 9.0)
    assert made == expected
    assert recordings.join(pieces[:1], 9.0) is pieces[0]
    assert recordings.join([], 9.0) == Transcript("", (), 0.0, True, (), (), 9.0)
    fields = (*vars(pieces[0]).values(),)
    prompted = [Prompted(*fields, hints=hints) for hints in (("a", "b"), ("b", "c"))]
    joined = recordings.join(prompted, 4.0)
    assert isinstance(joined, Prompted) and joined.hints == ("a", "b", "c")


def test_an_evaluation_writes_what_transcribe_writes(model_files, long_set, tmp_path):
    """The law of long audio offline, through the commands themselves."""
    scoring.run(
        model_files[0],
        [long_set],
        str(tmp_path),
        scoring.Options(phonemes=True),
        show_progress=False,
    )
    lines = (tmp_path / "hyps.jsonl").read_text(encoding="utf8").splitlines()
    rows = {row["id"]: row for row in map(json.loads, lines)}
    loaded = recognisers.load(model_files[0])
    assert loaded.bucket_seconds[-1] < 5.0
    paths = [str(Path(long_set).with_name(f"{number}.wav")) for number in range(3)]
    texts = [one.text for one in longform.transcribe_files(loaded, paths)]
    assert [rows[str(number)]["hypothesis"] for number in range(3)] == texts
    assert texts[0] and not texts[2]
    assert rows["2"]["phonemes"]["insertions"] == 0
    assert rows["0"]["seconds"] > 9.0
