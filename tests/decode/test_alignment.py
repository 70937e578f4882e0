"""Forced alignment against the enumeration of every path."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nim4_jax.decode import alignment


def collapse(classes):
    """CTC's collapsing: repeats merged, then blanks dropped."""
    merged = [c for c, _ in itertools.groupby(classes)]
    return [c for c in merged if c != 0]


def make_log_probs(seed: int, frames: int, classes: int) -> np.ndarray:
    logits = np.random.default_rng(seed).normal(0, 2, (frames, classes))
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


@given(
    seed=st.integers(0, 2**31),
    frames=st.integers(1, 6),
    labels=st.lists(st.integers(1, 2), max_size=4),
)
def test_the_best_of_all_paths(seed, frames, labels):
    log_probs = make_log_probs(seed, frames, 3)
    scores = {
        classes: sum(log_probs[t, c] for t, c in enumerate(classes))
        for classes in itertools.product(range(3), repeat=frames)
        if collapse(classes) == labels
    }
    if not scores:
        assert frames < alignment.count_needed_frames(labels)
        with pytest.raises(ValueError, match="frames"):
            alignment.align(log_probs, labels)
        return
    path, score = alignment.align(log_probs, labels)
    classes = tuple(labels[p] if p >= 0 else 0 for p in path)
    assert collapse(classes) == labels
    assert score == pytest.approx(max(scores.values()))
    assert score == pytest.approx(scores[classes])


@given(seed=st.integers(0, 2**31), frames=st.integers(0, 60), count=st.integers(0, 20))
def test_a_path_visits_the_labels_in_order(seed, frames, count):
    random = np.random.default_rng(seed)
    labels = random.integers(1, 9, count).tolist()
    if frames < alignment.count_needed_frames(labels):
        return
    path, score = alignment.align(make_log_probs(seed, frames, 9), labels)
    visited = path[path != alignment.BLANK]
    assert (np.diff(visited) >= 0).all() and set(visited) == set(range(count))
    assert len(path) == frames and score <= 0.0


def align_by_tables(log_probs, labels):
    """The textbook search over the labels with blanks between, one cell at a time.

    As torchaudio's `forced_align` words it: alpha[t, s] from s, s − 1 and s − 2, the
    last only between different labels; back from the better of the two last states.
    """
    states = [0]
    for label in labels:
        states += [label, 0]
    frames, count = len(log_probs), len(states)
    alpha = np.full((frames, count), -np.inf)
    back = np.zeros((frames, count), int)
    for s in range(min(2, count)):
        alpha[0, s] = log_probs[0, states[s]]
    for t in range(1, frames):
        for s in range(count):
            ways = [(alpha[t - 1, s], s)]
            if s >= 1:
                ways.append((alpha[t - 1, s - 1], s - 1))
            if s >= 2 and states[s] != 0 and states[s] != states[s - 2]:
                ways.append((alpha[t - 1, s - 2], s - 2))
            best, back[t, s] = max(ways, key=lambda way: way[0])
            alpha[t, s] = best + log_probs[t, states[s]]
    s = max(range(max(0, count - 2), count), key=lambda state: alpha[-1, state])
    score, path = alpha[-1, s], []
    for t in range(frames - 1, -1, -1):
        path.append(s)
        s = back[t, s]
    return [s // 2 if s % 2 else alignment.BLANK for s in reversed(path)], score


@given(seed=st.integers(0, 2**31), frames=st.integers(1, 90), count=st.integers(0, 24))
def test_the_path_is_that_of_a_reference_forced_alignment(seed, frames, count):
    labels = np.random.default_rng(seed).integers(1, 7, count).tolist()
    if frames < alignment.count_needed_frames(labels):
        return
    log_probs = make_log_probs(seed, frames, 7)
    expected, total = align_by_tables(log_probs, labels)
    path, score = alignment.align(log_probs, labels)
    assert path.tolist() == expected
    assert score == pytest.approx(total)


def test_a_repeated_label_needs_a_blank_between():
    # The repeated label is by far the best class of every frame.
    log_probs = np.log(np.tile([[0.1, 0.9]], (3, 1)))
    path, score = alignment.align(log_probs, [1, 1])
    assert path.tolist() == [0, alignment.BLANK, 1]
    assert score == pytest.approx(2 * np.log(0.9) + np.log(0.1))


@pytest.mark.parametrize("label", [0, 5, -1])
def test_a_label_out_of_range_is_named(label):
    with pytest.raises(ValueError, match=r"1 … 4"):
        alignment.align(make_log_probs(0, 4, 5), [1, label])


def test_more_labels_than_a_byte_counts():
    labels = [1 + place % 5 for place in range(150)]
    scores = np.full((400, 6), -9.0, np.float32)
    for place, label in enumerate(labels):
        scores[20 + 2 * place, label] = -0.1
    scores[np.max(scores, axis=1) < -1.0, 0] = -0.1
    path, _ = alignment.align(scores, labels)
    assert [label for label in path.tolist() if label >= 0] == list(range(150))
