"""Lengths that headers state are estimates: joined, piped, crashed and broken files."""

import io
import os

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from nim4_jax.data.audio import audio_error, ffmpeg, reading
from nim4_jax.data.audio.containers import detect, flac, mpeg, ogg, riff
from nim4_jax.data.audio.containers.view import View

RATE = 16_000
FORMATS = {
    "wav": ("WAV", "PCM_16"),
    "gsm.wav": ("WAV", "GSM610"),
    "flac": ("FLAC", "PCM_16"),
    "ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
    "aiff": ("AIFF", "PCM_16"),
    "au": ("AU", "PCM_16"),
    "w64": ("W64", "PCM_16"),
    "caf": ("CAF", "PCM_16"),
}
JOINABLE = [form for form in FORMATS if form != "caf"]


@pytest.fixture(autouse=True)
def without_ffmpeg(monkeypatch):
    """The same on machines with ffmpeg."""
    monkeypatch.setattr(ffmpeg, "find", lambda: None)


def encode(form: str, seconds: float = 1.0, pitch: float = 300.0, rate=RATE) -> bytes:
    """A tone in some noise, in a file of some form."""
    tone = 0.3 * np.sin(2 * np.pi * pitch * np.arange(round(seconds * rate)) / rate)
    tone += np.random.default_rng(0).normal(0, 0.02, len(tone))
    container, subtype = FORMATS[form]
    file = io.BytesIO()
    soundfile.write(file, tone, rate, format=container, subtype=subtype)
    return file.getvalue()


def read(data: bytes) -> tuple[np.ndarray, str]:
    """What can be decoded, and the reason of what is raised behind it."""
    made = []
    try:
        for block in reading.read_blocks(data, 0.7):
            made.append(block)
    except reading.AudioError as error:
        assert error.reason in audio_error.AUDIO_REASONS
        return np.concatenate([np.zeros(0), *made]), error.reason
    return np.concatenate([np.zeros(0), *made]), ""


def find_pitch(samples: np.ndarray) -> float:
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return np.argmax(spectrum) * RATE / len(samples)


# --- joined


@pytest.mark.parametrize("form", JOINABLE)
def test_files_that_are_joined_are_read_to_the_last(form):
    parts = [encode(form, 1.0, pitch) for pitch in (300, 900, 600)]
    samples, reason = read(b"".join(parts))
    alone = [len(read(part)[0]) for part in parts]
    assert reason == "" and len(samples) == sum(alone)
    ends = np.cumsum(alone)
    for end, size, pitch in zip(ends, alone, (300, 900, 600)):
        middle = samples[end - size + 2000 : end - 3000]
        assert abs(find_pitch(middle) - pitch) < 5
    assert abs(reading.read_duration(b"".join(parts)) - len(samples) / RATE) < 0.05
    np.testing.assert_array_equal(reading.decode(b"".join(parts)), samples)
    # A piece in the second, and one over the border.
    first = alone[0] / RATE
    piece = reading.decode_piece(b"".join(parts), first + 0.3, 0.4)
    assert len(piece) == 6400 and abs(find_pitch(piece) - 900) < 5
    assert len(reading.decode_piece(b"".join(parts), first - 0.2, 0.5)) == 8000


def test_joined_files_may_differ_in_rate():
    samples, reason = read(encode("wav") + encode("wav", 1.0, 900, 48_000))
    assert (len(samples), reason) == (32_000, "")
    assert abs(find_pitch(samples[17_000:31_000]) - 900) < 5


# --- WAV: sizes that are off


def forge(data: bytes, riff_size: int | None, size: int | None) -> bytes:
    """A WAV with other sizes in its header."""
    place = data.index(b"data") + 4
    made = bytearray(data)
    if riff_size is not None:
        made[4:8] = riff_size.to_bytes(4, "little")
    if size is not None:
        made[place : place + 4] = size.to_bytes(4, "little")
    return bytes(made)


