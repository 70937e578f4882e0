"""Which hits stay: the longest exact ones, and near ones that nothing beats."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from nim4_jax.retrieval.rules import find_strongest

hits = st.tuples(
    st.integers(0, 12), st.integers(1, 8), st.sampled_from([-2.0, 0.5, 3.0, 7.25])
)
hit = st.tuples(hits, st.booleans()).map(
    lambda drawn: (drawn[0][0], drawn[0][0] + drawn[0][1], drawn[0][2], drawn[1])
)
hit_lists = st.lists(hit, max_size=14)


def keep(found):
    """Those of the hits (start, end, strength, exact) that stay."""
    columns = [list(column) for column in zip(*found)] or [[]] * 4
    kept = find_strongest(
        np.array(columns[0], np.int64),
        np.array(columns[1], np.int64),
        np.array(columns[2], np.float64),
        np.array(columns[3], bool),
    )
    assert len(kept) == len(found)
    return [one for one, stays in zip(found, kept) if stays]


def overlap(one, other):
    return one[0] < other[1] and other[0] < one[1]


def length(one):
    return one[1] - one[0]


def beats(one, other):
    """Whether a hit that stays makes another one go."""
    if not overlap(one, other) or (other[3] and not one[3]):
        return False
    if one[3]:
        return length(one) > length(other) - (not other[3])
    return one[2] > other[2]


@given(found=hit_lists)
def test_no_two_that_stay_overlap_where_one_is_exact_and_longer(found):
    kept = [one for one in keep(found) if one[3]]
    for one, other in itertools.combinations(kept, 2):
        assert not overlap(one, other) or length(one) == length(other)


@given(found=hit_lists)
def test_what_stays_is_beaten_by_nothing_that_stays_and_what_goes_is(found):
    kept = keep(found)
    for one in found:
        assert (one in kept) != any(beats(other, one) for other in kept)


@given(found=hit_lists)
def test_near_hits_never_remove_exact_ones(found):
    exact = [one for one in found if one[3]]
    assert [one for one in keep(found) if one[3]] == keep(exact)


@given(found=hit_lists)
def test_the_longest_exact_and_the_strongest_free_near_hit_stay(found):
    kept = keep(found)
    exact = [one for one in found if one[3]]
    near = [one for one in found if not one[3]]
    if exact:
        assert max(exact, key=length) in kept
    free = [one for one in near if not any(overlap(one, other) for other in exact)]
    strongest = max((one[2] for one in near), default=0.0)
    assert all(one in kept for one in free if one[2] == strongest)


@given(found=hit_lists, data=st.data())
def test_the_order_of_the_hits_does_not_matter(found, data):
    shuffled = data.draw(st.permutations(found))
    assert sorted(keep(shuffled)) == sorted(keep(found))


@given(one=hit, count=st.integers(1, 6), shift=st.integers(0, 3))
def test_equal_ones_all_stay(one, count, shift):
    start, end, strength, exact = one
    alike = [
        (start + shift * index, end + shift * index, strength, exact)
        for index in range(count)
    ]
    assert keep(alike) == alike


def test_keeping_twice_keeps_the_same():
    found = [(0, 3, 0.0, True), (2, 7, 0.0, True), (6, 9, 1.0, False)]
    assert keep(found) == keep(keep(found)) == [(2, 7, 0.0, True)]
    assert keep([(0, 3, 0.0, True), (0, 9, 1.0, False)]) == [
        (0, 3, 0.0, True),
        (0, 9, 1.0, False),
    ]
