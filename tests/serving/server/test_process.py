"""`nim4 serve` as a process."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request

import pytest
from websockets.sync.client import connect

COMMAND = [sys.executable, "-m", "nim4_jax.launch.cli", "serve"]


def start(compilation_cache, *flags):
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": compilation_cache,
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
        "NIM4_SERVE_STREAMS": "1",
    }
    return subprocess.Popen(
        [*COMMAND, "--port=0", *flags],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_it_says_what_is_missing(compilation_cache):
    process = start(compilation_cache)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 2
    assert said.startswith("error: which model?") and said.count("\n") == 1


@pytest.mark.long
def test_sigterm_does_not_wait_for_the_compiler(compilation_cache, model_files):
    """Nobody is served yet: it ends at once, and well."""
    process = start(compilation_cache, f"--model={model_files[0]}", "--streams=7")
    try:
        line = next(line for line in process.stderr if "listening" in line)
        assert not await_ready(re.search(r"port (\d+)", line)[1], process, answers=True)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()


@pytest.mark.long
def test_sigterm_ends_it_in_good_order(compilation_cache, model_files, talk):
    """Ready, a stream that is open gets its finals and 1001; the process exits 0."""
    process = start(compilation_cache, f"--model={model_files[0]}")
    try:
        line = next(line for line in process.stderr if "listening" in line)
        drain = threading.Thread(target=process.stderr.read)
        drain.start()
        assert "no API keys" in line
        port = re.search(r"port (\d+)", line)[1]
        assert await_ready(port, process)
        with connect(f"ws://127.0.0.1:{port}/v1/stream?token=secret") as websocket:
            websocket.send(talk(0, 1).tobytes())
            told = [json.loads(websocket.recv(60))]
            while told[-1]["event"] != "speech started":
                told.append(json.loads(websocket.recv(60)))
            process.send_signal(signal.SIGTERM)
            while told[-1]["event"] != "done":
                told.append(json.loads(websocket.recv(60)))
            assert [event for event in told if event["event"] == "final"]
            with pytest.raises(Exception, match="1001"):
                websocket.recv(60)
        assert process.wait(60) == 0
        lines = [json.loads(line) for line in process.stdout]
        assert lines[-1]["route"] == "/v1/stream" and "secret" not in str(lines)
    finally:
        process.kill()


def await_ready(port, process, answers=False) -> bool:
    """Whether it is, before it ends; or what its first answer says."""
    while process.poll() is None:
        try:
            url = f"http://127.0.0.1:{port}/health/ready"
            with urllib.request.urlopen(url, timeout=5) as answer:
                return json.load(answer)["ready"]
        except urllib.error.HTTPError:
            if answers:
                return False
        except OSError:
            continue
    return False
