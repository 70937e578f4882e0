"""Resampling packet by packet: the whole file's samples, whatever the packets."""

import hypothesis
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nim4_jax.data.audio import reading, resample
from nim4_jax.data.audio.resample import StreamResampler

RATES = [8000, 11025, 16000, 22050, 44100, 48000]


def make_noise(count, seed=0, channels=None):
    shape = count if channels is None else (count, channels)
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def run(samples, rate, sizes):
    """All outputs of a stream whose packets have these sizes, over and over."""
    stream, outputs, first, turn = StreamResampler(rate), [], 0, 0
    while first < len(samples):
        size = sizes[turn % len(sizes)]
        outputs.append(stream.feed(samples[first : first + size]))
        first, turn = first + size, turn + 1
    outputs.append(stream.finish())
    assert all(output.dtype == np.float32 for output in outputs)
    return np.concatenate(outputs)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("seconds", [None, 0.007, 0.1])
def test_packets_give_what_the_whole_file_gives(rate, seconds):
    samples = make_noise(round(0.7 * rate) + 3)
    size = round(seconds * rate) if seconds else 1
    whole = reading.resample(samples, rate, 16000)
    np.testing.assert_array_equal(run(samples, rate, [size]), whole)


@hypothesis.settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([*RATES, 12345, 96000]),
    st.integers(0, 9000),
    st.lists(st.integers(0, 3000), min_size=1, max_size=6).filter(any),
)
def test_the_sizes_of_packets_do_not_matter(rate, count, sizes):
    samples = make_noise(count, seed=count)
    output = run(samples, rate, sizes)
    np.testing.assert_array_equal(output, run(samples, rate, [max(count, 1)]))
    if count:
        np.testing.assert_array_equal(output, reading.resample(samples, rate, 16000))
    assert abs(len(output) - round(count * 16000 / rate)) <= 1


@hypothesis.settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([16000, 44100]),
    st.integers(1, 8),
    st.sampled_from(["C", "F"]),
    st.booleans(),
    st.lists(st.integers(1, 500), min_size=1, max_size=4),
)
def test_channels_and_integers_are_mixed_as_in_files(
    rate, channels, order, whole_numbers, sizes
):
    samples = make_noise(1500, channels, channels)
    if whole_numbers:
        samples = reading.to_int16(samples)
    expected = reading.decode(samples, sample_rate=rate)
    output = run(np.asarray(samples, order=order), rate, sizes)
    np.testing.assert_allclose(output, expected, rtol=0, atol=1e-6)
    contiguous = run(samples, rate, [len(samples)])
    np.testing.assert_array_equal(output, contiguous)


@pytest.mark.parametrize("rate", [8000, 44100, 48000])
def test_a_sine_has_no_clicks(rate):
    samples = np.sin(2 * np.pi * 440 * np.arange(rate) / rate).astype(np.float32)
    output = run(samples, rate, [round(0.007 * rate)])
    ideal = np.sin(2 * np.pi * 440 * np.arange(len(output)) / 16000)
    error = np.abs(output - ideal)[400:-400].max()
    # Measured: -122 dB and better.
    assert 20 * np.log10(error) < -100


def test_equal_rates_pass_untouched():
    samples = make_noise(1000)
    stream = StreamResampler(16000)
    output = stream.feed(samples)
    np.testing.assert_array_equal(output, samples)
    assert not np.shares_memory(output, samples)
    assert not len(stream.finish())


def test_integers_span_minus_one_to_one():
    output = StreamResampler(16000).feed(np.array([-32768, 0, 32767], np.int16))
    np.testing.assert_array_equal(output, np.float32([-1, 0, 32767 / 32768]))


def test_other_targets():
    samples = make_noise(4800)
    stream = StreamResampler(48000, 8000)
    output = np.concatenate([stream.feed(samples), stream.finish()])
    np.testing.assert_array_equal(output, reading.resample(samples, 48000, 8000))


@pytest.mark.parametrize("rate", [16000, 44100])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize("channels", [None, 2])
def test_a_bad_packet_is_refused_whole(rate, value, channels):
    samples = make_noise(3000, channels=channels)
    stream = StreamResampler(rate)
    outputs = [stream.feed(samples[:1000])]
    bad = samples[:50].copy()
    bad[7] = value
    with pytest.raises(ValueError, match="sample 7 of the packet"):
        stream.feed(bad)
    outputs += [stream.feed(samples[1000:]), stream.finish()]
    np.testing.assert_array_equal(np.concatenate(outputs), run(samples, rate, [3000]))


@pytest.mark.parametrize(
    "packet",
    [
        np.zeros(4, np.float64),
        np.zeros(4, np.int32),
        np.zeros(4, np.uint8),
        np.zeros(4, ">i2"),
        [0.0, 0.1],
        b"\0\0",
        None,
    ],
)
def test_other_types_are_refused(packet):
    stream = StreamResampler(48000)
    with pytest.raises(ValueError, match="float32"):
        stream.feed(packet)
    assert len(stream.feed(np.zeros(4800, np.float32))) + len(stream.finish()) == 1600


@pytest.mark.parametrize("shape", [(), (4, 0), (2, 480), (2, 2, 2)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="channels"):
        StreamResampler(48000).feed(np.zeros(shape, np.float32))


@pytest.mark.parametrize("rate", [0, -16000, 16, np.nan, np.inf, 1e300])
def test_impossible_rates_are_refused(rate):
    with pytest.raises(ValueError, match="source_rate"):
        StreamResampler(rate)
    with pytest.raises(ValueError, match="target_rate"):
        StreamResampler(16000, rate)


@pytest.mark.parametrize("rate", [resample.LOWEST_RATE, resample.HIGHEST_RATE])
def test_the_farthest_rates_work(rate):
    samples = make_noise(rate // 10)
    assert abs(len(run(samples, rate, [1000])) - 1600) <= 1


@pytest.mark.parametrize("rate", [16000, 44100])
def test_a_finished_stream_takes_nothing(rate):
    stream = StreamResampler(rate)
    assert not len(stream.feed(np.zeros(0, np.float32)))
    assert not len(stream.finish())
    with pytest.raises(ValueError, match="new StreamResampler"):
        stream.feed(np.zeros(10, np.float32))
    with pytest.raises(ValueError, match="new StreamResampler"):
        stream.finish()
