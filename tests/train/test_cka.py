"""CKA: the paper's formula, its invariances, and sums that add up to the whole."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nim4_jax.train.releases import cka
from nim4_jax.types import Frames

SEEDS = st.integers(0, 2**31 - 1)


def make_pair(seed: int, rows: int = 4, width: int = 5, other: int = 3):
    """Two related encoders' frames [L, D], [L, E] with means and uneven scales."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows * 9, width)) * rng.uniform(0.2, 3.0, width)
    y = x @ rng.normal(size=(width, other)) + rng.normal(size=(rows * 9, other))
    return x + rng.normal(size=width), y - 2.0


def to_frames(values: np.ndarray, mask: np.ndarray, dtype=jnp.float32) -> Frames:
    """A batch with NaN behind the mask."""
    values = np.where(mask[..., None], values, np.nan)
    return Frames(jnp.asarray(values, dtype), jnp.asarray(mask))


def pack(x: np.ndarray, y: np.ndarray, lengths: list[int], width: int = 40):
    """A batch of consecutive frames as rows of these lengths, NaN behind them."""
    rows = np.zeros(4, int)
    rows[: len(lengths)] = lengths
    mask = np.arange(width)[None] < rows[:, None]

    def fill(frames):
        values = np.zeros((*mask.shape, frames.shape[1]))
        values[mask] = frames
        return to_frames(values, mask)

    return fill(x), fill(y)


def cut_rows(frames: Frames, start: int, end: int) -> Frames:
    """Some rows of a batch."""
    return Frames(frames.values[start:end], frames.mask[start:end])


def measure(x: np.ndarray, y: np.ndarray) -> float:
    """CKA of plain frames, in one batch of one row."""
    return cka.measure([pack(x, y, [len(x)])])


def gram_cka(x: np.ndarray, y: np.ndarray) -> float:
    """The paper's formula, with L × L matrices."""
    centring = np.eye(len(x)) - 1.0 / len(x)
    a, b = (centring @ v @ v.T @ centring for v in (x, y))
    return np.sum(a * b) / np.sqrt(np.sum(a * a) * np.sum(b * b))


@given(SEEDS)
def test_value_is_that_of_the_gram_matrices(seed):
    """SPEC §3, for encoders of different widths."""
    x, y = make_pair(seed)
    assert measure(x, y) == pytest.approx(gram_cka(x, y), abs=1e-5)
    assert measure(y, x) == pytest.approx(gram_cka(x, y), abs=1e-5)


@given(SEEDS, st.floats(1e-2, 1e2), st.floats(-30.0, 30.0))
def test_rotation_scale_and_shift_change_nothing(seed, scale, shift):
    """The same encoder in other coordinates is the same encoder."""
    x, y = make_pair(seed)
    rotation, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(5, 5)))
    moved = scale * (x @ rotation) + shift
    assert measure(moved, y) == pytest.approx(measure(x, y), abs=1e-4)
    assert measure(x, moved) == pytest.approx(1.0, abs=1e-4)
    assert 0.0 <= measure(x, y) <= 1.0


def test_stretching_one_feature_is_another_encoder():
    """Only isotropic scaling is free."""
    x, _ = make_pair(0)
    assert measure(x, x * np.array([20.0, 1, 1, 1, 1])) < 0.95


@given(SEEDS, st.data())
def test_any_split_into_batches_and_rows_is_the_whole(seed, data):
    """Batches, rows and padding of any size, some of them without a frame."""
    x, y = make_pair(seed)
    cuts = st.lists(st.integers(0, len(x)), max_size=6).map(sorted)
    batch_ends = [0, *data.draw(cuts, label="batches"), len(x)]
    batches = []
    for start, end in itertools.pairwise(batch_ends):
        inner = data.draw(st.lists(st.integers(start, end), max_size=3).map(sorted))
        ends = [start, *inner, end]
        lengths = list(np.diff(ends))
        batches.append(pack(x[start:end], y[start:end], lengths))
    whole = cka.add_up(*pack(x, y, [len(x)]))
    parts = [cka.add_up(*batch) for batch in batches]
    total = sum(parts[1:], parts[0])
    assert total.count == whole.count == len(x)
    for name in ("x", "y", "xx", "yy", "xy"):
        a, b = getattr(total, name), getattr(whole, name)
        assert a.dtype == np.float64
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-3)
    assert cka.measure(batches) == pytest.approx(whole.value(), abs=1e-5)


