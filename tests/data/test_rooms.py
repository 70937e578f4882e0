"""Rooms: how long they reverberate, what stays in place, how loud speech is in them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nim4_jax.data.noise import mixing, rooms

RATE = 16_000
seeds = st.integers(0, 2**31)


def make(seed: int, **options) -> tuple[rooms.Room, np.ndarray]:
    rng = np.random.default_rng(seed)
    room = rooms.draw_room(rng, **options)
    return room, rooms.make_response(rng, room)


def measure_reverberation(response: np.ndarray) -> float:
    """RT60 from the decay between −5 and −25 dB, by Schroeder's backward integral.

    Direct sound and the reflections of the first 5 ms are left out: near a talker they
    are so much louder than the room that the decay would begin with a step.
    """
    energy = np.square(response[80:], dtype=np.float64)
    decay = np.cumsum(energy[::-1])[::-1]
    level = 10 * np.log10(decay / decay[0])
    inside = np.flatnonzero((level <= -5) & (level >= -25))
    slope, _ = np.polyfit(inside / RATE, level[inside], 1)
    return -60 / slope


@settings(max_examples=60, deadline=None)
@given(seeds, st.floats(0.15, 0.9))
def test_a_room_reverberates_as_long_as_it_should(seed, wanted):
    room, response = make(seed, reverberation=wanted)
    assert room.reverberation == wanted
    assert measure_reverberation(response) == pytest.approx(wanted, rel=0.2)


@settings(max_examples=60, deadline=None)
@given(seeds)
def test_direct_sound_is_the_first_sample_and_the_largest(seed):
    _, response = make(seed)
    assert response[0] == 1.0 and response.dtype == np.float32
    assert np.isfinite(response).all()
    assert np.abs(response[RATE // 20 :]).max() < 1.0


@settings(max_examples=30, deadline=None)
@given(seeds)
def test_a_response_hangs_on_its_seed_alone(seed):
    room, response = make(seed)
    again, same = make(seed)
    other, different = make(seed + 1)
    assert room == again and room != other
    np.testing.assert_array_equal(response, same)
    assert len(different) != len(response) or (different != response).any()


@settings(max_examples=100, deadline=None)
@given(seeds, st.floats(0.3, 4.0))
def test_everybody_stands_inside_at_the_distance(seed, distance):
    room, _ = make(seed, distance=distance)
    assert room.distance <= distance + 1e-9
    for place in (room.talker, room.microphone):
        for length, position in zip(room.size, place):
            assert 0.3 - 1e-9 <= position <= length - 0.3 + 1e-9
    for length, (low, high) in zip(room.size, rooms.SIZES):
        assert low <= length <= high
    if distance <= 1.8:  # the shortest side leaves so much
        assert room.distance == pytest.approx(distance)
    drawn = rooms.draw_room(np.random.default_rng(seed))
    assert drawn.size == room.size  # what is given moves no other draw


def test_drawn_rooms_are_of_all_kinds():
    drawn = [rooms.draw_room(np.random.default_rng(seed)) for seed in range(2000)]
    times = np.array([room.reverberation for room in drawn])
    distances = np.array([room.distance for room in drawn])
    assert times.min() < 0.17 and times.max() > 0.88
    assert distances.min() < 0.35 and distances.max() > 3.7
    assert 1.0 < np.median(distances) < 1.4  # √(0.3 · 4) = 1.1 m


def test_the_tail_goes_on_where_the_images_end():
    """In the mean over rooms, energy falls by what the decay says, and by no step."""
    ratios = []
    for seed in range(400):
        room, response = make(seed, reverberation=0.5)
        energy = np.square(response, dtype=np.float64)
        before, behind = energy[480:640].sum(), energy[800:960].sum()
        # One after 30 … 40 ms, one after 50 … 60 ms: 20 ms of 500 are 2.4 dB.
        ratios.append(10 * np.log10(behind / before))
        assert room.reverberation == 0.5
    assert np.median(ratios) == pytest.approx(-2.4, abs=0.7)


def test_a_far_talker_is_more_reverberant_than_a_near_one():
    ratios = []
    for distance in (0.5, 1.0, 2.0):
        shares = []
        for seed in range(200):
            _, response = make(seed, reverberation=0.5, distance=distance)
            energy = np.square(response, dtype=np.float64)
            shares.append(-10 * np.log10(energy[80:].sum()))
        ratios.append(np.median(shares))
    # Direct sound loses 6 dB when the distance doubles, the room's sound does not.
    assert 4 < ratios[0] - ratios[1] < 7 and 4 < ratios[1] - ratios[2] < 7


def make_speech(seed: int, size: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    loudness = np.maximum(np.sin(np.arange(size) / 1500), 0) * 0.05
    return (loudness * rng.standard_normal(size)).astype(np.float32)


@settings(max_examples=40, deadline=None)
@given(seeds, st.integers(600, 40_000), st.integers(0, 20_000))
def test_speech_keeps_its_level_and_its_place(seed, size, spare):
    speech = make_speech(seed, size)
    _, response = make(seed)
    heard = rooms.reverberate(speech, response, size + spare)
    assert heard.dtype == np.float32 and len(heard) == size + spare
    active = mixing.find_active(speech)
    before = mixing.measure_power(speech[active])
    after = mixing.measure_power(heard[:size][active])
    assert after == pytest.approx(before, rel=1e-3) or np.abs(heard).max() > 0.99
    # What is heard first is heard at its time, and nothing before it.
    expected = np.convolve(speech[:600], response[:600])[:600]
    assert np.corrcoef(heard[:600], expected)[0, 1] > 0.999


@given(st.integers(1, 5000))
def test_a_dry_room_changes_nothing(size):
    speech = make_speech(1, size)
    heard = rooms.reverberate(speech, np.ones(1, np.float32), size)
    np.testing.assert_allclose(heard, speech, atol=1e-6)


def test_silence_stays_silent_and_nothing_clips():
    _, response = make(3)
    silence = np.zeros(1000, np.float32)
    assert not rooms.reverberate(silence, response, 1500).any()
    loud = np.sign(make_speech(0, 20_000)) * np.float32(0.999)
    heard = rooms.reverberate(loud, response, 20_000)
    assert 0.9 < np.abs(heard).max() < 1
