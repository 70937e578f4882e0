"""Several channels to one: nothing that is said is cancelled or buried."""

import itertools

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from nim4_jax.data.audio import channels, reading

RATE = 16_000


def make_voice(seconds: float = 3.0, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.normal(0, 0.1, round(seconds * RATE)).astype(np.float32)


def mix(samples: np.ndarray, choice="mix") -> np.ndarray:
    return reading.decode(samples, channel=choice)


def test_opposite_phase_is_not_silence():
    voice = make_voice()
    np.testing.assert_array_equal(mix(np.stack([voice, -voice], 1)), voice)
    nearly = mix(np.stack([voice, -0.9 * voice], 1))
    np.testing.assert_allclose(nearly, voice, atol=1e-6)


def test_one_voice_among_silent_channels_is_as_loud_as_it_was():
    voice = make_voice()
    many = np.zeros((len(voice), 8), np.float32)
    many[:, 5] = voice
    np.testing.assert_array_equal(mix(many), voice)


@pytest.mark.parametrize("other", [0.0, 1.0, 0.3])
def test_two_channels_are_usually_their_mean(other):
    """One silent, both alike, and another voice on each: the mean hears both."""
    left, right = make_voice(), other * make_voice(seed=1)
    np.testing.assert_array_equal(
        mix(np.stack([left, right], 1)), np.stack([left, right], 1).mean(1)
    )


def test_a_voice_on_each_of_many_channels_is_heard_with_the_others():
    voices = np.stack([make_voice(2.0, seed) for seed in range(8)], 1)
    np.testing.assert_array_equal(mix(voices), voices.mean(1))


def test_a_call_with_a_party_on_each_channel_holds_both():
    left, right = make_voice(4.0), make_voice(4.0, seed=1)
    left[2 * RATE :], right[: 2 * RATE] = 0, 0
    np.testing.assert_allclose(mix(np.stack([left, right], 1)), (left + right) / 2)


def test_the_choice_does_not_jump_and_fades():
    """Two equal channels in opposite phase: one is kept, whichever is louder."""
    voice = make_voice(6.0)
    wobble = 1 + 0.1 * np.sign(np.sin(np.pi * np.arange(len(voice)) / RATE + 0.5))
    made = mix(np.stack([voice * wobble, -voice * (2 - wobble)], 1).astype(np.float32))
    np.testing.assert_allclose(np.sign(made), np.sign(made[0] * voice[0] * voice))
    # From the mean to one channel: no step.
    tone = 0.3 * np.sin(2 * np.pi * 100 * np.arange(4 * RATE) / RATE)
    phase = np.where(np.arange(4 * RATE) < 2 * RATE, 1, -1)
    changed = mix(np.stack([tone, tone * phase], 1).astype(np.float32))
    assert np.abs(np.diff(changed)).max() < 2 * np.abs(np.diff(tone)).max()


@pytest.mark.parametrize(("choice", "column"), [("left", 0), ("right", 1), (1, 1)])
def test_a_channel_is_chosen(tmp_path, choice, column):
    both = np.stack([make_voice(0.5), make_voice(0.5, seed=1)], 1)
    np.testing.assert_array_equal(mix(both, choice), both[:, column])
    soundfile.write(tmp_path / "a.wav", both, RATE, "FLOAT")
    blocks = list(reading.read_blocks(tmp_path / "a.wav", 0.2, channel=choice))
    np.testing.assert_array_equal(np.concatenate(blocks), both[:, column])
    assert reading.count_channels(tmp_path / "a.wav") == 2


def test_a_channel_that_is_not_there_is_named():
    voice = make_voice(0.1)
    assert len(mix(voice, "left")) == len(voice)
    with pytest.raises(reading.AudioError, match="2 channels, and no channel 3"):
        mix(np.stack([voice, voice], 1), 3)
    for choice in ("middle", -1, True, None):
        with pytest.raises(ValueError, match="is unknown; use one of mix, left, right"):
            channels.check_choice(choice)


@given(
    st.lists(st.integers(1, 90), min_size=1, max_size=8),
    st.integers(2, 4),
    st.integers(0, 9),
)
@settings(max_examples=60, deadline=None)
def test_blocks_of_any_size_give_the_whole(sizes, count, seed):
    random = np.random.default_rng(seed)
    signs = np.repeat(random.choice([-1, 0, 1], (15, count)), 50, axis=0)
    size = sum(sizes)
    samples = (random.normal(size=(size, 1)) * signs[:size]).astype(np.float32)
    whole = channels.ChannelMixer(40, count).feed(samples, last=True)
    mixer = channels.ChannelMixer(40, count)
    places = np.cumsum([0, *sizes])
    made = [
        mixer.feed(samples[a:b], last=b == len(samples))
        for a, b in itertools.pairwise(places)
    ]
    np.testing.assert_array_equal(np.concatenate(made), whole)
    assert len(whole) == len(samples)
