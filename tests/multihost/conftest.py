"""Runs of several processes on this machine, each with a few CPU devices."""

import dataclasses
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

ROOT = Path(__file__).parents[2]
CHILD = Path(__file__).with_name("child.py")
STEPS = 3

MODEL = {
    "encoder.num_layers": 1,
    "encoder.width": 16,
    "encoder.num_heads": 4,
    "encoder.conv_kernel": 3,
    "encoder.conv_expansion": 1,
    "adaptor_width": 16,
    "llm.width": 16,
    "llm.num_layers": 1,
    "llm.num_heads": 4,
    "llm.num_kv_heads": 4,
    "llm.head_dim": 8,
    "llm.ffn": 16,
}


@dataclasses.dataclass(frozen=True)
class Host:
    """What one process did.

    Attributes:
        code: its exit code.
        log: what it said.
        rows: example numbers of each batch that it loaded, by loader; the first one is
            the training's.
        written: files that it opened to write, by absolute path.
    """

    code: int
    log: str
    rows: list[list[list[int]]]
    written: list[str]


@pytest.fixture(scope="session")
def manifest(tmp_path_factory) -> Path:
    """Eleven short recordings of noise in both languages."""
    folder = tmp_path_factory.mktemp("speech")
    rng = np.random.default_rng(0)
    rows = []
    for number in range(11):
        seconds = 0.45 + 0.05 * number
        samples = 0.1 * rng.normal(size=round(16_000 * seconds))
        soundfile.write(folder / f"{number}.wav", samples, 16_000)
        text, lang = ("好", "zh") if number % 2 else ("hi", "en")
        row = {"audio": f"{number}.wav", "text": text, "lang": lang}
        rows.append(json.dumps(row | {"duration": seconds}, ensure_ascii=False))
    (folder / "train.jsonl").write_text("\n".join(rows) + "\n", encoding="utf8")
    return folder / "train.jsonl"


@pytest.fixture(scope="session")
def settings(manifest) -> dict[str, Any]:
    """Dotted keys that make any stage tiny."""
    return {
        **{f"model.{key}": value for key, value in MODEL.items()},
        "data.sources": (str(manifest),),
        "data.batch_size": (8,),
        "data.bucket_seconds": (1.3,),
        "data.threads": 0,
        "steps": STEPS,
        "checkpoint_every": STEPS,
        "log_every": 1,
        "optimizer.warmup_steps": 1,
        # Adam moves parameters without effect by their round-off: not far.
        "optimizer.peak_rate": 4e-4,
    }


def write(value: Any) -> str:
    """A setting as the command line has it."""
    return value if isinstance(value, str) else repr(value)


def find_port() -> int:
    """One that is free now."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


@pytest.fixture
def launch(tmp_path, compilation_cache) -> Callable[..., list[Host]]:
    """(stage, settings of each host, workdir) → what each host did.

    `absent` is the number of a host that does not come.
    """

    def run(
        stage: str,
        per_host: list[dict[str, Any]],
        workdir: Path,
        absent: int | None = None,
    ) -> list[Host]:
        port, count = find_port(), len(per_host) + (absent is not None)
        ranks = [rank for rank in range(count) if rank != absent]
        started = []
        for rank, settings in zip(ranks, per_host, strict=True):
            notes, log = (tmp_path / f"{rank}.{end}" for end in ("json", "log"))
            environment = {
                **os.environ,
                "JAX_PLATFORMS": "cpu",
                "JAX_NUM_CPU_DEVICES": "2",
                "JAX_COMPILATION_CACHE_DIR": compilation_cache,
                "XLA_FLAGS": "--xla_backend_optimization_level=0",
                "NIM4_COORDINATOR": f"localhost:{port}",
                "NIM4_PROCESSES": str(count),
                "NIM4_PROCESS": str(rank),
            }
            command = [
                sys.executable,
                str(CHILD),
                str(notes),
                f"--config={ROOT / 'configs' / stage}.py:nano",
                f"--workdir={workdir}",
                *[f"--config.{key}={write(value)}" for key, value in settings.items()],
            ]
            with log.open("wb") as output:
                process = subprocess.Popen(
                    command, env=environment, stdout=output, stderr=output
                )
            started.append((process, notes, log))
        try:
            codes = [process.wait(timeout=400) for process, _, _ in started]
        finally:
            for process, _, _ in started:
                process.kill()
        hosts = []
        for code, (_, notes, log) in zip(codes, started):
            did = json.loads(notes.read_text()) if notes.exists() else {}
            said = log.read_text(errors="replace")
            hosts.append(Host(code, said, did.get("rows", []), did.get("written", [])))
        return hosts

    return run