@pytest.mark.parametrize(
    "size", [0, 0xFFFFFFFF, 0x7FFFFFFF, 0x80000000, 0x7FFFF000, 0xFFFFFFFF - 36]
)
@pytest.mark.parametrize("form", ["wav", "gsm.wav"])
def test_unknown_sizes_mean_until_the_end(form, size):
    whole = encode(form)
    samples, reason = read(forge(whole, min(size + 36, 0xFFFFFFFF), size))
    np.testing.assert_array_equal(samples, read(whole)[0])
    assert reason == ""
    # Two such pipes, joined.
    twice, reason = read(forge(whole, size, size) * 2)
    assert (len(twice), reason) == (2 * len(samples), "")


def test_silence_behind_a_header_of_a_crash_is_heard():
    quiet = io.BytesIO()
    soundfile.write(quiet, np.zeros(5 * RATE, np.int16), RATE, format="WAV")
    samples, reason = read(forge(quiet.getvalue(), 0, 0))
    assert (len(samples), reason) == (5 * RATE, "")


@pytest.mark.parametrize("off", [-44, -8, -1, 1, 8, 1000, 10**6])
def test_the_size_of_the_whole_says_nothing(off):
    data = encode("wav")
    samples, reason = read(forge(data, len(data) - 8 + off, None))
    assert (len(samples), reason) == (RATE, "")


def test_a_size_that_was_written_too_early_is_only_a_begin():
    data = encode("wav")
    samples, reason = read(forge(data, 8000 + 36, 8000))
    assert (len(samples), reason) == (RATE, "")


def test_chunks_and_strays_behind_the_data_are_not_heard():
    data = encode("wav")
    for tail in (
        b"LIST\x04\0\0\0abcd",
        b"id3 \x05\0\0\0abcde\0" + b"LIST\x02\0\0\0xy",
        b"TAG".ljust(128, b"x"),
        bytes(9000),
    ):
        assert len(read(data + tail)[0]) == RATE, tail[:4]


# --- unknown or missing lengths of others


def test_flac_of_unknown_or_too_small_length():
    whole = encode("flac")
    for stated in (0, 5000):
        data = bytearray(whole)
        packed = int.from_bytes(data[21:26], "big") >> 36 << 36 | stated
        data[21:26] = packed.to_bytes(5, "big")
        samples, reason = read(bytes(data))
        assert (len(samples), reason) == (RATE, "")
        assert reading.read_duration(bytes(data)) == 1.0
        assert len(reading.decode_piece(bytes(data), 0.9, 1.0)) == 1600


def strip_table(data: bytes) -> bytes:
    """An mp3 without its first frame, which holds the table: as a pipe writes it."""
    header = mpeg.parse_header(data[1], data[2])
    assert header and (b"Xing" in data[:64] or b"Info" in data[:64])
    return data[header.size :]


def test_mp3_without_a_table_is_read_to_its_end():
    random = np.random.default_rng(0)
    loud = 0.3 * random.normal(size=2 * 44_100)
    file = io.BytesIO()
    # Silence takes small frames with a variable rate: a guess from the first is wrong.
    quiet_first = np.concatenate([np.zeros(44_100), loud])
    soundfile.write(file, quiet_first, 44_100, format="MP3", bitrate_mode="VARIABLE")
    data = file.getvalue()
    expected = len(read(data)[0])
    for made in (strip_table(data), b"ID3\x04\0\0\0\0\0\x0a" + bytes(10) + data):
        samples, reason = read(made)
        assert reason == "" and abs(len(samples) - expected) < 1600
        assert abs(reading.read_duration(made) - len(samples) / RATE) < 0.01


def split_pages(data: bytes) -> list[bytes]:
    starts = [i for i in range(len(data)) if data[i : i + 5] == b"OggS\0"]
    return [data[a:b] for a, b in zip(starts, [*starts[1:], len(data)])]


def rewrite(page: bytes, **changes: int) -> bytes:
    """A page with other flags or another position, and its checksum."""
    made = bytearray(page)
    made[5] = changes.get("flags", made[5])
    if "position" in changes:
        made[6:14] = changes["position"].to_bytes(8, "little", signed=True)
    made[22:26] = ogg.checksum(bytes(made))
    return bytes(made)


