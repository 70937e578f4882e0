"""The telephone line: its code bit for bit, its band, its timing."""

import io

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from nim4_jax.data.noise import telephone

RATE = 16_000
LAWS = st.sampled_from(telephone.LAWS)


@pytest.mark.parametrize("law, subtype", [("mulaw", "ULAW"), ("alaw", "ALAW")])
def test_the_code_is_libsndfiles(law, subtype):
    samples = np.arange(0, 32_768).astype(np.int16)
    file = io.BytesIO()
    soundfile.write(file, samples, 8000, format="WAV", subtype=subtype)
    file.seek(0)
    expected, _ = soundfile.read(file, dtype="int16")
    np.testing.assert_array_equal(telephone.compand(samples, law), expected)
    # The negative half mirrors it; A-law has two zeros, of which −1 is the other.
    mirrored = -samples if law == "mulaw" else ~samples
    np.testing.assert_array_equal(telephone.compand(mirrored, law), -expected)


@pytest.mark.parametrize("law", telephone.LAWS)
def test_a_code_has_256_values_at_most_and_keeps_them(law):
    coded = telephone.compand(np.arange(-32_768, 32_768).astype(np.int16), law)
    assert len(np.unique(coded)) == (255 if law == "mulaw" else 256)
    np.testing.assert_array_equal(telephone.compand(coded, law), coded)
    assert (np.diff(coded.astype(int)) >= 0).all()


@pytest.mark.parametrize(
    "pitch, loss", [(60, 40), (150, 20), (300, 3), (1000, 0), (3400, 3), (4500, 40)]
)
def test_the_band(pitch, loss):
    tone = np.sin(2 * np.pi * pitch * np.arange(RATE) / RATE).astype(np.float32) * 0.3
    heard = telephone.transmit(tone, "alaw")[2000:-2000]
    level = -10 * np.log10(np.mean(heard**2) / np.mean(tone**2) + 1e-9)
    if loss in (0, 3):
        assert level == pytest.approx(loss, abs=0.6)
    else:
        assert level > loss - 1


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 30_000), LAWS, st.integers(0, 99))
def test_length_and_place_stay(size, law, seed):
    rng = np.random.default_rng(seed)
    samples = np.zeros(size, np.float32)
    burst = slice(size // 3, size // 3 + 400)
    samples[burst] = 0.2 * rng.standard_normal(400)[: len(samples[burst])]
    heard = telephone.transmit(samples, law)
    assert heard.shape == (size,) and heard.dtype == np.float32
    assert np.abs(heard).max() <= 1
    if size > 2000:
        delay = np.argmax(np.correlate(heard, samples, "full")) - (size - 1)
        assert delay == 0
    np.testing.assert_array_equal(heard, telephone.transmit(samples, law))


def test_silence_is_silent_and_loud_samples_do_not_wrap():
    silence = telephone.transmit(np.zeros(5000, np.float32), "mulaw")
    assert not silence.any()
    loud = np.full(5000, 3.0, np.float32) * np.sign(np.sin(np.arange(5000) / 5))
    for law in telephone.LAWS:
        heard = telephone.transmit(loud.astype(np.float32), law)
        assert np.corrcoef(heard, loud)[0, 1] > 0.8


def test_an_unknown_law_lists_the_laws():
    with pytest.raises(ValueError, match="law 'gsm'; choose from mulaw, alaw"):
        telephone.transmit(np.zeros(10, np.float32), "gsm")
