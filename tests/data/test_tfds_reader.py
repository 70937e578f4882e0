"""TFDS data sets, with the audio stored in every way that TFDS stores it."""

import io
import json
import os
import pickle

import numpy as np
import pytest
import soundfile
import tensorflow_datasets as tfds

from nim4_jax.data.audio import reading
from nim4_jax.data.sources import opening

COUNT = 3
ENCODED, INTEGERS = "encoded", "integers"


class Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Three tones; audio as bytes of a wav file or as int64 samples."""

    VERSION = tfds.core.Version("1.2.0")
    form = ENCODED

    def _info(self):
        if self.form == ENCODED:
            features = {"audio": tfds.features.Tensor(shape=(), dtype=np.object_)}
            features["text"] = tfds.features.Text()
        else:
            features = {"speech": tfds.features.Tensor(shape=(None,), dtype=np.int64)}
            features["transcript"] = tfds.features.Text()
            features["duration"] = tfds.features.Scalar(np.float32)
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features)
        )

    def _split_generators(self, dl_manager):
        del dl_manager
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for number in range(COUNT):
            samples = make_samples()
            if self.form == ENCODED:
                file = io.BytesIO()
                soundfile.write(file, samples, 8000, format="WAV")
                yield number, {"audio": file.getvalue(), "text": f"你好 {number}"}
            else:
                stored = samples.astype(np.int64)
                yield number, {"speech": stored, "transcript": "hello", "duration": 0.5}


class TinyIntegers(Tiny, skip_registration=True):
    """The same with the names that LibriSpeech uses."""

    name = "tiny_integers"
    form = INTEGERS


def make_samples() -> np.ndarray:
    """Half a second at 8 kHz, int16."""
    return (3000 * np.sin(np.arange(4000))).astype(np.int16)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    for builder_class in (Tiny, TinyIntegers):
        builder = builder_class(data_dir=folder, file_format="array_record")
        builder.download_and_prepare(
            download_dir=folder / "downloads", download_config=config
        )
    return folder


def declare_audio(data_dir, name: str, feature: str, content: dict) -> None:
    """Write features.json as TFDS does where the feature is an Audio."""
    path = data_dir / name / "1.2.0" / "features.json"
    features = json.loads(path.read_text())
    features["featuresDict"]["features"][feature] = {
        "pythonClassName": "tensorflow_datasets.core.features.audio_feature.Audio",
        "audio": content,
    }
    # TFDS may have left the file without write permission.
    os.chmod(path, 0o644)
    path.write_text(json.dumps(features))


def test_encoded_audio(data_dir):
    source = opening.open_source(f"tfds:tiny:train?data_dir={data_dir}&lang=zh")
    assert len(source) == COUNT
    texts = sorted(source[index]["text"] for index in range(COUNT))
    assert texts == [f"你好 {number}" for number in range(COUNT)]
    record = source[1]
    assert record["lang"] == "zh" and record["origin"] == "tfds:tiny:train:1"
    assert isinstance(record["audio"], bytes) and record["duration"] is None
    assert len(reading.decode(record["audio"])) == 8000
    again = pickle.loads(pickle.dumps(source))
    assert again[1] == record


def test_lazily_decoded_audio_feature(data_dir):
    content = {"dtype": "int64", "lazyDecode": True, "shape": {"dimensions": ["-1"]}}
    declare_audio(data_dir, "tiny", "audio", content)
    source = opening.open_source(f"tfds:tiny:1.2.0:train?data_dir={data_dir}")
    assert len(reading.decode(source[0]["audio"])) == 8000


def test_integer_audio_feature(data_dir):
    content = {"dtype": "int64", "sampleRate": "8000", "encoding": "none"}
    content["shape"] = {"dimensions": ["-1"]}
    declare_audio(data_dir, "tiny_integers", "speech", content)
    source = opening.open_source(f"tfds:tiny_integers:train[:2]?data_dir={data_dir}")
    assert len(source) == 2
    record = source[0]
    assert record["text"] == "hello" and record["lang"] == "auto"
    assert record["sample_rate"] == 8000 and record["duration"] == 0.5
    np.testing.assert_array_equal(record["audio"], make_samples())
    assert len(reading.decode(record["audio"], sample_rate=8000)) == 8000


def test_what_is_not_there(data_dir):
    where = f"?data_dir={data_dir}"
    for spec, message in {
        f"tfds:none:train{where}": "no prepared TFDS data set 'none'",
        f"tfds:tiny:3.0.0:train{where}": r"has: 1\.2\.0",
        f"tfds:tiny:dev{where}": "it has: train",
        f"tfds:tiny{where}": "expected",
        f"tfds:tiny:train{where}&speed=2": "expected",
        f"tfds:tiny:train{where}&lang=fr": "unknown lang",
    }.items():
        with pytest.raises(ValueError, match=message):
            opening.open_source(spec)


def test_a_data_set_without_text(data_dir):
    path = data_dir / "tiny" / "1.2.0" / "features.json"
    features = json.loads(path.read_text())
    del features["featuresDict"]["features"]["text"]
    folder = data_dir / "silent" / "1.2.0"
    folder.mkdir(parents=True)
    (folder / "features.json").write_text(json.dumps(features))
    with pytest.raises(ValueError, match=r"\['audio'\]; expected one of text"):
        opening.open_source(f"tfds:silent:train?data_dir={data_dir}")
