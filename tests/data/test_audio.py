"""Decoding: formats, rates, channels, arrays, blocks, and what is refused."""

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from nim4_jax.data.audio import reading

FORMATS = [
    ("wav", "WAV", "PCM_16"),
    ("float.wav", "WAV", "FLOAT"),
    ("flac", "FLAC", "PCM_16"),
    ("vorbis.ogg", "OGG", "VORBIS"),
    ("opus", "OGG", "OPUS"),
    ("mp3", "MP3", "MPEG_LAYER_III"),
]


def find_pitch(samples: np.ndarray) -> float:
    """The strongest frequency, Hz."""
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return np.argmax(spectrum) * reading.SAMPLE_RATE / len(samples)


@pytest.mark.parametrize("rate", [8000, 16000, 44100, 48000])
@pytest.mark.parametrize("suffix, form, subtype", FORMATS)
def test_formats_and_rates(tmp_path, make_tone, suffix, form, subtype, rate):
    if (subtype, rate) == ("OPUS", 44100):
        rate = 24000  # Opus has no 44.1 kHz
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, make_tone(1.0, rate), rate, subtype=subtype, format=form)
    for source in (path, str(path), path.read_bytes()):
        samples = reading.decode(source)
        assert samples.dtype == np.float32 and samples.ndim == 1
        assert abs(len(samples) - 16000) < 2500  # mp3 pads to whole frames
        assert abs(find_pitch(samples) - 300) < 2
        assert 0.18 < samples.std() < 0.24  # 0.3 / √2
    assert abs(reading.read_duration(path) - 1.0) < 0.16


def test_lossless_16_khz_is_exact(tmp_path):
    values = np.random.default_rng(0).integers(-32768, 32768, 5000).astype(np.int16)
    soundfile.write(tmp_path / "a.flac", values, 16000, subtype="PCM_16")
    samples = reading.decode(tmp_path / "a.flac")
    np.testing.assert_array_equal(samples, values / np.float32(32768))
    np.testing.assert_array_equal(reading.to_int16(samples), values)
    np.testing.assert_array_equal(reading.to_float32(values), samples)


def test_stereo_becomes_the_mean(tmp_path, make_tone):
    left = make_tone(0.5)
    soundfile.write(tmp_path / "a.wav", np.stack([left, 0 * left], 1), 16000, "FLOAT")
    np.testing.assert_allclose(reading.decode(tmp_path / "a.wav"), left / 2, atol=1e-7)
    np.testing.assert_array_equal(reading.decode(left[:, None]), left)


