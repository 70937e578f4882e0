"""Speech is found where it is, and boundaries keep their promises."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nim4_jax.decode import endpoint
from nim4_jax.decode.endpoint import (
    END,
    START,
    BlankDetector,
    Boundary,
    EndpointConfig,
    EndpointState,
)
from nim4_jax.decode.silero import WINDOW

RATE = 16_000
LOW, MIDDLE, HIGH = 0.1, 0.4, 0.9  # below release, between, above the threshold

PROBABILITIES = st.lists(
    # Runs, so that utterances begin and end.
    st.tuples(st.sampled_from((LOW, LOW, MIDDLE, HIGH, HIGH)), st.integers(1, 12)),
    max_size=30,
).map(lambda runs: [value for value, count in runs for _ in range(count)])
CONFIGS = st.builds(
    EndpointConfig,
    min_speech=st.floats(0.0, 0.3),
    end_silence=st.floats(0.05, 0.5),
    pre_roll=st.floats(0.0, 0.5),
)


def follow(config, state, probabilities, frame=WINDOW):
    """State after the frames and their boundaries."""
    found = []
    for probability in probabilities:
        state, boundary = endpoint.judge(config, state, probability, frame)
        if boundary:
            found.append(boundary)
    return state, found


def count_frames(seconds, frame):
    return max(1, math.ceil(round(seconds * RATE) / frame))


@given(CONFIGS, PROBABILITIES, st.sampled_from((160, 512, 640)))
def test_utterances_alternate_and_never_overlap(config, probabilities, frame):
    state, ended, earliest = EndpointState(), 0, 0
    started = None
    for number, probability in enumerate(probabilities, start=1):
        state, boundary = endpoint.judge(config, state, probability, frame)
        position = number * frame
        assert state.position == position
        if boundary:
            assert boundary.known == position
            assert boundary.kind == (END if started is not None else START)
        if boundary and boundary.kind == START:
            assert earliest <= boundary.at < position and boundary.at >= ended
            needed = count_frames(config.min_speech, frame)
            span = probabilities[:number][-2 * needed - 1 :]
            # Enough frames of speech, none below release among the last of them.
            assert span.count(HIGH) >= needed
            loud = [i for i, value in enumerate(span) if value == HIGH][-needed]
            assert LOW not in span[loud:]
            started = boundary.at
        elif boundary:
            needed = count_frames(config.end_silence, frame)
            heard = [value for value in probabilities[:number] if value != MIDDLE]
            assert heard[-needed:] == [LOW] * needed
            assert boundary.at == position > started
            started, ended = None, position
        assert state.speaking == (started is not None)
        now = endpoint.find_earliest(config, state)
        assert earliest <= now <= position
        earliest = now


@given(CONFIGS, PROBABILITIES, PROBABILITIES)
def test_an_ended_utterance_leaves_nothing_behind(config, before, after):
    """After END and a silence, all goes as in a stream that was silent until then."""
    silence = [LOW] * 40
    used, _ = follow(config, EndpointState(), [*before, *silence])
    fresh, _ = follow(config, EndpointState(), [LOW] * (len(before) + 40))
    assert dataclasses.replace(used, floor=0) == fresh
    assert follow(config, used, after)[1] == follow(config, fresh, after)[1]


@pytest.mark.parametrize(
    ("probabilities", "kinds"),
    [
        ([HIGH] * 3, []),  # 0.1 s are 4 windows
        ([HIGH] * 4, [START]),
        ([HIGH] * 3 + [LOW] + [HIGH] * 3, []),
        ([HIGH] * 3 + [MIDDLE] + [HIGH], [START]),
        ([HIGH] * 3 + [MIDDLE] * 4 + [HIGH], []),
        ([MIDDLE] * 100, []),
        ([HIGH] * 4 + [LOW] * 18, [START]),  # 0.6 s are 19
        ([HIGH] * 4 + [LOW] * 19, [START, END]),
        ([HIGH] * 4 + [LOW] * 10 + [MIDDLE] + [LOW] * 9, [START, END]),
        ([HIGH] * 4 + [LOW] * 10 + [HIGH] + [LOW] * 18, [START]),
        ([HIGH] * 4 + [MIDDLE] * 100, [START]),
    ],
)
def test_the_truth_table(probabilities, kinds):
    _, found = follow(EndpointConfig(), EndpointState(), probabilities)
    assert [boundary.kind for boundary in found] == kinds


def test_the_pre_roll_reaches_back_to_the_last_end_at_most():
    config = EndpointConfig()
    burst, silence = [HIGH] * 4, [LOW] * 19
    _, found = follow(config, EndpointState(), [*burst, *silence, LOW, *burst])
    assert [boundary.at for boundary in found] == [0, 23 * WINDOW, 23 * WINDOW]
    _, found = follow(config, EndpointState(), [LOW] * 30 + burst)
    assert found == [Boundary(START, 30 * WINDOW - 4800, 34 * WINDOW)]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"threshold": 1.5}, "threshold 1.5"),
        ({"release": 0.6}, "release ≤ threshold"),
        ({"release": math.nan}, "release nan"),
        ({"min_speech": -0.1}, "min_speech is -0.1"),
        ({"pre_roll": math.inf}, "pre_roll is inf"),
        ({"end_silence": 0.0}, "end_silence is 0.0 s"),
    ],
)
def test_settings_without_sense_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        EndpointConfig(**given)


@pytest.mark.parametrize("probability", [math.nan, -0.1, 1.1])
def test_what_is_no_probability_is_refused(probability):
    with pytest.raises(ValueError, match=r"0 … 1"):
        endpoint.judge(EndpointConfig(), EndpointState(), probability, WINDOW)


@given(
    seed=st.integers(0, 2**31),
    cuts=st.lists(st.integers(0, 40), max_size=6),
    hold=st.sampled_from((0.04, 0.24, 0.5)),
)
def test_blank_frames_cut_anyhow_give_the_same(seed, cuts, hold):
    logits = np.random.default_rng(seed).normal(0, 3, (40, 5)).astype(np.float32)
    log_probs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    detector = BlankDetector(hold)
    state, made = detector.start(), []
    for piece in np.split(log_probs, sorted(cuts)):
        state, probabilities = detector.score(state, piece)
        made.append(probabilities)
    speech = 1 - np.exp(log_probs[:, 0])
    expected = [speech[max(0, u + 1 - detector.hold) : u + 1].max() for u in range(40)]
    _, whole = detector.score(detector.start(), log_probs)
    np.testing.assert_array_equal(np.concatenate(made), whole)
    np.testing.assert_allclose(whole, expected, atol=1e-6)


def test_a_peak_lasts_for_the_hold():
    log_probs = np.full((12, 3), -np.inf, np.float32)
    log_probs[:, 0] = 0.0
    log_probs[2] = [-np.inf, 0.0, -np.inf]
    detector = BlankDetector()
    _, made = detector.score(detector.start(), log_probs)
    assert made.tolist() == [0, 0, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0]


@pytest.mark.parametrize("value", [np.nan, 2.0])
def test_what_is_no_log_probability_is_refused(value):
    detector = BlankDetector()
    with pytest.raises(ValueError, match="log_softmax"):
        detector.score(detector.start(), np.full((2, 3), value, np.float32))
    with pytest.raises(ValueError, match=r"\[frames, phonemes\]"):
        detector.score(detector.start(), np.zeros(3, np.float32))
    with pytest.raises(ValueError, match="at least a frame"):
        BlankDetector(0.0)
