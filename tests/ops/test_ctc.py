"""CTC: torch's numbers, all alignments counted by hand, and the odd cases."""

import functools
import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nim4_jax.ops import ctc
from nim4_jax.types import Labels

GOLDENS = np.load(Path(__file__).parents[1] / "goldens" / "ctc.npz")
CASES = sorted({name.split("/")[0] for name in GOLDENS})
CLASSES, FRAMES, WIDTH = 4, 5, 3  # of the enumerated problems

consistency = jax.jit(ctc.consistency)


@jax.jit
@functools.partial(jax.value_and_grad, has_aux=True)
def evaluate(logits, mask, labels):
    """((sum of finite losses, losses), gradient over the logits)."""
    losses = ctc.ctc_loss(logits, mask, labels)
    return jnp.sum(jnp.where(jnp.isfinite(losses), losses, 0.0)), losses


def make_problem(logits, frames, ids, labels):
    """Padded arrays with NaN logits and other ids' zeros behind the masks."""
    mask = np.arange(logits.shape[1])[None] < np.asarray(frames)[:, None]
    label_mask = np.arange(ids.shape[1])[None] < np.asarray(labels)[:, None]
    logits = np.where(mask[..., None], logits, np.nan).astype(np.float32)
    ids = np.where(label_mask, ids, 0).astype(np.int32)
    return logits, mask, Labels(ids, label_mask)


@pytest.mark.parametrize("case", CASES)
def test_torch_agrees(case):
    """Loss to 1e-5 relative, gradient to 1e-3 absolute, against float64."""
    golden = {
        key: GOLDENS[f"{case}/{key}"]
        for key in ("logits", "frames", "ids", "labels", "loss", "gradient")
    }
    problem = make_problem(*[golden[k] for k in ("logits", "frames", "ids", "labels")])
    (_, losses), gradient = evaluate(*problem)
    np.testing.assert_allclose(losses, golden["loss"], rtol=1e-5)
    np.testing.assert_allclose(gradient, golden["gradient"], atol=1e-3)


@functools.cache
def list_alignments(frames: int) -> dict[tuple[int, ...], np.ndarray]:
    """Label sequence → all frame-level paths [·, frames] that collapse to it."""
    found: dict[tuple[int, ...], list] = {}
    for path in itertools.product(range(CLASSES), repeat=frames):
        collapsed = tuple(k for k, _ in itertools.groupby(path) if k)
        found.setdefault(collapsed, []).append(path)
    return {labels: np.array(paths) for labels, paths in found.items()}


def enumerate_likelihood(logits: np.ndarray, labels: tuple[int, ...]) -> float:
    """−log Σ over alignments, in float64; inf when there is none."""
    scores = logits.astype(np.float64)
    log_probs = scores - np.log(np.sum(np.exp(scores), axis=-1, keepdims=True))
    paths = list_alignments(len(logits)).get(labels)
    if paths is None:
        return np.inf
    return -np.log(np.sum(np.exp(log_probs[np.arange(len(logits)), paths].sum(axis=1))))


@given(
    seed=st.integers(0, 10_000),
    scale=st.sampled_from([0.1, 1.0, 5.0]),
    rows=st.lists(
        st.tuples(
            st.integers(1, FRAMES),
            st.lists(st.integers(1, CLASSES - 1), max_size=WIDTH),
        ),
        min_size=3,
        max_size=3,
    ),
)
def test_every_alignment_counts(seed, scale, rows):
    """Against brute force: repeats, empty labels and impossible rows included."""
    shape = (len(rows), FRAMES, CLASSES)
    logits = np.random.default_rng(seed).normal(scale=scale, size=shape)
    logits = logits.astype(np.float32)
    ids = np.array([row + [0] * (WIDTH - len(row)) for _, row in rows])
    frames, counts = [f for f, _ in rows], [len(row) for _, row in rows]
    (_, losses), gradient = evaluate(*make_problem(logits, frames, ids, counts))
    expected = [
        enumerate_likelihood(logits[i, :f], tuple(row))
        for i, (f, row) in enumerate(rows)
    ]
    np.testing.assert_allclose(losses, expected, rtol=1e-5, atol=1e-5)
    assert np.isfinite(gradient).all()
    for row, value in enumerate(expected):
        assert np.isfinite(value) or not gradient[row].any()


def test_the_gradient_is_the_slope():
    """Central differences of the enumerated loss, frame by frame and class by class."""
    logits = np.random.default_rng(3).normal(size=(1, FRAMES, CLASSES))
    labels = (2, 2)
    problem = make_problem(logits, [FRAMES], np.array([[2, 2, 0]]), [2])
    _, gradient = evaluate(*problem)
    for place in np.ndindex(FRAMES, CLASSES):
        ends = []
        for sign in (1, -1):
            moved = logits[0].copy()
            moved[place] += sign * 1e-5
            ends.append(enumerate_likelihood(moved, labels))
        assert abs((ends[0] - ends[1]) / 2e-5 - gradient[0][place]) < 1e-4


