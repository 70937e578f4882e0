"""Tempo without pitch: lengths, pitch, timing, level."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nim4_jax.data.audio import reading
from nim4_jax.data.noise import mixing, tempo
from nim4_jax.data.sources import opening

RATE = 16_000
FACTORS = st.floats(0.7, 1.5)


def make_voice(pitch: float, size: int) -> np.ndarray:
    """Pulses of a voice at a pitch in Hz, float32 [size]."""
    time = np.arange(size) / RATE
    parts = [np.cos(2 * np.pi * pitch * k * time) / k for k in range(1, 8)]
    return (0.1 * np.sum(parts, axis=0)).astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(FACTORS, st.integers(0, 30_000))
def test_the_duration_is_divided(factor, size):
    samples = np.random.default_rng(size).standard_normal(size).astype(np.float32)
    changed = tempo.change_tempo(samples, factor)
    assert len(changed) == round(size / factor) and changed.dtype == np.float32
    assert np.isfinite(changed).all()
    np.testing.assert_array_equal(changed, tempo.change_tempo(samples, factor))


@settings(max_examples=40, deadline=None)
@given(FACTORS, st.floats(90, 350))
def test_the_pitch_stays(factor, pitch):
    changed = tempo.change_tempo(make_voice(pitch, 32_000), factor)[2000:-2000]
    power = np.abs(np.fft.rfft(changed * np.hanning(len(changed)))) ** 2
    places = np.arange(len(power)) * RATE / len(changed)
    near = np.zeros(len(power), bool)
    for harmonic in range(1, 8):
        near |= np.abs(places - pitch * harmonic) < 12
    assert power[near].sum() / power.sum() > 0.95


@settings(max_examples=40, deadline=None)
@given(FACTORS, st.integers(2000, 28_000))
def test_what_is_heard_is_heard_at_its_time(factor, place):
    samples = np.zeros(32_000, np.float32)
    samples[place : place + 800] = 0.3 * make_voice(150, 800)
    heard = np.flatnonzero(np.abs(tempo.change_tempo(samples, factor)) > 1e-3)
    assert abs(heard.mean() - (place + 400) / factor) < 500  # 31 ms, of 50


@pytest.mark.parametrize("factor", [0.8, 0.9, 1.1, 1.25])
def test_speech_keeps_its_level(factor):
    source = opening.open_source("bundled:commands:test")
    for place in range(0, 170, 34):
        samples = reading.decode(source[place]["audio"])
        changed = tempo.change_tempo(samples, factor)
        ratio = mixing.measure_power(changed) / mixing.measure_power(samples)
        assert abs(10 * np.log10(ratio)) < 1.0
        assert np.abs(changed).max() <= np.abs(samples).max() + 1e-6


def test_a_factor_of_one_and_silence():
    samples = make_voice(200, 5000)
    assert tempo.change_tempo(samples, 1.0) is samples
    assert not tempo.change_tempo(np.zeros(5000, np.float32), 1.2).any()