def test_a_large_mean_costs_no_digits():
    """Σxxᵀ is ten million times the variance: float32 sums would hold nothing."""
    rng = np.random.default_rng(0)
    mask = np.ones((8, 50), bool)
    # On the grid of float32 at 4,096, so that the shift itself is exact.
    x = np.round(rng.normal(size=(8, 50, 6)) * 512) / 512
    y = x @ rng.normal(size=(6, 6)) + rng.normal(size=(8, 50, 6))
    plain = to_frames(x, mask), to_frames(y, mask)
    shifted = to_frames(x + 4_096.0, mask), to_frames(y, mask)
    rows = [tuple(cut_rows(f, i, i + 2) for f in shifted) for i in range(0, 8, 2)]
    assert cka.measure([shifted]) == pytest.approx(cka.measure([plain]), abs=1e-6)
    assert cka.measure(rows) == pytest.approx(cka.measure([plain]), abs=1e-6)


def test_frames_may_be_bfloat16():
    """Only their rounding shows."""
    x, y = make_pair(1)
    mask = np.ones((1, len(x)), bool)
    low = [to_frames(v[None], mask, jnp.bfloat16) for v in (x, y)]
    assert cka.measure([tuple(low)]) == pytest.approx(measure(x, y), abs=0.01)


def test_nothing_to_compare_is_an_error():
    """No batch, and batches without a valid frame."""
    with pytest.raises(ValueError, match="no batch at all"):
        cka.measure([])
    empty = pack(np.zeros((0, 3)), np.zeros((0, 3)), [])
    with pytest.raises(ValueError, match=r"no frame at all.*evaluation set"):
        cka.measure([empty, empty])


@pytest.mark.parametrize("level", [0.0, 0.1, -7e4])
def test_constant_features_are_an_error(level):
    """A collapsed encoder, in several batches; and a single frame."""
    x, _ = make_pair(2)
    same = np.full((len(x), 4), level)
    batches = [pack(a, b, [9]) for a, b in zip(np.split(x, 4), np.split(same, 4))]
    with pytest.raises(ValueError, match=r"second encoder .* all 36 frames"):
        cka.measure(batches)
    with pytest.raises(ValueError, match=r"first encoder .* same values"):
        cka.measure([(b, a) for a, b in batches])
    with pytest.raises(ValueError, match="all 1 frames"):
        measure(x[:1], x[:1])


def test_lost_numbers_are_an_error():
    """NaN in a valid frame is not hidden."""
    x, y = make_pair(3)
    y[5, 1] = np.nan
    with pytest.raises(ValueError, match=r"second encoder gives .* not finite"):
        measure(x, y)


def test_frames_of_other_audio_are_an_error():
    """The masks say that these are not the same frames."""
    x, y = make_pair(4)
    (long, _), (short, _) = pack(x, y, [36]), pack(x, y, [30, 6])
    with pytest.raises(ValueError, match=r"\(4, 40\) with 36 and \(4, 40\) with 36"):
        cka.add_up(long, short)
    with pytest.raises(ValueError, match="do not add up"):
        cka.add_up(long, long) + cka.add_up(*pack(x, y, [36]))
    wide, _ = pack(x, y, [36], width=50)
    with pytest.raises(ValueError, match=r"\(4, 40\) .* \(4, 50\)"):
        cka.add_up(long, wide)