@pytest.mark.parametrize("form", ["ogg", "opus"])
def test_pages_of_ogg(form):
    data = encode(form, 9.0)
    pages = split_pages(data)
    assert all(ogg.checksum(page) == page[22:26] for page in pages)
    whole = read(data)[0]
    unmarked = [*pages[:-1], rewrite(pages[-1], flags=pages[-1][5] & ~4)]
    samples, reason = read(b"".join(unmarked))
    assert reason == "" and len(samples) == len(whole)
    # Cut within the last page: what came before is heard.
    samples, reason = read(data[:-50])
    assert reason == "truncated" and len(samples) > 0.2 * len(whole)
    # Another stream beside it.
    other = bytearray(rewrite(pages[0]))
    other[14:18], other[28:32] = b"abcd", b"????"
    other = rewrite(bytes(other))
    samples, reason = read(pages[0] + other + b"".join(pages[1:]))
    assert reason == "" and len(samples) == len(whole)


def test_opus_whose_first_position_is_short_is_read():
    pages = split_pages(encode("opus", 4.0))
    position = int.from_bytes(pages[2][6:14], "little")
    pages[2] = rewrite(pages[2], position=position - 3)
    samples, reason = read(b"".join(pages))
    assert reason == "" and abs(len(samples) - 4 * RATE) < 400