@pytest.mark.parametrize("dtype, peak", [("int16", 2**15), ("int32", 2**31)])
def test_integer_arrays_are_scaled_by_their_range(dtype, peak):
    samples = reading.decode(np.array([0, peak // 2, -peak], dtype))
    np.testing.assert_allclose(samples, [0, 0.5, -1])


def test_other_arrays():
    # TFDS stores 16-bit audio as int64.
    np.testing.assert_allclose(reading.decode(np.array([16384, -32768])), [0.5, -1])
    np.testing.assert_allclose(reading.decode(np.array([128, 0], np.uint8)), [0, -1])
    assert len(reading.decode(np.ones(800, np.float64), sample_rate=8000)) == 1600
    with pytest.raises(ValueError, match="bool"):
        reading.decode(np.zeros(4, bool))


@settings(max_examples=25, deadline=None)
@given(st.integers(100, 8000), st.sampled_from([0.9, 1.0, 1.1]))
def test_speed_changes_the_length_by_its_inverse(size, factor):
    result = reading.change_speed(np.zeros(size, np.float32), factor)
    assert abs(len(result) - size / factor) <= 1


def test_speed_changes_the_pitch(make_tone):
    assert abs(find_pitch(reading.change_speed(make_tone(1.0), 1.1)) - 330) < 2


def refuse(reason: str, source, **options) -> None:
    with pytest.raises(reading.AudioError) as caught:
        reading.decode(source, **options)
    assert caught.value.reason == reason and reason in reading.AUDIO_REASONS
    if not isinstance(source, (bytes, np.ndarray)):
        assert str(source) in str(caught.value)


def test_missing_empty_and_foreign_files(tmp_path):
    refuse("missing file", tmp_path / "none.wav")
    refuse("not a file", tmp_path)
    (tmp_path / "empty.wav").touch()
    refuse("zero length", tmp_path / "empty.wav")
    refuse("zero length", b"")
    refuse("zero length", np.zeros(0, np.float32))
    soundfile.write(tmp_path / "header.wav", np.zeros(0), 16000)
    refuse("zero length", tmp_path / "header.wav")
    (tmp_path / "text.wav").write_text("this is no audio")
    refuse("unreadable audio", tmp_path / "text.wav")


def test_samples_that_are_not_finite(tmp_path):
    for value in (np.nan, np.inf):
        path = tmp_path / "a.wav"
        soundfile.write(path, np.array([0, value], np.float32), 16000, "FLOAT")
        refuse("not finite", path)
        with pytest.raises(reading.AudioError, match=r"a\.wav: not finite"):
            list(reading.read_blocks(path, 1.0))


@pytest.mark.parametrize("suffix, form, subtype", FORMATS[:5])
def test_truncated_files(tmp_path, suffix, form, subtype):
    path = tmp_path / f"a.{suffix}"
    noise = np.random.default_rng(0).normal(size=160000) * 0.1
    soundfile.write(path, noise, 16000, subtype=subtype, format=form)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    refuse("truncated", path)
    refuse("truncated", data[: len(data) // 2])
    with pytest.raises(reading.AudioError, match="truncated"):
        list(reading.read_blocks(path, 1.0))


def test_shorter_than_stated_is_truncated(tmp_path, make_tone):
    path = tmp_path / "a.mp3"
    soundfile.write(path, make_tone(1.0), 16000)
    assert len(reading.decode(path, duration=1.1))
    refuse("truncated", path, duration=3.0)


def test_too_long_is_refused_by_its_header(tmp_path):
    # Two hours of silence: flac makes 1 MB of it.
    path = tmp_path / "long.flac"
    with soundfile.SoundFile(path, "w", 8000, 1, "PCM_16") as file:
        silence = np.zeros(8000 * 600, np.int16)
        for _ in range(12):
            file.write(silence)
    assert reading.read_duration(path) == 7200
    refuse("too long", path, max_seconds=30.0)
    refuse("too long", np.zeros(32000, np.float32), max_seconds=1.0)
    blocks = reading.read_blocks(path, 30.0)
    assert [len(next(blocks)) for _ in range(4)] == [480000] * 4


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
@pytest.mark.parametrize("seconds", [0.03, 0.5, 10.0])
def test_blocks_are_the_whole(tmp_path, rate, seconds):
    noise = np.random.default_rng(1).normal(size=rate + 77) * 0.1
    path = tmp_path / "a.wav"
    soundfile.write(path, noise, rate, "FLOAT")
    blocks = list(reading.read_blocks(path, seconds))
    size = round(seconds * 16000)
    assert all(len(block) == size for block in blocks[:-1])
    assert 0 < len(blocks[-1]) <= size
    joined, whole = np.concatenate(blocks), reading.decode(path)
    assert abs(len(joined) - len(whole)) <= 1
    shared = min(len(joined), len(whole))
    np.testing.assert_allclose(joined[:shared], whole[:shared], atol=1e-4)


def test_blocks_of_no_length(tmp_path):
    with pytest.raises(ValueError, match="at least one sample"):
        list(reading.read_blocks(tmp_path / "a.wav", 0))


@pytest.mark.parametrize("suffix, form, subtype", FORMATS)
def test_a_piece_is_that_part_of_the_whole(tmp_path, suffix, form, subtype):
    path = tmp_path / f"a.{suffix}"
    halves = [np.sin(2 * np.pi * hz * np.arange(48_000) / 48_000) for hz in (300, 900)]
    samples = 0.3 * np.concatenate(halves)
    soundfile.write(path, samples, 48_000, subtype=subtype, format=form)
    for source in (path, path.read_bytes(), samples.astype(np.float32)):
        for start, pitch in ((0.2, 300), (1.2, 900)):
            piece = reading.decode_piece(source, start, 0.5, sample_rate=48_000)
            assert piece.dtype == np.float32 and len(piece) == 8000
            assert abs(find_pitch(piece) - pitch) < 5
        # What lies behind the end is not there.
        assert len(reading.decode_piece(source, 1.5, 2.0, sample_rate=48_000)) < 10_000


def test_a_piece_of_lossless_audio_is_exact(tmp_path):
    values = np.random.default_rng(0).integers(-32768, 32768, 5000).astype(np.int16)
    soundfile.write(tmp_path / "a.flac", values, 16000, subtype="PCM_16")
    piece = reading.decode_piece(tmp_path / "a.flac", 0.1, 0.05)
    np.testing.assert_array_equal(piece, values[1600:2400] / np.float32(32768))


def test_no_piece_behind_the_end(tmp_path, make_tone):
    soundfile.write(tmp_path / "a.wav", make_tone(1.0), 16000)
    for source in (tmp_path / "a.wav", make_tone(1.0)):
        with pytest.raises(reading.AudioError, match="zero length"):
            reading.decode_piece(source, 2.0, 1.0)
