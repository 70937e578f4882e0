"""Splash attention compiles for TPUs at full size, and saves what it should."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="needs the TPU's compiler: pip install libtpu",
)

_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def compile_for_tpu(*arguments: str) -> dict:
    """What compile_attention.py says about a program."""
    script = Path(__file__).with_name("compile_attention.py")
    done = subprocess.run(
        [sys.executable, str(script), *arguments],
        env={**os.environ, **_ENVIRONMENT},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_attention_of_the_full_size_needs_a_tenth_of_the_memory():
    """One layer, 4 rows of 640 tokens a device, gradient: no [L, L] array is left."""
    plain = compile_for_tpu("attention", "xla", "1", "1", "1")
    splash = compile_for_tpu("attention", "splash", "1", "1", "1")
    assert plain["splash_calls"] == 0 and splash["splash_calls"] == 2
    assert plain["square_arrays"] and not splash["square_arrays"]
    assert 10 * splash["temporary_bytes"] < plain["temporary_bytes"]
    assert 4 * splash["accessed_bytes"] < plain["accessed_bytes"]
    # "auto" goes by the devices of the mesh, and each of them does its own part.
    cut = compile_for_tpu("attention", "auto", "1", "2", "2")
    assert cut["splash_calls"] == 2
    assert cut["temporary_bytes"] <= splash["temporary_bytes"]
    assert cut["accessed_bytes"] < 0.6 * splash["accessed_bytes"]


@pytest.mark.long
def test_blocks_of_the_full_size_compile():
    """Two blocks of Qwen3 1.7B under recomputation: forward twice, backward once."""
    mesh = "1", "2", "2"
    splash = compile_for_tpu("blocks", "auto", *mesh)
    assert splash["splash_calls"] == 3 and not splash["square_arrays"]
    plain = compile_for_tpu("blocks", "xla", *mesh)
    assert plain["square_arrays"]
    assert splash["temporary_bytes"] < 0.9 * plain["temporary_bytes"]