def test_too_few_frames_are_infinite_without_a_gradient():
    """Three labels of which two repeat need four frames; neighbours are unhurt."""
    logits = np.random.default_rng(0).normal(size=(3, 4, 5))
    ids = np.array([[1, 1, 2]] * 3)
    (_, losses), gradient = evaluate(*make_problem(logits, [3, 4, 0], ids, [3, 3, 3]))
    np.testing.assert_array_equal(np.isfinite(losses), [False, True, False])
    assert not gradient[0].any() and gradient[1].any() and not gradient[2].any()

    def weigh_all(logits, mask, labels):
        return jnp.sum(ctc.ctc_loss(logits, mask, labels))

    problem = make_problem(logits, [3, 4, 0], ids, [3, 3, 3])
    assert np.isfinite(jax.jit(jax.grad(weigh_all))(*problem)).all()


def test_no_labels_mean_blanks():
    """An empty row costs −Σ log p(blank); an empty row without frames costs nothing."""
    logits = np.random.default_rng(0).normal(size=(2, 6, 5)).astype(np.float32)
    (_, losses), gradient = evaluate(
        *make_problem(logits, [6, 0], np.zeros((2, 3), int), [0, 0])
    )
    blank = jax.nn.log_softmax(logits[0])[:, 0]
    np.testing.assert_allclose(losses, [-np.sum(blank), 0.0], rtol=1e-5)
    assert not gradient[1].any()


def test_padding_never_matters():
    """More frames and labels behind the masks change neither loss nor gradient."""
    logits = np.random.default_rng(1).normal(size=(2, 8, 6))
    ids = np.array([[1, 2, 2], [3, 4, 5]])
    (_, losses), gradient = evaluate(*make_problem(logits, [8, 5], ids, [3, 1]))
    wide = make_problem(
        np.pad(logits, ((0, 0), (0, 5), (0, 0))),
        [8, 5],
        np.pad(ids, ((0, 0), (0, 4))),
        [3, 1],
    )
    (_, padded_losses), padded_gradient = evaluate(*wide)
    np.testing.assert_allclose(losses, padded_losses, rtol=1e-6)
    np.testing.assert_allclose(gradient, padded_gradient[:, :8], atol=1e-6)
    assert not padded_gradient[:, 8:].any() and not gradient[1, 5:].any()


def make_pair(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two views' logits, NaN behind the mask."""
    mask = np.array([[True] * 5, [True] * 3 + [False] * 2])
    views = np.random.default_rng(seed).normal(size=(2, 2, 5, 4)).astype(np.float32)
    views = np.where(mask[..., None], views, np.float32(np.nan))
    return views[0], views[1], mask


def test_consistency_is_half_the_symmetric_divergence():
    """½ Σ_t KL(b‖a) + KL(a‖b) over valid frames; nothing between equal views."""
    a, b, mask = make_pair(0)
    got = consistency(a, b, mask)
    expected = []
    for row in range(2):
        x, y = (np.float64(v[row][mask[row]]) for v in (a, b))
        p, q = (np.exp(v) / np.exp(v).sum(-1, keepdims=True) for v in (x, y))
        expected.append(0.5 * np.sum((p - q) * (np.log(p) - np.log(q))))
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    np.testing.assert_allclose(consistency(a, a, mask), 0.0, atol=1e-6)


def test_consistency_teaches_each_view_by_the_other():
    """Targets are constants: ∂/∂a = ½ (softmax(a) − softmax(b))."""
    a, b, mask = make_pair(1)
    gradient = jax.grad(lambda x: jnp.sum(consistency(x, b, mask)))(a)
    expected = 0.5 * (jax.nn.softmax(a) - jax.nn.softmax(b))
    np.testing.assert_allclose(gradient[mask], expected[mask], atol=1e-6)
    assert not gradient[~mask].any()


def test_greedy_collapses_repeats_and_blanks():
    """Where a label begins; the same label after a blank begins anew."""
    path = np.array([[0, 2, 2, 0, 2, 1, 1, 3], [3, 3, 0, 1, 1, 1, 1, 1]])
    mask = np.arange(8)[None] < np.array([[8], [4]])
    logits = np.where(mask[..., None], np.eye(4)[path], np.nan).astype(np.float32)
    ids, starts = jax.jit(ctc.greedy)(logits, mask)
    assert ids[0][starts[0]].tolist() == [2, 2, 1, 3]
    assert ids[1][starts[1]].tolist() == [3, 1]
    assert not ids[1, 4:].any()
