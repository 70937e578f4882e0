"""What libsndfile cannot read goes through ffmpeg: a small script stands for it."""

import os
import shutil
import stat
import sys

import numpy as np
import pytest
import soundfile

from nim4_jax.data.audio import ffmpeg, reading

HEADER = r"""
import struct, sys
path = sys.argv[sys.argv.index("-i") + 1]
assert path.startswith("file:/") and "-nostdin" in sys.argv, path
content = open(path[5:], "rb").read()
if "-f" not in sys.argv:
    sys.stderr.write("  Duration: 00:00:02.50, start: 0.0\n")
    sys.exit(1)
out = sys.stdout.buffer
def begin(rate=8000, channels=1, encoding=6):
    out.write(struct.pack(">4s5I", b".snd", 24, 0xFFFFFFFF, encoding, rate, channels))
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Put a script on the PATH as ffmpeg: (lines behind HEADER) → a file for it."""

    def put(body: str) -> str:
        program = tmp_path / "bin" / "ffmpeg"
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!{sys.executable}\n{HEADER}\n{body}\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
        file = tmp_path / "-memo: pipe:0 x.m4a"
        file.write_bytes(b"\0\0\0\x1cftypM4A " + bytes(99))
        return str(file)

    return put


def test_its_samples_are_read_and_its_header_is_believed(install):
    path = install('begin(8000, 2); out.write(struct.pack(">2f", 0.5, 0.25) * 20000)')
    samples = reading.decode(path)
    assert len(samples) == 40_000
    np.testing.assert_allclose(samples[1000:-1000], 0.375, atol=1e-3)
    assert reading.read_duration(path) == 2.5
    np.testing.assert_allclose(reading.decode(path, channel=1)[1000:-1000], 0.25, 0.01)
    assert len(reading.decode_piece(path, 1.0, 0.5)) == 8000
    assert len(np.concatenate(list(reading.read_blocks(path, 1.0)))) == 40_000
    with open(path, "rb") as file:
        assert len(reading.decode(file.read())) == 40_000


@pytest.mark.parametrize(
    ("body", "reason", "message"),
    [
        ("begin(655350)", "unsupported audio", "655350 Hz"),
        ("begin(8000, 64)", "unsupported audio", "64 channels"),
        ("begin(8000, 1, 3)", "unreadable audio", "no 32 bit AU"),
        ('sys.exit("moov atom not found")', "unreadable audio", "moov atom not found"),
        ("sys.exit(3)", "unreadable audio", "exit status 3"),
        ("begin(); out.write(bytes(4 << 20))", "too long", "limit is 3.00 s"),
        ("begin(); out.write(bytes(400)); sys.exit('broke')", "truncated", "broke"),
        ("begin(); out.write(bytes(400)); sys.stderr.write('x' * 10**6)",
         "damaged audio", "xxx"),
        ('begin(); out.write(struct.pack(">f", float("nan")))', "not finite", "nan"),
        ("begin()", "zero length", "no sample"),
    ],
)  # fmt: skip
def test_what_goes_wrong_with_it_is_an_audio_error(install, body, reason, message):
    path = install(body)
    with pytest.raises(reading.AudioError, match=message) as caught:
        reading.decode(path, max_seconds=3.0)
    assert caught.value.reason == reason


def test_one_that_hangs_is_ended(install, monkeypatch):
    monkeypatch.setattr(ffmpeg, "_PATIENCE", 1.0)
    path = install("import time; time.sleep(60)")
    with pytest.raises(reading.AudioError, match="wrote nothing for 1 s"):
        reading.decode(path)


def test_what_libsndfile_reads_does_not_need_it(install, tmp_path, make_tone):

    install("sys.exit('never')")
    soundfile.write(tmp_path / "a.wav", make_tone(0.5), 16_000)
    assert len(reading.decode(tmp_path / "a.wav")) == 8000


@pytest.mark.skipif(not shutil.which("ffmpeg"), reason="no ffmpeg on the PATH")
def test_the_real_one(tmp_path, make_tone):
    import subprocess

    soundfile.write(tmp_path / "a.wav", make_tone(2.0), 16_000)
    made = tmp_path / "a.m4a"
    command = ["ffmpeg", "-v", "error", "-i", str(tmp_path / "a.wav"), str(made)]
    subprocess.run(command, check=True)
    assert abs(len(reading.decode(made)) - 32_000) < 2000
    assert abs(reading.read_duration(made) - 2.0) < 0.2
    made.write_bytes(made.read_bytes()[:300])
    with pytest.raises(reading.AudioError):
        reading.decode(made)


@pytest.mark.skipif(not shutil.which("ffmpeg"), reason="no ffmpeg on the PATH")
@pytest.mark.parametrize("kind", ["concat", "playlist", "cue sheet"])
def test_a_list_of_other_files_is_not_followed(tmp_path, make_tone, kind):
    """Whoever may upload a file must not read others by it."""
    soundfile.write(tmp_path / "secret.wav", make_tone(1.0), 16_000)
    secret = tmp_path / "secret.wav"
    lists = {
        "concat": f"ffconcat version 1.0\nfile {secret}\n",
        "playlist": f"#EXTM3U\n#EXTINF:1,\n{secret}\n#EXT-X-ENDLIST\n",
        "cue sheet": f'<?xml version="1.0"?><MPD><BaseURL>{secret}</BaseURL></MPD>',
    }
    path = tmp_path / "upload.m4a"
    path.write_text(lists[kind])
    with pytest.raises(reading.AudioError) as caught:
        reading.decode(str(path))
    assert "secret" not in str(caught.value).replace(str(tmp_path), "")
