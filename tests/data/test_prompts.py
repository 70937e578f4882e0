"""Human prompts: Debian packages, transcripts and the choice of prompts."""

import gzip
import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nim4_jax.data.corpora import prompts

FOLDER = "./usr/share/asterisk/sounds/en_US_f_Allison"
TRANSCRIPTS = """; a comment: not a transcript
vm-deleted:  Message   deleted.
beep: [this is a simple beep tone]
silence/1: (1 second of silence)
vm-withheld: Number witheld and indentified.
no-recording: Nobody read this.
"""


def pack_deb(path, files: dict[str, bytes]):
    """A Debian package with these files, written by hand."""
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w:xz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    members = {"debian-binary": b"2.0", "data.tar.xz": tar.getvalue()}
    content = b"!<arch>\n"
    for name, body in members.items():
        header = f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(body):<10}`\n"
        content += header.encode() + body + b"\n" * (len(body) % 2)
    path.write_bytes(content)
    return path


@pytest.fixture
def packages(tmp_path):
    names = ("vm-deleted", "beep", "silence/1", "vm-withheld", "no-transcript")
    recordings = {f"{FOLDER}/{n}.g722": bytes(8000) for n in names}
    words = {"./usr/share/doc/x/core-sounds-en.txt.gz": gzip.compress(
        TRANSCRIPTS.encode()
    )}  # fmt: skip
    pack_deb(tmp_path / "asterisk-core-sounds-en-g722_1_all.deb", recordings)
    pack_deb(tmp_path / "asterisk-core-sounds-en_1_all.deb", words)
    return prompts.find_packages(tmp_path)


def test_clean_prompts_are_read(packages):
    read = prompts.read_prompts(packages)
    assert {p.name: p.text for p in read} == {
        "vm-deleted": "Message deleted.",
        "vm-withheld": "Number withheld and identified.",
    }
    assert all(p.duration == 1.0 for p in read)


def test_bad_packages_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"apt-get download asterisk"):
        prompts.find_packages(tmp_path)
    text = tmp_path / "a.deb"
    text.write_text("hello")
    with pytest.raises(ValueError, match=r"a.deb is not a Debian package"):
        list(prompts.unpack_deb(text))
    whole = pack_deb(tmp_path / "b.deb", {"./x": b"content"}).read_bytes()
    text.write_bytes(whole[:80])
    with pytest.raises(ValueError, match=r"no data.tar"):
        list(prompts.unpack_deb(text))


def test_missing_tools_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match=r"apt-get was not found.*--debs"):
        prompts.download_packages(tmp_path)
    with pytest.raises(RuntimeError, match=r"ffmpeg was not found"):
        prompts.decode_g722(bytes(80))


@given(
    seconds=st.lists(st.floats(0.2, 12), min_size=1, max_size=30),
    count=st.integers(1, 10),
)
def test_choice_spans_the_lengths(seconds, count):
    every = [
        prompts.Prompt(f"p{i:02d}", "please hold on", bytes(int(8000 * s)))
        for i, s in enumerate(seconds)
    ]
    suitable = [p for p in every if 1 <= p.duration <= 8]
    if len(suitable) < count:
        with pytest.raises(ValueError, match=f"only {len(suitable)} are suitable"):
            prompts.choose_prompts(every, count)
        return
    chosen = prompts.choose_prompts(every, count)
    assert len({p.name for p in chosen}) == count
    lengths = [p.duration for p in chosen]
    assert lengths == sorted(lengths)
    assert lengths[0] == min(p.duration for p in suitable)
    assert count == 1 or lengths[-1] == max(p.duration for p in suitable)


@pytest.mark.parametrize(
    "text",
    ["Press 1 now please", "wait for ...", "to the PBX", "hit * for help", "two words"],
)
def test_only_plain_sentences_are_chosen(text):
    prompt = prompts.Prompt("p", text, bytes(16000))
    with pytest.raises(ValueError, match=r"only 0 are suitable"):
        prompts.choose_prompts([prompt], 1)
