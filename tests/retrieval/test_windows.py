"""Windows mark the keys that they were cut from, where they were cut."""

import collections
from unittest import mock

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from nim4_jax.retrieval import automaton, windows
from nim4_jax.retrieval.windows import LONGEST, WIDTH

LENGTHS = (1, WIDTH - 1, WIDTH, WIDTH + 1, 7, 11, LONGEST, LONGEST + 1)
labels = st.sampled_from([1, 2, 3, 255])
sized = st.sampled_from(LENGTHS).flatmap(
    lambda size: st.lists(labels, min_size=size, max_size=size).map(bytes)
)
key_lists = st.sets(sized, max_size=30).map(sorted)


def mark(keys):
    """Windows of some keys, and the keys by number."""
    machine, numbered = automaton.build(keys)
    return windows.mark(machine), numbered


def list_marks(marked):
    """Key → (place, phonemes of the window) of each of its marks."""
    marks = collections.defaultdict(list)
    for row, window in enumerate(marked.phonemes):
        for index in range(marked.first[row], marked.first[row + 1]):
            place = int(marked.places[index])
            marks[int(marked.keys[index])].append((place, window.tobytes()))
    return marks


def cut(key):
    """All windows of a key, in their order; none of one that is not looked for."""
    if not WIDTH <= len(key) <= LONGEST:
        return []
    return [key[start : start + WIDTH] for start in range(len(key) - WIDTH + 1)]


@given(keys=key_lists)
def test_a_window_stands_at_its_place_in_its_key(keys):
    marked, numbered = mark(keys)
    for key, marks in list_marks(marked).items():
        for place, window in marks:
            assert numbered[key][place : place + WIDTH] == window


@given(keys=key_lists)
def test_keys_that_are_neither_short_nor_long_have_one_mark_or_two_apart(keys):
    marked, numbered = mark(keys)
    marks = list_marks(marked)
    assert sum(map(len, marks.values())) == len(marked.keys)
    for key, spelled in enumerate(numbered):
        places = [place for place, _ in marks[key]]
        assert len(places) in ((1, 2) if cut(spelled) else (0,))
        assert max(places, default=0) - min(places, default=0) != 1


@given(keys=key_lists)
def test_a_key_is_marked_by_a_window_as_rare_as_any_of_it(keys):
    marked, numbered = mark(keys)
    counts = collections.Counter(window for key in keys for window in cut(key))
    for key, marks in list_marks(marked).items():
        rarest = min(counts[window] for window in cut(numbered[key]))
        assert min(counts[window] for _, window in marks) == rarest


@given(keys=key_lists)
def test_windows_are_distinct_and_ascend(keys):
    marked, _ = mark(keys)
    spelled = [window.tobytes() for window in marked.phonemes]
    assert spelled == sorted(set(spelled))
    assert marked.first[0] == 0 and marked.first[-1] == len(marked.keys)
    assert (np.diff(marked.first.astype(int)) > 0).all()


@given(keys=key_lists, first=st.integers(0, 255), second=st.integers(0, 255))
def test_pairs_tell_where_windows_that_begin_so_are(keys, first, second):
    marked, _ = mark(keys)
    if keys:
        assert not len(marked.pairs)  # few windows need no table
    marked, _ = mark(keys)
    with mock.patch.object(windows, "_FEW", 0):
        assert len(marked.pairs) == 256 * 257
    spelled = [window.tobytes() for window in marked.phonemes]
    heads = [(first, second), *((window[0], window[1]) for window in spelled)]
    for one, other in heads:
        smaller = [window for window in spelled if window[:2] < bytes([one, other])]
        assert marked.pairs[256 * one + other] == len(smaller)
    assert marked.pairs[256 * 256] == len(marked)


@given(keys=key_lists)
def test_origins_tell_where_each_key_is_spelled(keys):
    marked, numbered = mark(keys)
    for key, spelled in enumerate(numbered):
        begin = marked.origins[len(spelled)] + len(spelled) * key
        assert marked.spelled[begin : begin + len(spelled)].tobytes() == spelled


def test_a_second_window_that_is_in_too_many_places_marks_nothing():
    shared = bytes(range(1, 9))
    for count, marks in ((40, 2), (200, 1)):
        marked, _ = mark([shared + bytes([last]) for last in range(10, 10 + count)])
        assert len(marked.keys) == marks * count


def test_no_keys_have_no_windows():
    for keys in ([], [b"\x01"], [bytes([1] * (LONGEST + 1))]):
        marked, _ = mark(keys)
        assert len(marked) == len(marked.keys) == len(marked.places) == 0
        assert marked.phonemes.shape == (0, WIDTH)
        assert marked.first.tolist() == [0]
        assert not marked.pairs.any()
        assert len(marked.spelled) == sum(map(len, keys))
