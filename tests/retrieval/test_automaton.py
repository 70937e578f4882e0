"""The automaton finds what a search through every place and key finds."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nim4_jax.retrieval import automaton

phonemes = st.lists(st.integers(1, 3), max_size=40).map(bytes)
names = st.sets(st.lists(st.integers(1, 3), min_size=1, max_size=6).map(bytes))
name_lists = names.map(lambda keys: sorted(keys, key=lambda key: (len(key), key)))


def search(keys, heard):
    """Every (end, start, key), by trying all."""
    found = []
    for key, name in enumerate(keys):
        for start in range(len(heard) - len(name) + 1):
            if heard[start : start + len(name)] == name:
                found.append((start + len(name), start, key))
    return sorted(found)


def as_set(matches):
    return sorted(
        zip(matches.ends.tolist(), matches.starts.tolist(), matches.keys.tolist())
    )


def ids(heard):
    return np.frombuffer(heard, np.uint8)


@given(keys=name_lists, heard=phonemes)
def test_matches_are_those_of_a_search_through_everything(keys, heard):
    _, matches = automaton.build(keys)[0].scan(automaton.ROOT, ids(heard))
    assert as_set(matches) == search(keys, heard)
    assert matches.ends.tolist() == sorted(matches.ends.tolist())


@given(keys=name_lists, heard=phonemes, data=st.data())
def test_a_stream_in_any_pieces_matches_as_the_whole(keys, heard, data):
    machine, _ = automaton.build(keys)
    whole, expected = machine.scan(automaton.ROOT, ids(heard))
    state, position, found = automaton.ROOT, 0, []
    while position < len(heard):
        size = data.draw(st.integers(0, 5))
        piece = ids(heard[position : position + size])
        state, matches = machine.scan(state, piece, position=position)
        found += as_set(matches)
        position += len(piece)
    assert state == whole
    assert found == as_set(expected)


@given(keys=name_lists, heard=phonemes, data=st.data())
def test_only_allowed_keys_match(keys, heard, data):
    allowed = np.array([data.draw(st.booleans()) for _ in keys], bool)
    machine, _ = automaton.build(keys)
    _, matches = machine.scan(0, ids(heard), allowed=machine.allow(allowed))
    expected = [match for match in search(keys, heard) if allowed[match[2]]]
    assert as_set(matches) == expected


@given(keys=name_lists, heard=phonemes)
def test_of_overlapping_matches_the_longest_stay(keys, heard):
    _, every = automaton.build(keys)[0].scan(0, ids(heard))
    kept = as_set(every.longest())
    for end, start, _ in kept:
        for other_end, other_start, _ in kept:
            apart = end <= other_start or start >= other_end
            assert apart or end - start == other_end - other_start
    longest = [end - start for end, start, _ in kept]
    for end, start, key in set(as_set(every)) - set(kept):
        covering = [e - s for e, s, _ in kept if not (e <= start or s >= end)]
        assert max(covering) > end - start, key
    assert max(longest, default=0) == max(every.ends - every.starts, default=0)


def test_more_matches_than_there_is_room_for():
    keys = [bytes([1] * n) for n in range(1, 30)]
    heard = bytes([1] * 200)
    _, matches = automaton.build(keys)[0].scan(0, ids(heard))
    assert as_set(matches) == search(keys, heard)
    assert len(matches) > 1000


def test_many_children_are_searched():
    keys = sorted(bytes([a, b]) for a in range(1, 250) for b in (1, 120, 249))
    machine, _ = automaton.build(keys)
    for key, name in enumerate(keys):
        _, matches = machine.scan(0, ids(name))
        assert matches.keys.tolist() == [key]


def test_no_keys_match_nothing():
    machine, _ = automaton.build([])
    state, matches = machine.scan(0, ids(b"\x01\x02"))
    assert state == automaton.ROOT and len(matches) == 0


@given(keys=st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=6).map(bytes)))
def test_keys_are_numbered_by_length_and_phonemes_whatever_their_order(keys):
    machine, numbered = automaton.build(keys)
    assert numbered == sorted(set(keys), key=lambda key: (len(key), key))
    assert [machine.spell(key) for key in range(len(numbered))] == numbered
    assert machine.lengths.tolist() == list(map(len, numbered))


def test_a_key_without_phonemes_is_refused():
    with pytest.raises(ValueError, match="without phonemes"):
        automaton.build([b"\x01", b""])
