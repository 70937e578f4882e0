"""The table of noise kinds: what is drawn and made stays as it was, to the number."""

from types import SimpleNamespace

import numpy as np
import pytest

from nim4_jax.data.noise import augment, noise_draws, noise_kinds
from nim4_jax.data.sources import nonspeech, opening

PLACES = [0, 777, 4001, 9999]
SEED = 11
# Samples at `PLACES`, before there was a table.
BEHIND = {
    "babble": [-0.018229, 0.08224, -0.006879, 0.022666],
    "vehicle": [0.058951, 0.032534, -0.115827, 0.025109],
    "music": [0.050653, 0.019774, -0.032322, -0.063686],
    "recorded": [0.001335, -0.072889, -0.051777, -0.032199],
}
# Seed of the generator → the same, and what the generator draws next.
ALONE = {
    0: ([-0.006787, 0.001097, -0.001106, 0.006427], 588709),
    1: ([-0.007519, 0.009844, 0.004647, 0.003262], 424403),
    2: ([0.018865, 0.071167, 0.190077, -0.052422], 306445),
}
ALONE_WITH_RECORDINGS = {
    0: ([0.000392, -0.00452, 0.004803, -0.004162], 636961),
    3: ([-0.0452, 0.02554, 0.034483, -6.5e-05], 85649),
    6: ([-0.001917, -0.00915, 0.008892, -0.034465], 538164),
}
# Samples of 16 bits of utterances of the bundled commands.
NOISY = {
    ("noisy:5", 0): [-692, -150, -811, 1325],
    ("noisy:5", 99): [-916, 273, -1341, -3345],
    ("noisy:5+babble", 0): [-1203, -2219, 1425, -642],
    ("noisy:5+vehicle", 3): [1166, 660, -2046, 326],
    ("noisy:5+music+babble", 3): [1325, 264, -729, 840],
}
FIXED = {
    ("nonspeech:12", 2): [0.03912, 0.11381, 0.074444, 0.064722],
    ("nonspeech:12?seed=4&kinds=music|silence", 3): [
        -0.019238,
        -0.005607,
        0.00215,
        0.010915,
    ],
    ("nonspeech:4?kinds=vehicle", 1): [-0.006227, -0.005349, 0.006572, 0.010725],
}
# Code of the kind of each example for 12 examples, of which every fourth stays clean.
CODES = {
    ("babble", "vehicle", "music"): [-1, -1, 0, 2, -1, 0, 0, 0, -1, -1, -1, 1],
    ("vehicle", "music"): [-1, -1, 1, 2, -1, 1, 1, 1, -1, -1, -1, 2],
    ("babble", "recorded", "recorded"): [-1, -1, 0, 3, -1, 0, 0, 0, -1, -1, -1, 3],
}


def read_recording(rng: np.random.Generator, size: int) -> np.ndarray:
    return rng.standard_normal(size).astype(np.float32)


def read_voice(index: int) -> np.ndarray:
    time = np.arange(6000 + index)
    tone = np.sin(time * (0.05 + 0.01 * index)) * np.minimum(1, time / 3000)
    return tone.astype(np.float32)


def make_augmenter(talkers: int = 9, *, recordings: bool = True) -> augment.Augmenter:
    examples = SimpleNamespace(
        usable=np.ones(talkers, bool),
        num_speech=talkers,
        recordings=np.arange(talkers),
    )
    files = SimpleNamespace(read=read_recording) if recordings else None
    return augment.Augmenter(examples, files, 3)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", BEHIND)
def test_noise_behind_speech_is_what_it_was(kind):
    speech = (0.1 * np.sin(np.arange(9000) / 7)).astype(np.float32)
    draw = noise_draws.Draw(kind, 5.0, 0.1, 0.2, SEED)
    mixed = make_augmenter().add_noise(speech, 4, draw, 20_000, read_voice)
    np.testing.assert_allclose(mixed[PLACES], BEHIND[kind], atol=2e-6)


@pytest.mark.parametrize("recordings", [False, True])
def test_audio_without_speech_is_what_it_was(recordings):
    expected = ALONE_WITH_RECORDINGS if recordings else ALONE
    for seed, (samples, after) in expected.items():
        rng = np.random.default_rng(seed)
        made = nonspeech.make(rng, 10_000, read_recording if recordings else None)
        np.testing.assert_allclose(made[PLACES], samples, atol=2e-6)
        assert rng.integers(10**6) == after


@pytest.mark.parametrize("spec, place", NOISY)
def test_noisy_sets_are_what_they_were(spec, place):
    record = opening.open_source(f"{spec}:bundled:commands:test")[place]
    np.testing.assert_allclose(record["audio"][PLACES], NOISY[spec, place], atol=1)


@pytest.mark.parametrize("spec, place", FIXED)
def test_sets_without_speech_are_what_they_were(spec, place):
    record = opening.open_source(spec)[place]
    np.testing.assert_allclose(record["audio"][PLACES], FIXED[spec, place], atol=2e-6)


@pytest.mark.parametrize("kinds", CODES)
def test_draws_are_what_they_were(kinds):
    rng = np.random.default_rng(5)
    source = noise_draws.Distribution(0.6, (8.0, 4.0), kinds)
    draws = noise_draws.draw(rng, np.arange(40) % 4 > 0, source)
    assert draws.kinds[:12].tolist() == CODES[kinds]
    assert draws.seeds[0] == 9192203568088816984 and rng.integers(10**6) == 303571


def test_what_is_mixed_when_nothing_is_named():
    """Runs and sets that name no kinds keep theirs, and so do fingerprints."""
    assert make_augmenter(recordings=False).kinds == ("babble", "vehicle", "music")
    assert make_augmenter(1, recordings=False).kinds == ("vehicle", "music")
    assert make_augmenter().kinds == ("babble", "recorded", "recorded")
    assert nonspeech.SYNTHETIC == ("silence", "vehicle", "music")
    assert nonspeech.RECORDED == ("silence", "recorded", "recorded")
    assert repr(noise_draws.Distribution()) == (
        "Distribution(share=0.2, snr=(10.0, 5.0), kinds=('babble', 'vehicle', 'music'))"
    )


@pytest.mark.parametrize("name", noise_kinds.KINDS)
def test_every_kind_is_made_as_long_as_asked_and_repeats(name):
    material = noise_kinds.Material(
        lambda rng: [read_voice(int(rng.integers(5))) for _ in range(3)],
        read_recording,
    )
    first, again, other = (
        noise_kinds.KINDS[name].make(np.random.default_rng(seed), 8_001, material)
        for seed in (7, 7, 8)
    )
    np.testing.assert_array_equal(first, again)
    assert first.shape == (8_001,) and first.dtype == np.float32
    assert np.isfinite(first).all() and not np.array_equal(first, other)


def test_a_kind_that_is_not_known_or_cannot_be_made_is_told():
    known = "silence, babble, vehicle, music, recorded"
    with pytest.raises(ValueError, match=f"kind 'rain'; choose from {known}"):
        noise_kinds.find("rain")
    draw = noise_draws.Draw("rain", 5.0, 0.1, 0.2, SEED)
    with pytest.raises(ValueError, match="kind 'rain'"):
        make_augmenter().add_noise(np.ones(9, np.float32), 0, draw, 99, read_voice)
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="kind 'rain'"):
        nonspeech.make(rng, 9, None, ("rain",))
    with pytest.raises(ValueError, match="'recorded' needs recordings of noise"):
        nonspeech.make(rng, 9, None, ("recorded",))
    with pytest.raises(ValueError, match="'babble' needs other utterances"):
        nonspeech.make(rng, 9, read_recording, ("babble",))
