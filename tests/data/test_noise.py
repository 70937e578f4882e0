"""Noise as drawn, made and mixed: its distributions, its exact level, its bounds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nim4_jax.data.noise import mixing, noise_draws, noise_synthesis
from nim4_jax.data.noise.noise_draws import Distribution
from nim4_jax.data.sources import nonspeech

COUNT = 10_000
EVERYBODY = np.ones(COUNT, bool)
MAKERS = (
    noise_synthesis.make_vehicle,
    noise_synthesis.make_music,
    noise_synthesis.make_hush,
)


def draw(
    seed: int = 0, allowed: np.ndarray = EVERYBODY, **options
) -> noise_draws.Draws:
    return noise_draws.draw(
        np.random.default_rng(seed), allowed, Distribution(**options)
    )


def assert_share(found: np.ndarray, share: float) -> None:
    """Count what is true: within four standard deviations of what it should be."""
    spread = np.sqrt(share * (1 - share) / len(found))
    assert abs(np.mean(found) - share) <= 4 * spread


def make_speech(seed: int, size: int = 12_345) -> np.ndarray:
    """A noise that comes and goes, with digital silence at its start."""
    rng = np.random.default_rng(seed)
    loudness = np.maximum(np.sin(np.arange(size) / 900), 0) * 0.1
    return (loudness * rng.standard_normal(size)).astype(np.float32)


def measure_snr(mixed: np.ndarray, speech: np.ndarray, hum: np.ndarray) -> float:
    """The ratio over the active part, dB, whatever the mixture was scaled by."""
    parts = np.stack([speech, hum], axis=1).astype(np.float64)
    (of_speech, of_hum), *_ = np.linalg.lstsq(parts, mixed.astype(np.float64))
    active = mixing.find_active(speech)
    power = mixing.measure_power
    ratio = power(of_speech * speech[active]) / power(of_hum * hum[active])
    return 10 * np.log10(ratio)


# What is drawn, on 10,000 draws each.


@pytest.mark.parametrize("share", [0.0, 0.05, 0.2, 1.0])
def test_the_share_of_noisy_examples(share):
    draws = draw(share=share)
    assert_share(draws.kinds >= 0, share)
    assert Distribution().share == 0.2


@pytest.mark.parametrize(
    "kinds, shares",
    [
        (("babble", "vehicle", "music"), (1 / 3, 1 / 3, 1 / 3, 0)),
        (("vehicle", "music"), (0, 1 / 2, 1 / 2, 0)),
        (("babble", "recorded", "recorded"), (1 / 3, 0, 0, 2 / 3)),
    ],
)
def test_the_kinds_are_equally_likely(kinds, shares):
    draws = draw(share=1.0, kinds=kinds)
    for code, share in enumerate(shares):
        assert_share(draws.kinds == code, share)


@pytest.mark.parametrize("mean, deviation", [(10.0, 5.0), (3.0, 0.5), (20.0, 0.0)])
def test_the_ratio_is_normal(mean, deviation):
    snr = draw(share=1.0, snr=(mean, deviation)).snr
    assert abs(snr.mean() - mean) <= 4 * deviation / np.sqrt(COUNT)
    assert abs(snr.std() - deviation) <= 4 * deviation / np.sqrt(2 * COUNT)
    if deviation:
        scores = (snr - mean) / deviation
        for limit, share in ((-1, 0.1587), (0, 0.5), (1, 0.8413), (2, 0.9772)):
            assert_share(scores < limit, share)


def test_the_silence_is_beta_of_1_and_3():
    draws = draw(share=1.0)
    for silence in (draws.lead, draws.tail):
        assert silence.min() >= 0 and silence.max() <= 1
        assert abs(silence.mean() - 1 / 4) < 4 * np.sqrt(0.0375 / COUNT)
        assert abs(silence.var() - 3 / 80) < 0.003
        for limit in (0.1, 0.25, 0.5, 0.8):  # P(x < t) = 1 − (1 − t)³
            assert_share(silence < limit, 1 - (1 - limit) ** 3)
    assert abs(np.corrcoef(draws.lead, draws.tail)[0, 1]) < 4 / np.sqrt(COUNT)


def test_what_is_drawn_is_independent():
    draws = draw(share=0.5)
    noisy = draws.kinds >= 0
    columns = [noisy, draws.kinds % 3, draws.snr, draws.seeds / 2**63]
    correlation = np.corrcoef(columns)
    # A kind of −1 counts as 2 here: only these two columns are tied.
    correlation[0, 1] = correlation[1, 0] = 0
    assert np.abs(correlation - np.eye(4)).max() < 4 / np.sqrt(COUNT)
    assert len(set(draws.seeds.tolist())) == COUNT


def test_an_example_keeps_its_draw_whatever_the_share_is():
    few, all_of_them = draw(share=0.2), draw(share=1.0)
    for row in range(0, 200):
        assert few[row] in (None, all_of_them[row])
    assert few[int(np.flatnonzero(few.kinds >= 0)[0])] is not None


def test_clean_examples_get_nothing():
    allowed = np.arange(COUNT) % 2 == 0
    draws = draw(share=0.5, allowed=allowed)
    clean = draws.kinds < 0
    assert clean[~allowed].all() and not clean[allowed].all()
    assert not draws.lead[clean].any() and not draws.tail[clean].any()
    assert draws[1] is None
    rows = np.flatnonzero(~clean)[:5]
    assert [draws.take(rows)[n] for n in range(5)] == [draws[int(row)] for row in rows]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"share": 1.5}, r"noise share 1.5; expected 0 \(off\) to 1"),
        ({"snr": (10.0, -1.0)}, "noise SNR"),
        ({"snr": (float("nan"), 1.0)}, "noise SNR"),
        ({"kinds": ("traffic",)}, "choose from babble, vehicle, music, recorded"),
        ({"kinds": ()}, "choose from"),
    ],
)
def test_impossible_distributions(options, message):
    with pytest.raises(ValueError, match=message):
        Distribution(**options)


# Silence.

seconds = st.floats(0, 1)


@given(seconds, seconds, st.floats(-1, 3))
def test_silence_never_exceeds_its_room(lead, tail, room):
    before, behind = mixing.fit_silence(lead, tail, room)
    assert before + behind <= max(room, 0) + 1e-12
    assert 0 <= before <= lead and 0 <= behind <= tail
    assert before * tail == pytest.approx(behind * lead)
    if lead + tail <= room:
        assert (before, behind) == pytest.approx((lead, tail), abs=1e-12)


@given(st.integers(1, 3000), seconds, seconds, st.integers(0, 40_000))
def test_speech_is_whole_between_its_silences(length, lead, tail, spare):
    speech = np.arange(1, length + 1, dtype=np.float32)
    padded = mixing.pad_silence(speech, lead, tail, length + spare)
    assert len(padded) <= length + spare and padded.dtype == np.float32
    first = int(np.argmax(padded > 0))
    np.testing.assert_array_equal(padded[first : first + length], speech)
    assert np.count_nonzero(padded) == length
    if spare >= 32_000:
        assert first == int(lead * 16000)
        assert len(padded) == length + first + int(tail * 16000)


# Mixing.


def test_the_active_part():
    loud, faint = np.full(640, 0.5, np.float32), np.full(640, 0.001, np.float32)
    speech = np.concatenate([loud * 0, loud, faint, loud, loud[:100]])
    expected = np.concatenate([loud * 0, loud, faint * 0, loud, loud[:100]]) > 0
    np.testing.assert_array_equal(mixing.find_active(speech), expected)
    assert not mixing.find_active(loud * 0).any()
    assert mixing.find_active(loud[:7]).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 999), st.floats(-15, 40), st.sampled_from(MAKERS))
def test_the_ratio_is_met_and_nothing_clips(seed, snr, maker):
    rng = np.random.default_rng(seed)
    speech = make_speech(seed)
    speech = mixing.pad_silence(speech * rng.uniform(0.01, 3), 0.3, 0.1, 30_000)
    hum = maker(rng, len(speech))
    mixed = mixing.mix(speech, hum, snr)
    assert mixed.dtype == np.float32 and mixed.shape == speech.shape
    assert mixed.min() >= -1 and mixed.max() < 1
    assert measure_snr(mixed, speech, hum) == pytest.approx(snr, abs=1e-3)
    # The noise covers the silences too.
    assert mixing.measure_power(mixed[:4000]) > 0
    assert mixing.measure_power(mixed[-1000:]) > 0


def test_quiet_mixtures_are_not_scaled():
    speech = make_speech(0)
    hum = noise_synthesis.make_vehicle(np.random.default_rng(0), len(speech))
    added = mixing.mix(speech, hum, 20.0) - speech
    np.testing.assert_allclose(added / hum, np.median(added / hum), rtol=1e-2)


def test_speech_or_noise_of_digital_silence():
    speech = make_speech(0)
    zeros = np.zeros_like(speech)
    np.testing.assert_array_equal(mixing.mix(speech, zeros, 5.0), speech)
    np.testing.assert_array_equal(mixing.mix(zeros, speech, 5.0), zeros)


def test_noise_that_pauses_just_then_does_not_drown_the_speech():
    speech = np.zeros(32_000, np.float32)
    speech[:16_000] = make_speech(1, 16_000)
    burst = np.zeros_like(speech)
    burst[20_000:] = 0.5
    burst[0] = 1e-6
    mixed = mixing.mix(speech, burst, 10.0)
    np.testing.assert_allclose(mixed[:16_000], speech[:16_000], atol=1e-4)


def test_unequal_lengths_are_refused():
    with pytest.raises(ValueError, match="10 samples of noise for 20 of speech"):
        mixing.mix(np.ones(20, np.float32), np.ones(10, np.float32), 0.0)


@given(st.integers(0, 99), st.floats(-100, 0))
def test_levels_are_root_mean_squares(seed, level):
    samples = mixing.set_level(make_speech(seed), level)
    power = mixing.measure_power(samples)
    assert 10 * np.log10(power) == pytest.approx(level, abs=1e-3)
    assert not mixing.set_level(np.zeros(5, np.float32), level).any()


def test_a_loop_begins_again():
    assert mixing.loop(np.arange(4), 3, 6).tolist() == [3, 0, 1, 2, 3, 0]


def test_babble_hears_every_voice():
    voices = [make_speech(seed, 3000 + 500 * seed) * 10.0**-seed for seed in range(4)]
    rng = np.random.default_rng(0)
    babble = mixing.mix_babble(rng, [*voices, np.zeros(100, np.float32)], 20_000)
    assert babble.dtype == np.float32 and babble.shape == (20_000,)
    # However loud they were recorded, each of four equal voices adds its own power.
    alone = mixing.mix_babble(np.random.default_rng(0), voices[:1], 20_000)
    together, one = mixing.measure_power(babble), mixing.measure_power(alone)
    assert 1.5 < together / one < 10


# Synthesis.


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("size", [1, 399, 4096, 40_001])
def test_synthetic_noise_is_normal_and_repeatable(maker, size):
    first, again, other = (maker(np.random.default_rng(s), size) for s in (7, 7, 8))
    np.testing.assert_array_equal(first, again)
    assert first.shape == (size,) and first.dtype == np.float32
    assert np.isfinite(first).all()
    assert mixing.measure_power(first) == pytest.approx(1.0, abs=1e-3) or size == 1
    assert size == 1 or not np.array_equal(first, other)


def measure_spectrum(samples: np.ndarray) -> np.ndarray:
    """Mean power of 8,000 bins of 1 Hz."""
    return np.mean(np.abs(np.fft.rfft(samples.reshape(-1, 16_000))) ** 2, axis=0)


@pytest.mark.parametrize("seed", range(5))
def test_the_kinds_sound_different(seed):
    spectra = [
        measure_spectrum(maker(np.random.default_rng(seed), 80_000)) for maker in MAKERS
    ]
    vehicle, music, hush = (spectrum / spectrum.sum() for spectrum in spectra)
    assert vehicle[:500].sum() > 0.75
    # Notes stand out from the bins around them; a car and a room have broad spectra.
    peaks = [np.sort(power)[-60:].sum() for power in (vehicle, music, hush)]
    assert peaks[1] > 0.5 and peaks[2] < 0.4


def measure_beat(samples: np.ndarray) -> float:
    """How well the rises of loudness repeat after 0.2 to 4 s, up to 1."""
    envelope = np.sqrt(np.mean(samples.reshape(-1, 160) ** 2, axis=1))
    rises = np.maximum(np.diff(envelope), 0)
    rises -= rises.mean()
    echo = np.correlate(rises, rises, "full")[len(rises) - 1 :]
    return float(echo[20:400].max() / echo[0])


@pytest.mark.parametrize("seed", range(5))
def test_music_has_a_beat(seed):
    vehicle, music, hush = (
        measure_beat(maker(np.random.default_rng(seed), 160_000)) for maker in MAKERS
    )
    assert music > 1.5 * max(vehicle, hush)


# Without speech.


@pytest.mark.parametrize(
    "kinds, shares",
    [
        (nonspeech.SYNTHETIC, {"silence": 1 / 3, "vehicle": 1 / 3, "music": 1 / 3}),
        (nonspeech.RECORDED, {"silence": 1 / 3, "recorded": 2 / 3}),
    ],
)
def test_kinds_and_levels_without_speech(kinds, shares):
    rng = np.random.default_rng(0)
    drawn = [nonspeech.draw(rng, kinds) for _ in range(COUNT)]
    names, levels = np.array([kind for kind, _ in drawn]), np.array(drawn)[:, 1]
    levels = levels.astype(float)
    for kind, share in shares.items():
        assert_share(names == kind, share)
    silence = levels[names == "silence"]
    assert_share(np.isinf(silence), 0.25)
    faint = silence[np.isfinite(silence)]
    assert faint.min() >= -90 and faint.max() <= -50
    assert abs(faint.mean() + 70) < 1
    loud = levels[names != "silence"]
    assert loud.min() >= -50 and loud.max() <= -15
    assert abs(loud.mean() + 32.5) < 1


def test_audio_without_speech_is_in_range():
    for seed in range(40):
        samples = nonspeech.make(np.random.default_rng(seed), 5000, None)
        assert samples.shape == (5000,) and samples.dtype == np.float32
        assert np.abs(samples).max() < 1


@pytest.mark.parametrize("share", [0.01, 0.05, 0.3])
def test_how_many_examples_have_no_speech(share):
    extra = nonspeech.count_examples(share, [COUNT, 1000], [1.0, 0.5])
    assert extra / (10_500 + extra) == pytest.approx(share, abs=1e-4)
    assert nonspeech.count_examples(0.0, [COUNT], [1.0]) == 0


def test_records_without_speech():
    source = nonspeech.NonSpeech(3)
    assert [record["id"] for record in source][-1] == "nonspeech-2"
    assert source[0]["text"] == "" and not len(source[0]["audio"])
    with pytest.raises(IndexError, match="record 3 of 3"):
        source[3]
