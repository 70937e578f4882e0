"""What is piped into a stream: raw samples, and files that are recognised."""

import io
import itertools

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from nim4_jax.data.audio import ffmpeg, reading
from nim4_jax.decode.live import stdin_source

RATE = 16_000
TONE = (8000 * np.sin(np.arange(RATE) / 8)).astype("<i2")


class Trickle:
    """A pipe that hands out a few bytes at a time."""

    def __init__(self, content: bytes, sizes):
        self.content, self.sizes = io.BytesIO(content), itertools.cycle(sizes)

    def read(self, size: int) -> bytes:
        return self.content.read(min(size, next(self.sizes)))


@given(
    st.integers(0, 70),
    st.integers(1, 3),
    st.integers(1, 9),
    st.lists(st.integers(1, 11), min_size=1, max_size=4),
)
def test_pcm_is_read_whole_whatever_the_pipe_hands_out(length, channels, frames, sizes):
    content = bytes(range(length))
    warned = []
    packets = list(
        stdin_source.read_pcm(Trickle(content, sizes), channels, frames, warned.append)
    )
    assert all(len(packet) == frames for packet in packets[:-1])
    odd = length % (2 * channels)
    joined = b"".join(packet.astype("<i2").tobytes() for packet in packets)
    assert joined == content[: length - odd]
    assert len(warned) == bool(odd)


def encode(samples, form="WAV", rate=RATE, **options) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=form, **options)
    return file.getvalue()


def hear(content: bytes, choice="mix", rate=RATE) -> tuple[float, np.ndarray, list]:
    """Rate, samples [S, …] and warnings of what is piped."""
    warned = []
    rate, packets = stdin_source.open_stdin(
        Trickle(content, (1, 700, 4000)), 100, rate, choice, warned.append
    )
    return rate, np.concatenate(list(packets)), warned


@pytest.mark.parametrize("size", [None, 0, 0xFFFFFFFF, 0x80000000, 0x7FFFF000])
def test_a_wav_is_heard_as_it_comes_at_its_own_rate(size):
    content = bytearray(encode(TONE, rate=48_000))
    if size is not None:
        content[40:44] = size.to_bytes(4, "little")
    rate, samples, warned = hear(bytes(content), choice="2", rate=8_000)
    assert (rate, warned) == (48_000, [])
    np.testing.assert_array_equal(samples[:, 0], TONE)


def test_what_is_behind_a_wav_is_told():
    _, samples, warned = hear(encode(TONE) * 2)
    assert len(samples) == RATE and "behind the end" in warned[0]
    _, samples, warned = hear(encode(TONE) + b"LIST\4\0\0\0abcd")
    assert len(samples) == RATE and not warned


def test_a_channel_of_a_wav_is_chosen():
    both = np.stack([0 * TONE, TONE], axis=1)
    _, samples, _ = hear(encode(both), choice="right")
    np.testing.assert_array_equal(samples[:, 0], TONE)
    with pytest.raises(reading.AudioError, match="no channel 'right'"):
        hear(encode(TONE), choice="right")


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("FLAC", {}),
        ("WAV", {"subtype": "FLOAT"}),
        ("AIFF", {}),
        ("OGG", {}),
        ("MP3", {}),
    ],
)
def test_other_files_are_decoded_at_their_end(form, options):
    content = encode(TONE / 32768, form, **options)
    rate, samples, _ = hear(content, rate=8_000)
    assert rate == RATE
    np.testing.assert_array_equal(samples, reading.decode(content))


def test_what_cannot_be_decoded_is_named(monkeypatch):
    monkeypatch.setattr(ffmpeg, "find", lambda: None)
    with pytest.raises(reading.AudioError, match="stdin: unreadable audio: it is MP4"):
        hear(b"\0\0\0\x1cftypM4A " + bytes(999))
    header = encode(TONE)[:24] + (10**6).to_bytes(4, "little") + encode(TONE)[28:]
    with pytest.raises(reading.AudioError, match=r"stdin.*1000000 Hz"):
        hear(header)


@given(st.binary(max_size=300), st.sampled_from((b"", b"\xff\xfb", b"\xff\xf1", b"RI")))
@settings(max_examples=60, deadline=None)
def test_raw_samples_stay_raw(tail, head):
    """No noise of samples is taken for a file: what is known is a name in full."""
    content = (head + b"\1" + tail)[: (len(head) + 1 + len(tail)) // 2 * 2]
    rate, packets = stdin_source.open_stdin(
        io.BytesIO(content), 100, 8_000, "mix", lambda _: None
    )
    made = b"".join(packet.astype("<i2").tobytes() for packet in packets)
    assert (rate, made) == (8_000, content)


@pytest.mark.parametrize(
    ("choice", "meant"),
    [
        ("1", (1, "mix")),
        ("64", (64, "mix")),
        ("left", (1, "left")),
        ("mix", (1, "mix")),
    ],
)
def test_channels_are_a_number_or_a_choice(choice, meant):
    assert stdin_source.parse_channels(choice) == meant


@pytest.mark.parametrize("choice", ["each", "0", "65", "-1", "middle", ""])
def test_other_channels_are_refused(choice):
    with pytest.raises(ValueError, match="is not for streams; use one of mix, left"):
        stdin_source.parse_channels(choice)
