"""Human English test speech: Asterisk's prompts, read by Allison Smith (CC-BY-SA-3.0).

Two Debian packages carry them: the recordings as 16 kHz G.722 and the transcripts.
"""

from __future__ import annotations

import gzip
import io
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

PACKAGES = ("asterisk-core-sounds-en-g722", "asterisk-core-sounds-en")
TRANSCRIPTS = "core-sounds-en.txt.gz"
VOICE_FOLDER = "en_US_f_Allison"
VOICE = "allison_smith"
SAMPLE_RATE = 16_000  # Hz
BYTES_PER_SECOND = 8_000  # G.722 has 4 bits a sample
SHORTEST, LONGEST = 1.0, 8.0  # s, of a prompt worth bundling
# Text that is not plain words: signs, digits, cut sentences, spelled letters, PBX.
NOT_PLAIN = re.compile(r"[][<>*#/&@0-9]|\.\.\.|\b[B-HJ-Z]\b|[A-Z]{2}")
MISSPELT = {  # slips in the package's transcripts -> what is said
    "fourtieth": "fortieth",
    "indentified": "identified",
    "represenatives": "representatives",
    "umute": "unmute",
    "witheld": "withheld",
}


@dataclass(frozen=True)
class Prompt:
    """One prompt: its name in the package, its transcript and its G.722 bytes."""

    name: str
    text: str
    g722: bytes

    @property
    def duration(self) -> float:
        """Length, s."""
        return len(self.g722) / BYTES_PER_SECOND


def download_packages(folder: Path) -> list[Path]:
    """Fetch the two packages with apt-get into `folder`.

    Raises:
        RuntimeError: there is no apt-get, or it failed; the message says what to do.
    """
    if shutil.which("apt-get") is None:
        raise RuntimeError(
            "apt-get was not found. On a Debian system run "
            f"`apt-get download {' '.join(PACKAGES)}` and pass the folder as --debs"
        )
    folder.mkdir(parents=True, exist_ok=True)
    command = ["apt-get", "download", *PACKAGES]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(
            f"`{' '.join(command)}` failed: {done.stderr.strip()[-500:]}\n"
            "Run `apt-get update` first, or pass the packages' folder as --debs"
        )
    return find_packages(folder)


def find_packages(folder: Path) -> list[Path]:
    """The two package files in a folder.

    Raises:
        FileNotFoundError: one of them is not there.
    """
    found = []
    for package in PACKAGES:
        files = sorted(folder.glob(f"{package}_*.deb"))
        if not files:
            raise FileNotFoundError(
                f"no {package}_*.deb in {folder}; get it with "
                f"`apt-get download {package}`"
            )
        found.append(files[-1])
    return found


def unpack_deb(package: Path) -> Iterator[tuple[PurePosixPath, bytes]]:
    """The regular files of a Debian package: an `ar` archive around a tar.

    Raises:
        ValueError: the file is not a Debian package.
    """
    content = package.read_bytes()
    if not content.startswith(b"!<arch>\n"):
        raise ValueError(f"{package} is not a Debian package (no ar signature)")
    offset = 8
    while offset + 60 <= len(content):
        header = content[offset : offset + 60]
        name, size = header[:16].decode("ascii").strip(), int(header[48:58])
        body = content[offset + 60 : offset + 60 + size]
        if name.startswith("data.tar"):
            with tarfile.open(fileobj=io.BytesIO(body)) as files:
                for member in files:
                    stream = files.extractfile(member) if member.isfile() else None
                    if stream is not None:
                        yield PurePosixPath(member.name), stream.read()
            return
        offset += 60 + size + size % 2  # members start on even offsets
    raise ValueError(f"{package} has no data.tar: it is cut short or not a package")


def parse_transcripts(content: str) -> dict[str, str]:
    """Lines `name: words`; a line that starts with `;` is a comment.

    Known slips of spelling are mended.
    """
    transcripts = {}
    for line in content.splitlines():
        name, colon, text = line.partition(":")
        if colon and not line.startswith(";"):
            mended = re.sub(r"\w+", lambda word: MISSPELT.get(word[0], word[0]), text)
            transcripts[name.strip()] = " ".join(mended.split())
    return transcripts


def read_prompts(packages: list[Path]) -> list[Prompt]:
    """All clean prompts, by name: those that say what their transcript says.

    A transcript with a remark in brackets (`[this is a simple beep tone]`) describes
    a sound or a part that is not spoken, so such a prompt is left out.
    """
    recordings: dict[str, bytes] = {}
    transcripts: Mapping[str, str] = {}
    for package in packages:
        for path, content in unpack_deb(package):
            if path.name == TRANSCRIPTS:
                transcripts = parse_transcripts(gzip.decompress(content).decode("utf8"))
            elif path.suffix == ".g722" and VOICE_FOLDER in path.parts:
                inner = path.parts[path.parts.index(VOICE_FOLDER) + 1 :]
                recordings["/".join(inner).removesuffix(".g722")] = content
    return [
        Prompt(name, transcripts[name], recordings[name])
        for name in sorted(recordings)
        if re.search(r"\w", transcripts.get(name, ""))
        and not re.search(r"[][()<>]", transcripts[name])
    ]


def choose_prompts(prompts: list[Prompt], count: int) -> list[Prompt]:
    """`count` prompts of plain words, from the shortest to the longest, evenly.

    Raises:
        ValueError: there are fewer suitable prompts than asked for.
    """
    suitable = [
        p
        for p in prompts
        if SHORTEST <= p.duration <= LONGEST
        and not NOT_PLAIN.search(p.text)
        and len(p.text.split()) >= 3
    ]
    if len(suitable) < count:
        raise ValueError(
            f"asked for {count} prompts, only {len(suitable)} are suitable"
        )
    suitable.sort(key=lambda p: (p.duration, p.name))
    picks = np.linspace(0, len(suitable) - 1, count).round().astype(int)
    return [suitable[i] for i in picks]


def decode_g722(content: bytes) -> np.ndarray:
    """G.722 bytes → float32 [S], 16 kHz mono.

    Raises:
        RuntimeError: ffmpeg is missing or refuses the bytes.
    """
    if shutil.which("ffmpeg") is None:
        raise RuntimeError(
            "ffmpeg was not found: the prompts are G.722, which only ffmpeg decodes. "
            "Install it (apt-get install ffmpeg)"
        )
    command = ["ffmpeg", "-v", "error", "-f", "g722", "-i", "pipe:0"]
    command += ["-f", "s16le", "-ar", str(SAMPLE_RATE), "-ac", "1", "pipe:1"]
    done = subprocess.run(command, input=content, capture_output=True)
    if done.returncode or not done.stdout:
        reason = done.stderr.decode(errors="replace").strip()[-300:]
        raise RuntimeError(f"ffmpeg could not decode G.722: {reason}")
    return np.frombuffer(done.stdout, "<i2").astype(np.float32) / 32768
