"""Recordings of noise: what is read of them, and what if they cannot be read."""

import numpy as np
import pytest
import soundfile

from nim4_jax.data.noise.noise_files import NoiseFiles
from nim4_jax.data.pipeline import iterators
from nim4_jax.data.pipeline.iterators import DataConfig, SkipReport


@pytest.fixture
def noise_folder(tmp_path, make_tone):
    """A long file, a short one in a subfolder at another rate, an empty one."""
    folder = tmp_path / "noise"
    (folder / "deep").mkdir(parents=True)
    soundfile.write(folder / "long.wav", make_tone(5.0, pitch=1000.0), 16000)
    soundfile.write(folder / "deep" / "short.flac", make_tone(0.2, 8000, 500.0), 8000)
    (folder / "empty.wav").touch()
    (folder / "readme.txt").write_text("not audio")
    return folder


def test_pieces_of_noise(noise_folder, write_manifest):
    report = SkipReport()
    rows = [{"audio": "long.wav", "text": ""}]
    manifest = write_manifest(noise_folder / "noise.jsonl", rows)
    files = NoiseFiles((str(noise_folder), str(manifest)), report)
    assert files.seconds.tolist() == [0.2, 5.0, 5.0]
    assert report.counts == {"noise: zero length": 1}
    pitches = set()
    for seed in range(20):
        piece = files.read(np.random.default_rng(seed), 16_000)
        assert piece.shape == (16_000,) and piece.dtype == np.float32
        again = files.read(np.random.default_rng(seed), 16_000)
        np.testing.assert_array_equal(piece, again)
        pitches.add(int(np.argmax(np.abs(np.fft.rfft(piece)))))
    assert pitches == {500, 1000}


def test_recordings_replace_vehicle_and_music(corpus_path, noise_folder):
    recorded = DataConfig(
        sources=(str(corpus_path),),
        batch_size=(8, 4),
        bucket_seconds=(1.1, 2.0),
        noise_share=1.0,
        noise_sources=(str(noise_folder),),
        nonspeech_share=1 / 3,
    )
    iterator = iterators.make_train_iterator(recorded)
    assert iterator.plan.distribution.kinds == ("babble", "recorded", "recorded")
    state = iterator.get_state()
    (noise_folder / "long.wav").unlink()
    fewer = iterators.make_train_iterator(recorded)
    with pytest.raises(ValueError, match="noise"):
        fewer.set_state(state)
    # The first iterator still knows of the lost file: rows stay clean, and count.
    batches = [next(iterator) for _ in range(10)]
    iterator.close()
    counts = iterator.report.counts
    assert counts["noise left out: missing file"] > 0
    speech = np.concatenate([batch["index"] < 22 for batch in batches])
    valid = np.concatenate([batch["valid"] for batch in batches])
    assert valid[speech].all()
    # Rows without speech have nothing but that noise: those are masked.
    assert counts["missing file"] == len(
        {int(index) for batch in batches for index in batch["index"][~batch["valid"]]}
    )


@pytest.mark.parametrize("kind", ["empty", "broken"])
def test_noise_that_cannot_be_used(corpus_path, tmp_path, kind):
    if kind == "broken":
        (tmp_path / "a.wav").write_bytes(b"RIFF but not really")
    message = {"empty": "holds no audio; expected", "broken": "no noise can be used"}
    config = DataConfig(
        (str(corpus_path),), noise_share=0.2, noise_sources=(str(tmp_path),)
    )
    with pytest.raises(ValueError, match=message[kind]):
        iterators.make_train_iterator(config)
    with pytest.raises(ValueError, match="expected a list"):
        NoiseFiles(str(tmp_path), SkipReport())
