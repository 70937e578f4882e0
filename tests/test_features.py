"""Features: Kaldi's and Whisper's numbers on real speech, whole and in pieces."""

import dataclasses

import jax
import jax.numpy as jnp
import kaldi_native_fbank
import librosa
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nim4_jax import features
from nim4_jax.data.audio import reading as audio_files
from nim4_jax.data.sources import builders
from nim4_jax.features import FeatureConfig, WhisperFeatures
from nim4_jax.types import Frames

CONFIG = FeatureConfig()
WHISPER = WhisperFeatures()
KINDS = {"kaldi": CONFIG, "whisper": WHISPER}
every_kind = pytest.mark.parametrize("kind", KINDS)
HOP = CONFIG.hop
HOPS = 24  # length of the padded audio in the laws
PIECES = (4, 5, 8)  # frames, more than a piece sees before it; each compiles once

whole = jax.jit(features.log_mel, static_argnums=1)
piece = jax.jit(features.log_mel_piece, static_argnums=(1, 2))


def make_audio(seed: int, lengths: list[int], hops: int = HOPS) -> Frames:
    """Noise of the given lengths in samples, NaN behind its end."""
    size = hops * HOP
    noise = np.random.default_rng(seed).uniform(-0.5, 0.5, (len(lengths), size))
    mask = np.arange(size)[None] < np.asarray(lengths)[:, None]
    return Frames(np.where(mask, noise, np.nan).astype(np.float32), mask)


def stream(audio: Frames, config, cuts: list[int], before: int) -> Frames:
    """Pieces of `cuts` frames, `before` more in front, with the samples they cover."""
    front = before * HOP + config.lead
    pads = ((0, 0), (front, config.window + max(cuts, default=0) * HOP))
    values = np.pad(audio.values, pads, constant_values=np.nan)
    mask = np.pad(audio.mask, pads)
    outputs, place = [], 0
    for count in cuts:
        size = (before + count - 1) * HOP + config.window
        take = slice(place * HOP, place * HOP + size)
        # Only an utterance's first piece begins with what is before it.
        got = piece(Frames(values[:, take], mask[:, take]), config, before)
        outputs.append(jax.tree.map(lambda leaf: leaf[:, before:], got))
        place += count
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
    """Piece sizes, in frames, that cover the total."""
    cuts = []
    while sum(cuts) < total:
        cuts.append(draw(st.sampled_from(PIECES)))
    return cuts


@every_kind
@given(
    seed=st.integers(0, 99),
    lengths=st.lists(st.integers(0, HOPS * HOP), min_size=2, max_size=2),
    before=st.integers(0, 2),
    cuts=compositions(HOPS),
)
def test_pieces_equal_the_whole(kind, seed, lengths, before, cuts):
    """Law 1, any pieces, lengths and frames seen before a piece's own."""
    config = KINDS[kind]
    audio = make_audio(seed, lengths)
    expected = whole(audio, config)
    got = stream(audio, config, cuts, before)
    count = expected.mask.shape[1]
    np.testing.assert_array_equal(got.mask[:, :count], expected.mask)
    assert not got.mask[:, count:].any()
    assert_close(got.values[:, :count], expected.values)


@every_kind
@given(seed=st.integers(0, 99), length=st.integers(0, HOPS * HOP))
def test_padding_never_matters(kind, seed, length):
    """NaN behind the mask gives the features of zeros there."""
    config = KINDS[kind]
    dirty = make_audio(seed, [length, length // 2])
    clean = dataclasses.replace(dirty, values=np.nan_to_num(dirty.values))
    got, want = whole(dirty, config), whole(clean, config)
    jax.tree.map(np.testing.assert_array_equal, got, want)


@pytest.mark.parametrize(
    "kind, samples, frames",
    [
        *(("kaldi", n, t) for n, t in ((0, 0), (399, 0), (400, 1), (559, 1), (560, 2))),
        *(("whisper", n, t) for n, t in ((0, 0), (1, 1), (160, 1), (161, 2), (400, 3))),
    ],
)
def test_number_of_frames(kind, samples, frames):
    """Kaldi: whole windows only. Whisper: as long as a frame's centre is there."""
    config = KINDS[kind]
    assert features.num_frames(samples, config) == frames
    audio = Frames(jnp.zeros((1, samples)), jnp.ones((1, samples), bool))
    got = jax.eval_shape(lambda audio: features.log_mel(audio, config), audio)
    assert got.values.shape == (1, frames, config.num_mels)
    assert int(whole(make_audio(0, [samples]), config).lengths()[0]) == frames


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
        got = whole(audio, CONFIG)
        count = int(got.lengths()[0])
        assert count == len(expected)
        assert np.abs(got.values[0, :count] - expected).max() < 5e-3
        cuts = [5] * (-(-count // 5))
        streamed = stream(audio, CONFIG, cuts, 0).values[0, :count]
        assert np.abs(streamed - expected).max() < 5e-3


def whisper_features(samples: np.ndarray, num_mels: int, floor: float) -> np.ndarray:
    """Whisper's log-mel as librosa makes it of one utterance, [T, M]."""
    padded = np.pad(samples, (0, 400))
    spectrum = librosa.stft(padded, n_fft=400, hop_length=HOP, pad_mode="reflect")
    power = np.abs(spectrum) ** 2
    filters = librosa.filters.mel(sr=features.SAMPLE_RATE, n_fft=400, n_mels=num_mels)
    values = np.log10(np.maximum(filters @ power, 1e-10))
    values = values.T[: -(-len(samples) // HOP)]
    return (np.maximum(values, values.max() - 8 if floor is None else floor) + 4) / 4


@pytest.mark.parametrize("floor", [None, -8.0])
@pytest.mark.parametrize("num_mels", [80, 128])
def test_real_speech_gives_whispers_numbers(num_mels, floor):
    """max |Δ| < 1e-4 on a bundled recording, by Whisper's floor and by a fixed one."""
    config = WhisperFeatures(num_mels, floor)
    samples = audio_files.decode(builders.open_bundled("commands", "test")[0]["audio"])
    audio = Frames(samples[None], np.ones((1, len(samples)), bool))
    got = np.asarray(whole(audio, config).values[0])
    expected = whisper_features(samples, num_mels, floor)
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() < 1e-4


def test_whispers_own_floor_is_of_each_clip_alone():
    """Padding and other clips of the batch do not move it."""
    config = WhisperFeatures(floor=None)
    loud = make_audio(0, [HOPS * HOP, 10 * HOP])
    quiet = dataclasses.replace(loud, values=loud.values * np.float32(1e-3))
    got, alone = whole(quiet, config), whole(loud, config)
    # 60 dB less are 6 decades: 6 / 4 less everywhere, the floor with it.
    np.testing.assert_allclose(
        np.asarray(got.values)[np.asarray(got.mask)],
        np.asarray(alone.values)[np.asarray(got.mask)] - 1.5,
        atol=1e-4,
    )
