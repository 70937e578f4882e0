"""Feature statistics against numpy, and the file that keeps them."""

import jax.numpy as jnp
import numpy as np
import pytest

from nim4_jax import features
from nim4_jax.features import FeatureConfig
from nim4_jax.models.asr import Cmvn
from nim4_jax.train import cmvn
from nim4_jax.types import Frames

CONFIG = FeatureConfig(num_mels=16)


def make_batches() -> list[Frames]:
    """Noise of different lengths and levels, NaN behind the mask."""
    rng = np.random.default_rng(0)
    mask = np.arange(3_200)[None] < np.array([[3_200], [1_700], [100]])
    batches = []
    for level in (0.3, 0.01):
        values = np.where(mask, level * rng.normal(size=mask.shape), np.nan)
        batches.append(Frames(jnp.asarray(values, jnp.float32), jnp.asarray(mask)))
    return batches


def test_statistics_are_those_of_all_valid_frames():
    """Mean, deviation and count as numpy has them; normalised features are standard."""
    batches = make_batches()
    got = cmvn.measure(batches, CONFIG)
    frames = [features.log_mel(batch, CONFIG) for batch in batches]
    valid = np.concatenate([np.asarray(f.values)[np.asarray(f.mask)] for f in frames])
    assert got["frames"] == len(valid)
    np.testing.assert_allclose(got["mean"], valid.mean(axis=0), atol=1e-4)
    np.testing.assert_allclose(got["std"], valid.std(axis=0), rtol=1e-4)
    params = {"params": cmvn.to_params(got)}
    normal = [Cmvn(16).apply(params, f) for f in frames]
    valid = np.concatenate([np.asarray(f.values)[np.asarray(f.mask)] for f in normal])
    np.testing.assert_allclose(valid.mean(axis=0), 0.0, atol=1e-3)
    np.testing.assert_allclose(valid.std(axis=0), 1.0, atol=1e-3)


def test_file_keeps_every_digit(tmp_path):
    """write → read gives the same statistics."""
    path = str(tmp_path / "cmvn.json")
    statistics = {"mean": [1 / 3, -2.0], "std": [0.1, 3e-7], "frames": 7}
    cmvn.write(path, statistics)
    assert cmvn.read(path) == statistics


@pytest.mark.parametrize(
    "content",
    [
        None,
        "{",
        "[" * 100_000,
        "[]",
        '{"mean": [1]}',
        '{"mean": [1], "std": []}',
        '{"mean": [1], "std": [0]}',
        '{"mean": [NaN], "std": [1]}',
        '{"mean": ["x"], "std": [1]}',
        '{"mean": [[1]], "std": [[1]]}',
        f'{{"mean": [1{"0" * 400}], "std": [1]}}',
    ],
)
def test_no_statistics_is_an_error_with_the_cure(tmp_path, content):
    """Missing, cut off or other files are named, with the command that makes one."""
    path = tmp_path / "cmvn.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=r"cmvn\.json holds no.*nim4 cmvn"):
        cmvn.read(str(path))


def test_nothing_to_measure_is_an_error():
    """Audio shorter than a frame, or none at all."""
    empty = Frames(jnp.zeros((1, 800)), jnp.zeros((1, 800), bool))
    for batches in ([], [empty]):
        with pytest.raises(ValueError, match="no audio of at least 25 ms"):
            cmvn.measure(batches, CONFIG)