def test_flac_in_ogg_is_read():
    plain = encode("flac")
    first = b"\x7fFLAC\x01\0\0\x01" + plain[:42]
    rest = plain[42:]
    packets = [first] + [rest[n : n + 4000] for n in range(0, len(rest), 4000)]
    pages = []
    for number, packet in enumerate(packets):
        segments = bytes([255] * (len(packet) // 255) + [len(packet) % 255])
        flags = 2 if not number else 4 if number == len(packets) - 1 else 0
        head = b"OggS\0" + bytes([flags]) + bytes(8) + b"wxyz"
        head += number.to_bytes(4, "little") + bytes(4) + bytes([len(segments)])
        pages.append(rewrite(head + segments + packet))
    samples, reason = read(b"".join(pages))
    assert reason == ""
    np.testing.assert_array_equal(samples, read(plain)[0])


# --- what is really missing


@pytest.mark.parametrize("form", ["wav", "flac", "ogg", "opus", "aiff", "w64"])
def test_a_cut_file_is_heard_to_the_cut_and_told(form):
    data = encode(form, 9.0)
    samples, reason = read(data[: len(data) * 3 // 5])
    assert reason in ("truncated", "damaged audio")
    assert 0.1 * 9 * RATE < len(samples) < 0.9 * 9 * RATE
    with pytest.raises(reading.AudioError):
        reading.decode(data[: len(data) * 3 // 5])


def test_a_broken_middle_is_told_and_the_end_is_heard():
    data = encode("mp3", 6.0)
    half = len(data) // 2
    samples, reason = read(data[:half] + b"\x55" * 300 + data[half + 300 :])
    assert reason == "damaged audio" and 4.5 * RATE < len(samples) < 6.2 * RATE
    assert abs(find_pitch(samples[-RATE:]) - 300) < 3


# --- limits


def test_a_header_cannot_claim_what_no_speech_has():
    wav = encode("wav")
    for rate in (0, 1, 1000, 3999, 192_001, 655_350, 0x7FFFFFFF):
        data = wav[:24] + rate.to_bytes(4, "little") + wav[28:]
        for use in (
            reading.decode,
            reading.read_duration,
            lambda d: read(d)[1] and 1 / 0,
        ):
            with pytest.raises((reading.AudioError, ZeroDivisionError)):
                use(data)
    for rate in (4000, 8000, 192_000):
        data = wav[:24] + rate.to_bytes(4, "little") + wav[28:]
        assert abs(len(reading.decode(data)) - RATE * RATE / rate) <= 1
    many = io.BytesIO()
    soundfile.write(many, np.zeros((100, 9)), RATE, format="WAV")
    with pytest.raises(reading.AudioError, match="9 channels, expected 1 to 8"):
        reading.decode(many.getvalue())


@pytest.mark.parametrize("value", [1e19, -3e38, np.nan, np.inf])
def test_absurd_samples_are_refused(value):
    file = io.BytesIO()
    soundfile.write(file, np.array([0, value, 0]), RATE, format="WAV", subtype="DOUBLE")
    with pytest.raises(reading.AudioError, match="not finite"):
        reading.decode(file.getvalue())
    with pytest.raises(reading.AudioError, match="not finite"):
        reading.decode(np.array([0, value, 0]))


# --- names


@pytest.mark.parametrize(
    "name", ["x.raw", "x.RAW", "x", "x.mat", b"caf\xe9.wav", "x.au", "x.gsm", "x.mp3"]
)
def test_whatever_a_file_is_called_its_bytes_decide(tmp_path, name):
    path = tmp_path / os.fsdecode(name)
    path.write_bytes(encode("wav"))
    assert len(reading.decode(path)) == RATE
    path.write_bytes(b"this is no audio, whatever it is called " * 99)
    if path.suffix != ".gsm":  # which has no header
        with pytest.raises(reading.AudioError, match="unreadable audio") as caught:
            reading.decode(path)
        str(caught.value).encode("utf8")


def test_folders_pipes_and_devices_are_called_that(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    readable, writable = os.pipe()
    for path, message in (
        (tmp_path, "it is a folder"),
        (tmp_path / "pipe", "it is a pipe"),
        (f"/dev/fd/{readable}", "it is a pipe"),
        ("/dev/null", "it is a device"),
        (tmp_path / "a\0b", "missing file"),
    ):
        with pytest.raises(reading.AudioError, match=message):
            reading.decode(path)
    os.close(readable)
    os.close(writable)


def test_without_ffmpeg_the_way_out_is_told(tmp_path):
    (tmp_path / "memo.m4a").write_bytes(b"\0\0\0\x1cftypM4A " + bytes(999))
    with pytest.raises(reading.AudioError, match=r"MP4.*Readable are wav.*ffmpeg -i"):
        reading.decode(tmp_path / "memo.m4a")


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"RIFF\0\0\0\0WAVE", "WAV"),
        (b"RIFF\0\0\0\0AVI ", "AVI"),
        (b"OggS" + bytes(8), "Ogg"),
        (b"\x1a\x45\xdf\xa3" + bytes(8), "WebM/Matroska"),
        (bytes(12), ""),
        (b"\xff\xfb\x90\0" + bytes(8), ""),
        (b"RIF", ""),
    ],
)
def test_containers_are_known_by_their_first_bytes(head, name):
    assert detect.name_container(head) == name


def test_frames_are_told_from_samples():
    data = encode("mp3")
    assert detect.name_frames(data[: detect.FRAMES]) == "mp3"
    adts = b"\xff\xf1\x50\x80\x02\x1f\xfc" + bytes(9)
    assert detect.name_frames(adts * 4) == "AAC"
    random = np.random.default_rng(0)
    for _ in range(300):  # samples of about −1 begin with such bytes
        noise = random.integers(-40, 0, 6144).astype("<i2").tobytes()
        assert detect.name_frames(b"\xff\xfb" + noise) == ""


# --- views


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_a_view_is_its_pieces_joined(data):
    base = bytes(range(60))
    places = st.integers(0, 60)
    piece = st.one_of(st.binary(max_size=5), st.tuples(places, places))
    pieces = data.draw(st.lists(piece, max_size=6))
    expected = b"".join(
        p if isinstance(p, bytes) else base[p[0] : p[1]] for p in pieces
    )
    view = View(io.BytesIO(base), pieces)
    assert view.size == len(expected) and view.read() == expected
    start, stop = data.draw(st.tuples(st.integers(-5, 90), st.integers(-5, 90)))
    cut = view.cut([(start, stop), b"x"])
    assert cut.read() == expected[max(0, start) : max(0, stop)] + b"x"
    assert view.seek(start) == min(max(start, 0), len(expected))
    assert view.read(3) == expected[max(0, start) :][:3]


# --- fuzz (more of it in tests/fuzz)

SMALL = {form: encode(form, 0.3) for form in FORMATS}


@given(st.binary(max_size=400), st.sampled_from(sorted(FORMATS)))
@settings(max_examples=150, deadline=None)
def test_parsers_take_any_bytes(tail, form):
    view = View.of(SMALL[form][:48] + tail)
    for parser in (riff.lay_out, flac.lay_out, ogg.lay_out, mpeg.lay_out):
        layout = parser(view)
        assert layout is None or all(part.size >= 0 for part in layout.parts)
    assert audio_error.LOWEST_RATE < audio_error.HIGHEST_RATE
