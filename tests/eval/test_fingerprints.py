"""A stored cell counts only for the data and the code that it was measured with."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from nim4_jax.eval.sweep import fingerprints, runner
from nim4_jax.eval.sweep.runner import SweepConfig


def write_sound(path: Path, seconds: float = 0.5, gain: float = 1.0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tone = gain * 0.3 * np.sin(np.arange(int(16_000 * seconds)) * 0.1)
    soundfile.write(path, tone, 16_000, "PCM_16")


@pytest.fixture
def material(tmp_path) -> Path:
    """A manifest of two recordings, and a folder of noise."""
    for name in ("a.wav", "b.wav", "noise/n.wav"):
        write_sound(tmp_path / name)
    rows = [{"audio": name, "text": "go"} for name in ("a.wav", "b.wav")]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "set.jsonl").write_text(text)
    return tmp_path


def plan(folder: Path, form: str = "{}/set.jsonl") -> str:
    """Fingerprint of the one cell."""
    spec = form.format(folder, folder)
    config = SweepConfig(models=("m=anything",), benchmarks=(spec,))
    (task,) = runner.plan(config, lambda model: "the same")
    return task.fingerprint


def test_other_audio_under_the_same_manifest_is_measured_anew(material):
    """Even of the same size and date; a date alone changes nothing."""
    before, path = plan(material), material / "b.wav"
    facts = path.stat()
    write_sound(path, gain=0.5)
    assert path.stat().st_size == facts.st_size
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    changed = plan(material)
    assert changed != before
    os.utime(path, (1, 1))
    assert plan(material) == changed
    path.unlink()
    assert plan(material) not in (before, changed)


def test_long_recordings_are_told_apart_by_their_ends_and_middles(material):
    path = material / "a.wav"
    write_sound(path, 60.0)
    prints = [plan(material)]
    content = bytearray(path.read_bytes())
    for place in (100, len(content) // 2, len(content) - 2):
        content[place] ^= 1
        path.write_bytes(content)
        prints.append(plan(material))
    path.write_bytes(content + b"\0\0")
    prints.append(plan(material))
    assert len(set(prints)) == 5


@pytest.mark.parametrize(
    "form", ["noisy:5@{}/noise:{}/set.jsonl", "room:0.5:{}/set.jsonl"]
)
def test_conditions_hang_on_their_audio(material, form):
    before = plan(material, form)
    write_sound(material / "a.wav", gain=0.5)
    after = plan(material, form)
    write_sound(material / "noise" / "n.wav", gain=0.5)
    last = plan(material, form)
    assert before != after and (after != last) == ("noise" in form)


def test_a_manifest_that_cannot_be_read_is_left_to_its_cell(material):
    before = plan(material)
    (material / "set.jsonl").write_text("{")
    assert plan(material) != before


def test_other_code_is_measured_anew(material, monkeypatch):
    before = plan(material)
    monkeypatch.setattr(fingerprints, "identify_code", lambda: "other")
    assert plan(material) != before


def test_code_that_measures_counts_and_code_that_reports_does_not(tmp_path):
    known = {path.name for path in fingerprints.list_code()}
    assert {"qwen3.py", "decoder.py", "error_rates.py", "recognisers.py"} <= known
    assert not known & {"plots.py", "page.py", "loop.py", "grpo.py", "serve.py"}
    code = tmp_path / "a.py"
    code.write_text("x = 1\n")
    before = fingerprints.identify_files([code])
    code.write_text("x = 2\n")
    assert fingerprints.identify_files([code]) != before
