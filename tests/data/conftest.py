"""Small audio files and manifests for the tests of the data package."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

RATE = 16000


def _make_tone(seconds: float, rate: int = RATE, pitch: float = 300.0) -> np.ndarray:
    """A quiet tone, float32 [S]."""
    time = np.arange(round(seconds * rate)) / rate
    return (0.3 * np.sin(2 * np.pi * pitch * time)).astype(np.float32)


def _write_manifest(path: Path, rows: list[dict]) -> Path:
    """Rows as JSON lines."""
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf8")
    return path


@pytest.fixture
def make_tone():
    """The tone maker: (seconds, rate, pitch) → float32 [S]."""
    return _make_tone


@pytest.fixture
def write_manifest():
    """The manifest writer: (path, rows) → path."""
    return _write_manifest


@pytest.fixture(scope="session")
def corpus_path(tmp_path_factory) -> Path:
    """A manifest of 22 short tones, 0.5 to 1.55 s, each of its own pitch."""
    folder = tmp_path_factory.mktemp("corpus")
    rows = []
    for number in range(22):
        seconds = 0.5 + 0.05 * number
        name = f"{number:02d}.wav"
        tone = _make_tone(seconds, RATE, 200 + 10 * number)
        soundfile.write(folder / name, tone, RATE)
        rows.append(
            {
                "audio": name,
                "text": "好" if number % 2 else "hi",
                "lang": "zh" if number % 2 else "en",
                "duration": round(seconds, 3),
                "split": "test" if number % 5 == 4 else "train",
                "id": f"u{number}",
            }
        )
    return _write_manifest(folder / "manifest.jsonl", rows)
