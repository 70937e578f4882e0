"""The plan of batches: coverage, fixed shapes, mixtures, purity."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nim4_jax.data.pipeline import buckets
from nim4_jax.data.pipeline.buckets import Bucket, Lengths, Perturbations, TrainPlan
from nim4_jax.rates import Rates

SHAPES = (Bucket(2.0, 4, 20, 30), Bucket(4.0, 3, 40, 60), Bucket(8.0, 2, 80, 120))


def make_lengths(seconds) -> Lengths:
    seconds = np.asarray(seconds, np.float64)
    labels = np.floor(seconds * 5).astype(np.int64) + 1
    return Lengths(seconds, labels, np.zeros_like(labels), labels)


def make_plan(seconds, *, weights=(1.0,), groups=None, speeds=(1.0,), seed=0):
    groups = [np.arange(len(seconds))] if groups is None else groups
    lengths = make_lengths(seconds)
    return TrainPlan(
        groups, list(weights), lengths, SHAPES, Perturbations(speeds), seed=seed
    )


def count_rows(batches) -> Counter:
    """How often each example occurs, without the rows that only fill up."""
    kept = [b.indices[: len(b.indices) - b.repeated] for b in batches]
    return Counter(np.concatenate(kept).tolist())


durations = st.lists(st.floats(0.5, 7.9), min_size=1, max_size=40)


@settings(max_examples=60, deadline=None)
@given(durations, st.integers(0, 2**31), st.integers(0, 3), st.booleans())
def test_an_epoch_holds_each_example_once(seconds, seed, epoch, perturb):
    speeds = (0.9, 1.0, 1.1) if perturb else (1.0,)
    plan = make_plan(seconds, seed=seed, speeds=speeds)
    batches = plan.epoch(epoch)
    assert count_rows(batches) == Counter(range(len(seconds)))
    repeated = sum(batch.repeated for batch in batches)
    assert repeated < max(shape.batch for shape in SHAPES)


@settings(max_examples=60, deadline=None)
@given(durations, st.integers(0, 2**31), st.booleans())
def test_every_row_fits_its_fixed_shape(seconds, seed, perturb):
    speeds = (0.9, 1.0, 1.1) if perturb else (1.0,)
    plan = make_plan(seconds, seed=seed, speeds=speeds)
    for batch in plan.epoch(0):
        shape = SHAPES[batch.bucket]
        assert batch.indices.shape == batch.speeds.shape == (shape.batch,)
        lengths = plan.lengths.take(batch.indices)
        assert (lengths.seconds / batch.speeds <= shape.seconds).all()
        assert (lengths.phonemes <= shape.phonemes).all()


@settings(max_examples=30, deadline=None)
@given(durations, st.integers(0, 2**31), st.lists(st.integers(0, 60), max_size=6))
def test_a_step_does_not_depend_on_what_was_asked_before(seconds, seed, steps):
    straight = make_plan(seconds, seed=seed)
    row = [straight[step] for step in range(61)]
    jumping = make_plan(seconds, seed=seed)
    for step in steps:
        assert jumping[step].epoch == row[step].epoch
        np.testing.assert_array_equal(jumping[step].indices, row[step].indices)
        np.testing.assert_array_equal(jumping[step].speeds, row[step].speeds)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(3, 12),
    st.integers(3, 12),
    st.sampled_from([0.25, 0.5, 1.0, 1.5, 2.0, 3.0]),
)
def test_weights_are_passes_over_a_source(first, second, weight):
    groups = [np.arange(first), first + np.arange(second)]
    plan = make_plan([1.0] * (first + second), groups=groups, weights=(1.0, weight))
    epochs = 4
    counts = Counter()
    for epoch in range(epochs):
        counts += count_rows(plan.epoch(epoch))
    assert all(counts[index] == epochs for index in groups[0].tolist())
    # All the weights are multiples of ¼: four epochs make whole passes.
    assert {counts[index] for index in groups[1].tolist()} == {epochs * weight}


def test_epochs_and_seeds_differ():
    seconds = np.linspace(0.6, 7.5, 40)
    plan = make_plan(seconds)
    first = np.concatenate([batch.indices for batch in plan.epoch(0)])
    second = np.concatenate([batch.indices for batch in plan.epoch(1)])
    other = make_plan(seconds, seed=1).epoch(0)
    assert first.tolist() != second.tolist()
    assert first.tolist() != np.concatenate([b.indices for b in other]).tolist()


def test_a_speed_that_does_not_fit_is_not_used():
    # 7.9 s at 0.9 would last 8.8 s, longer than the largest bucket.
    plan = make_plan([7.9] * 8, speeds=(0.9,))
    assert all((batch.speeds == 1.0).all() for batch in plan.epoch(0))
    # 12 labels in 0.5 s: 48 frames, 12 encoder frames; at 1.1 only 11.
    tight = Lengths(np.array([0.5]), np.array([12]), np.array([0]), np.array([1]))
    plan = TrainPlan([np.array([0])], [1.0], tight, SHAPES, Perturbations((1.1,)))
    assert plan[0].speeds.tolist() == [1.0] * 4


def test_labels_move_an_example_to_a_larger_bucket():
    lengths = Lengths(
        np.array([1.0, 1.0, 1.0, 9.0]),
        np.array([20, 21, 81, 1]),
        np.zeros(4, np.int64),
        np.ones(4, np.int64),
    )
    assert buckets.assign_buckets(lengths, SHAPES).tolist() == [0, 1, 3, 3]


def test_encoder_frames_of_known_lengths():
    # 400 samples are one 10 ms frame; four of those (880) are still one encoder frame.
    known = {0: 0, 399: 0, 400: 1, 559: 1, 880: 1, 1040: 2, 16000: 25}
    for samples, frames in known.items():
        assert Rates().count_encoder_frames(samples) == frames


def test_repeated_labels_need_one_more_frame():
    def one(repeats: int) -> Lengths:
        return Lengths(*(np.array([n]) for n in (0.5, 12, repeats, 1)))

    assert buckets.is_ctc_feasible(one(0)).tolist() == [True]
    assert buckets.is_ctc_feasible(one(1)).tolist() == [False]


@settings(max_examples=40, deadline=None)
@given(durations)
def test_evaluation_holds_each_example_once_by_length(seconds):
    lengths = make_lengths(seconds)
    plan = buckets.plan_evaluation(np.arange(len(seconds)), lengths, SHAPES)
    indices = np.concatenate([batch.indices for batch in plan])
    order = indices[indices >= 0]
    assert sorted(order.tolist()) == list(range(len(seconds)))
    assert (np.diff(lengths.seconds[order]) >= 0).all()
    assert all(len(b.indices) == SHAPES[b.bucket].batch for b in plan)


def test_a_plan_refuses_what_fits_no_bucket():
    with pytest.raises(ValueError, match=r"1 of 2 examples fit no bucket.*first \[1\]"):
        make_plan([1.0, 9.0])
    with pytest.raises(ValueError, match="give at least one"):
        make_plan([])
