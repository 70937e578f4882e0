"""Sweeps from the command line: what is refused, and what survives a SIGKILL."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from nim4_jax.eval.sweep import cells, identity, runner

TIMED = ("processing_seconds", "real_time_factor", "rtfx")


@pytest.fixture(scope="module")
def manifests(tmp_path_factory) -> list[str]:
    """Two sets of noise."""
    folder = tmp_path_factory.mktemp("sets")
    paths = []
    for name in ("a", "b"):
        rows = []
        for number in range(4):
            samples = np.random.default_rng(number).normal(0, 0.1, 8000)
            soundfile.write(folder / f"{name}{number}.wav", samples, 16_000)
            row = {"audio": f"{name}{number}.wav", "text": f"call anna {number}"}
            rows.append(json.dumps({**row, "lang": "en", "keywords": ["anna"]}))
        paths.append(str(folder / f"{name}.jsonl"))
        Path(paths[-1]).write_text("\n".join(rows) + "\n")
    return paths


def start(arguments, cache: str) -> subprocess.Popen:
    """`nim4 evaluate` as a process of its own."""
    # It compiles the least, and waits for no other device.
    fast = {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "nim4_jax.launch.evaluate", *arguments],
        env={**os.environ, **fast},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--models=/nowhere"], "error: /nowhere holds no model"),
        (["--models=a=b", "--stream"], "--stream: of the evaluation of one model"),
        (
            ["--config=configs/evaluate.py", "--config.limit=3"],
            "error: no model is given",
        ),
    ],
)
def test_what_cannot_be_is_told_in_a_line(
    arguments, message, compilation_cache, tmp_path
):
    out = tmp_path / "out"
    process = start([*arguments, f"--out={out}"], compilation_cache)
    told = "".join(process.communicate())
    assert message in told and "Traceback" not in told
    assert process.returncode in (1, 2) and not out.exists()


def read(out: Path) -> list:
    """Every cell without what is timed."""
    found = []
    for path in sorted(out.glob("cells/[!.]*")):
        cell = cells.read_folder(path)
        kept = {k: v for k, v in cell.summary.items() if k not in TIMED}
        found.append((cell.key, cell.status, cell.fingerprint, kept, cell.rows))
    return found


@pytest.mark.long
def test_killed_anywhere_it_ends_alike(
    model_files, manifests, compilation_cache, tmp_path
):
    """After the first cells, and a little later: within the next one."""
    sweep = [
        f"--models=tiny={model_files[0]},deaf={model_files[1]}",
        f"--benchmarks={','.join(manifests)},/nowhere/c.jsonl",
        "--modes=offline",
        "--hotwords=none,said",
        "--phonemes",
    ]
    whole, often = tmp_path / "whole", tmp_path / "often"
    process = start([*sweep, f"--out={whole}"], compilation_cache)
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert "report.html" in output and "cell 12 of 12" in errors
    kills = 0
    for count, delay in ((0, 4.0), (1, 0.0), (2, 0.05), (4, 0.2), (7, 0.0), (9, 0.1)):
        process = start([*sweep, f"--out={often}"], compilation_cache)
        while process.poll() is None:
            if len(list(often.glob("cells/[!.]*/cell.json"))) >= count:
                time.sleep(delay)
                break
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        process.communicate()
    assert kills >= 3
    process = start([*sweep, f"--out={often}"], compilation_cache)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert read(often) == read(whole)
    assert {path.name for path in often.iterdir()} == {
        path.name for path in whole.iterdir()
    }


@pytest.mark.parametrize("text", ["", "1", "a/b", "2/2", "-1/2", "1/2/3"])
def test_shards_that_cannot_be_are_refused(text):
    with pytest.raises(ValueError, match="--shard="):
        runner.read_shard(text)


def test_a_shard_is_its_number_and_their_count():
    assert [runner.read_shard(f"{n}/3") for n in range(3)] == [(0, 3), (1, 3), (2, 3)]


def test_models_are_told_apart_by_their_content(model_files, tmp_path):
    """Files by their bytes, wherever they are; runs by their last checkpoint."""
    copied = tmp_path / "copy.safetensors"
    copied.write_bytes(Path(model_files[0]).read_bytes())
    same = identity.identify(str(copied))
    assert same == identity.identify(model_files[0])
    copied.write_bytes(copied.read_bytes()[:-1] + b"!")
    bundle, run = tmp_path / "bundle", tmp_path / "run"
    found = {same, identity.identify(str(copied))}
    bundle.mkdir()
    for content in ("{}", "[]"):
        (bundle / "manifest.json").write_text(content)
        found.add(identity.identify(str(bundle)))
    for step in (1, 2):
        (run / "checkpoints" / str(step) / "meta").mkdir(parents=True)
        found.add(identity.identify(str(run)))
    (run / "checkpoints" / "2" / "meta" / "metadata").write_text("{}")
    found.add(identity.identify(str(run)))
    assert len(found) == 7
    with pytest.raises(ValueError, match="holds no model"):
        identity.identify(str(tmp_path / "nothing"))
