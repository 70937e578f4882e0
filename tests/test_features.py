"""Features: Kaldi's numbers on real speech, the same whole and in pieces."""

import functools

import jax
import jax.numpy as jnp
import kaldi_native_fbank
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nim4_jax import features
from nim4_jax.data import audio as audio_files
from nim4_jax.data import builders
from nim4_jax.features import FeatureConfig
from nim4_jax.types import Frames

CONFIG = FeatureConfig()
HOP = CONFIG.hop
HOPS = 24  # length of the padded audio in the laws
PIECES = (1, 2, 3, 5)  # hops; each compiles once

whole = jax.jit(functools.partial(features.log_mel, config=CONFIG))
piece = jax.jit(functools.partial(features.step, config=CONFIG))


def make_audio(seed: int, lengths: list[int], hops: int = HOPS) -> Frames:
    """Noise of the given lengths in samples, NaN behind its end."""
    size = hops * HOP
    noise = np.random.default_rng(seed).uniform(-0.5, 0.5, (len(lengths), size))
    mask = np.arange(size)[None] < np.asarray(lengths)[:, None]
    return Frames(np.where(mask, noise, np.nan).astype(np.float32), mask)


def stream(audio: Frames, cuts: list[int]) -> Frames:
    """Feed pieces of `cuts` hops, then what flushes the latency."""
    state = features.init_state(audio.mask.shape[0], CONFIG)
    outputs, place = [], 0
    for hops in cuts:
        take = slice(place * HOP, (place + hops) * HOP)
        part = Frames(audio.values[:, take], audio.mask[:, take])
        frames, state = piece(part, state)
        outputs.append(frames)
        place += hops
    return jax.tree.map(lambda *leaves: np.concatenate(leaves, axis=1), *outputs)


def assert_close(got, expected):
    """Equal to 1e-5 in amplitude, relative to each frame's loudest channel.

    A channel 100 dB below the loudest one keeps few digits in float32, so its logarithm
    is compared more loosely.
    """
    amplitudes = np.exp(np.asarray(got) / 2), np.exp(np.asarray(expected) / 2)
    loudest = np.max(amplitudes[1], axis=-1, keepdims=True, initial=1.0)
    assert np.all(np.abs(amplitudes[0] - amplitudes[1]) <= 1e-5 * loudest)
    np.testing.assert_allclose(got, expected, atol=1e-3)


@st.composite
def compositions(draw, total: int) -> list[int]:
    """Piece sizes, in hops, that add up to the total."""
    cuts = []
    while (left := total - sum(cuts)) > 0:
        cuts.append(draw(st.sampled_from([p for p in PIECES if p <= left])))
    return cuts


@given(
    seed=st.integers(0, 99),
    lengths=st.lists(st.integers(0, HOPS * HOP), min_size=2, max_size=2),
    lead=st.integers(0, 7),
    cuts=compositions(HOPS + 10),
)
def test_pieces_equal_the_whole(seed, lengths, lead, cuts):
    """Law 1, any pieces, any lengths, any number of masked hops before the audio."""
    audio = make_audio(seed, lengths)
    expected = whole(audio)
    tail = 10 - lead
    pads = ((0, 0), (lead * HOP, tail * HOP))
    values = np.pad(audio.values, pads, constant_values=np.nan)
    padded = Frames(values, np.pad(audio.mask, pads))
    got = stream(padded, cuts)
    first = lead + CONFIG.latency
    count = expected.mask.shape[1]
    np.testing.assert_array_equal(got.mask[:, first : first + count], expected.mask)
    assert not got.mask[:, :first].any() and not got.mask[:, first + count :].any()
    assert_close(got.values[:, first : first + count], expected.values)


@given(seed=st.integers(0, 99), data=st.data())
def test_pieces_of_any_number_of_samples(seed, data):
    """Law 1 for a client that sends what it has: hops are cut off a buffer."""
    size = HOPS * HOP
    audio = make_audio(seed, [size])
    expected = whole(audio)
    samples = np.asarray(audio.values[0])
    state = features.init_state(1, CONFIG)
    buffer, outputs, place = samples[:0], [], 0
    while place < size:
        sent = data.draw(st.integers(1, 1_500))
        buffer = np.concatenate([buffer, samples[place : place + sent]])
        place += sent
        while len(buffer) >= HOP:
            part, buffer = buffer[None, :HOP], buffer[HOP:]
            frames, state = piece(Frames(part, np.ones(part.shape, bool)), state)
            outputs.append(frames.values)
    got = np.concatenate(outputs, axis=1)[:, CONFIG.latency :]
    assert_close(got, expected.values)


@given(seed=st.integers(0, 99), length=st.integers(0, HOPS * HOP))
def test_padding_never_matters(seed, length):
    """NaN behind the mask gives the features of zeros there."""
    dirty = make_audio(seed, [length, length // 2])
    clean = dirty.replace(values=np.nan_to_num(dirty.values))
    jax.tree.map(np.testing.assert_array_equal, whole(dirty), whole(clean))


@pytest.mark.parametrize(
    "samples, frames", [(0, 0), (399, 0), (400, 1), (559, 1), (560, 2)]
)
def test_only_whole_windows_count(samples, frames):
    """Snip edges: 1 + (S − 400) // 160 frames, as the array and as the mask say."""
    assert features.num_frames(samples, CONFIG) == frames
    audio = Frames(jnp.zeros((1, samples)), jnp.ones((1, samples), bool))
    got = jax.eval_shape(whole, audio)
    assert got.values.shape == (1, frames, CONFIG.num_mels)
    assert int(whole(make_audio(0, [samples])).lengths()[0]) == frames


def test_a_piece_must_be_whole_hops():
    """The error names the size and what to feed."""
    audio = Frames(jnp.zeros((1, 100)), jnp.ones((1, 100), bool))
    with pytest.raises(ValueError, match=r"100 samples.*multiples of 160"):
        features.step(audio, features.init_state(1, CONFIG), CONFIG)


def kaldi_features(samples: np.ndarray) -> np.ndarray:
    """What kaldi-native-fbank makes of one utterance, [T, 80]."""
    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.dither = 0.0
    options.frame_opts.snip_edges = True
    options.mel_opts.num_bins = CONFIG.num_mels
    options.mel_opts.low_freq = CONFIG.low_hz
    options.mel_opts.high_freq = CONFIG.high_hz
    fbank = kaldi_native_fbank.OnlineFbank(options)
    fbank.accept_waveform(features.SAMPLE_RATE, (samples * 32_768.0).tolist())
    fbank.input_finished()
    return np.stack([fbank.get_frame(i) for i in range(fbank.num_frames_ready)])


def test_real_speech_gives_kaldis_numbers():
    """max |Δ| < 5e-3 on bundled recordings, whole and in pieces."""
    recordings = builders.open_bundled("commands", "test")
    hops = 600
    for index in range(0, len(recordings), max(1, len(recordings) // 4)):
        samples = audio_files.decode(recordings[index]["audio"])[: hops * HOP]
        expected = kaldi_features(samples)
        padded = np.pad(samples, (0, hops * HOP - len(samples)))
        mask = np.arange(hops * HOP) < len(samples)
        audio = Frames(padded[None], mask[None])
        got = whole(audio)
        count = int(got.lengths()[0])
        assert count == len(expected)
        assert np.abs(got.values[0, :count] - expected).max() < 5e-3
        streamed = stream(audio, [5] * (hops // 5)).values[0, CONFIG.latency :]
        enough = min(count, streamed.shape[0])
        assert np.abs(streamed[:enough] - expected[:enough]).max() < 5e-3
