"""Silero in NumPy says what the reference says, and streams do not touch each other."""

import dataclasses
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nim4_jax
from nim4_jax.data.audio import reading
from nim4_jax.data.sources import opening
from nim4_jax.decode import endpoint
from nim4_jax.decode.endpoint import END, START, EndpointConfig, EndpointState
from nim4_jax.decode.silero import WINDOW, Silero

RATE = 16_000
GOLDEN = Path(__file__).parents[1] / "goldens" / "silero.npy"


@pytest.fixture(scope="module")
def silero():
    return Silero()


@pytest.fixture(scope="module")
def spoken():
    """Float32 [N, 512] of a command."""
    record = opening.open_source("bundled:commands:test")[0]
    return cut(reading.decode(record["audio"])[: 2 * RATE])


def cut(samples):
    """Whole windows."""
    count = len(samples) // WINDOW
    return samples[: count * WINDOW].reshape(count, WINDOW).astype(np.float32)


def score(silero, samples):
    return silero.score(silero.start(), cut(samples))[1]


def find_boundaries(silero, samples):
    state, found = EndpointState(), []
    for probability in score(silero, samples).tolist():
        state, boundary = endpoint.judge(EndpointConfig(), state, probability, WINDOW)
        found += [boundary] if boundary else []
    return found


def test_probabilities_are_the_reference_s(silero):
    """Golden: onnxruntime with silero-vad 6.2.3, see `make_silero.py`."""
    records = opening.open_source("bundled:commands:test")
    decoded = [reading.decode(records[index]["audio"]) for index in range(6)]
    random, speech = np.random.default_rng(0), np.concatenate(decoded)
    noisy = 0.5 * speech + random.normal(0, 0.02, len(speech))
    noise = random.normal(0, 0.1, 40 * WINDOW)
    made = score(silero, np.concatenate([speech, noisy, noise, np.zeros(40 * WINDOW)]))
    expected = np.load(GOLDEN)
    assert len(expected) > 900 and expected.min() < 0.01 and expected.max() > 0.99
    np.testing.assert_allclose(made, expected, atol=1e-4)


@settings(max_examples=20)
@given(st.lists(st.integers(0, 70), max_size=9), st.integers(0, 2**31))
def test_no_company_and_no_piece_changes_a_bit(silero, counts, seed):
    """Any number of windows of any number of streams at once, in any order."""
    random = np.random.default_rng(seed)
    streams = [random.normal(0, 0.1, (count, WINDOW)).astype("f4") for count in counts]
    states, made = [silero.start() for _ in streams], [[] for _ in streams]
    places = [0] * len(streams)
    while any(place < len(own) for place, own in zip(places, streams)):
        sizes = random.integers(0, 40, len(streams)).tolist()
        rows = random.permutation(len(streams))[: random.integers(1, 10)].tolist()
        pieces = [streams[row][places[row] :][: sizes[row]] for row in rows]
        scored = silero.score_many([states[row] for row in rows], pieces)
        for row, piece, (state, scores) in zip(rows, pieces, scored, strict=True):
            states[row] = state
            made[row] += scores.tolist()
            places[row] += len(piece)
    for state, own, said in zip(states, streams, made):
        after, expected = silero.score(silero.start(), own)
        assert said == expected.tolist()
        for left, right in zip(dataclasses.astuple(state), dataclasses.astuple(after)):
            np.testing.assert_array_equal(left, right)


def test_states_are_not_changed(silero, spoken):
    state = silero.start()
    first = silero.score(state, spoken[:9])[1]
    assert (silero.score(state, spoken[:9])[1] == first).all()
    assert silero.score_many([], []) == []


def measure_speech(samples):
    """First and last sample within 26 dB of the loudest 20 ms."""
    power = np.convolve(samples**2, np.ones(320) / 320, "same")
    loud = np.flatnonzero(power > 0.05**2 * power.max())
    return loud[0], loud[-1]


@pytest.mark.parametrize("noise", [0.0, 1e-3])
def test_each_command_is_one_utterance(silero, noise):
    """All 170 were, and all 40 of the human prompts."""
    records = opening.open_source("bundled:commands:test")
    random, pad = np.random.default_rng(0), 24_000
    whole = 0
    for index in range(0, 160, 8):
        samples = reading.decode(records[index]["audio"])
        first, last = measure_speech(samples)
        padded = np.pad(samples, pad) + random.normal(0, noise, len(samples) + 2 * pad)
        found = find_boundaries(silero, padded.astype(np.float32))
        if [boundary.kind for boundary in found] == [START, END]:
            begin, end = (boundary.at - pad for boundary in found)
            whole += begin <= first and last <= end < last + 1.2 * RATE
    assert whole >= 19


@pytest.mark.parametrize("kind", ["silence", "vehicle", "music"])
def test_what_is_no_speech_is_not_heard(silero, kind):
    """None of 100 of each kind began an utterance."""
    recordings = opening.open_source(f"nonspeech:20?kinds={kind}")
    heard = [find_boundaries(silero, reading.decode(r["audio"])) for r in recordings]
    assert sum(map(bool, heard)) <= 1


@pytest.mark.parametrize("level", [0.0, 1e-4, 0.01, 0.3])
def test_white_noise_is_no_speech(silero, level):
    samples = np.random.default_rng(0).normal(0, level, 8 * RATE)
    assert not find_boundaries(silero, samples)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_window_that_is_not_finite_is_refused(silero, value):
    windows = np.zeros((2, WINDOW), np.float32)
    windows[1, 100] = value
    with pytest.raises(ValueError, match="NaN or infinite"):
        silero.score(silero.start(), windows)


@pytest.mark.parametrize(
    "windows",
    [np.zeros((1, 511), "f4"), np.zeros(512, "f4"), np.zeros((1, 512), int)],
)
def test_a_window_of_another_form_is_refused(silero, windows):
    with pytest.raises(ValueError, match=r"expected \[N, 512\] float samples"):
        silero.score(silero.start(), windows)


def test_the_model_comes_with_its_licence():
    folder = resources.files(nim4_jax) / "pretrained"
    assert (folder / "silero_vad.safetensors").is_file()
    assert "MIT License" in (folder / "silero_vad.LICENSE").read_text()
