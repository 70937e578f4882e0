"""What leaves a command: any text on any stdout, one line after Ctrl-C, and nothing
outside of what the user named."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import nim4_jax
from nim4_jax.launch import cli
from nim4_jax.process import errors, output

SAY = """
from nim4_jax.process import output
import json
output.accept_any_text()
print(json.dumps({"text": "循环 é 😀", "file": "caf\\udce9"}, ensure_ascii=False))
"""

LISTEN = """
import sys
sys.modules["onnxruntime"] = None  # its import fails
import nim4_jax.decode.silero as silero, numpy as np
from nim4_jax.serving import hotword_build
import nim4_jax.launch.evaluate, nim4_jax.launch.transcribe
detector = silero.Silero()
detector.score(detector.start(), np.zeros((1, 512), np.float32))
with open("list.txt", "w", encoding="utf8") as file:
    file.write("NIO House\\n蔚来中心\\n")
hotword_build.run("list.txt", "hotwords", "list.txt", 1)
"""


def run_apart(program, tmp_path, *arguments, **environment):
    """A program with a home, a cache and temporary files of its own, in a folder."""
    places = {name: tmp_path / name for name in ("home", "temporary", "here")}
    for place in places.values():
        place.mkdir()
    kept = {
        k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "JAX_", "MPL"))
    }
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=places["here"],
        env={
            **kept,
            "HOME": str(places["home"]),
            "TMPDIR": str(places["temporary"]),
            **environment,
        },
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    return done.stdout, sorted(str(path.relative_to(tmp_path)) for path in files)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "gbk", "utf8"])
def test_any_text_can_be_printed_and_is_valid_json(tmp_path, encoding):
    printed, _ = run_apart(SAY, tmp_path, PYTHONIOENCODING=encoding)
    assert json.loads(printed.decode(encoding)) == {
        "text": "循环 é 😀",
        "file": "caf\udce9",
    }


def test_nothing_is_written_that_nobody_asked_for(tmp_path):
    """No device id, no event store, no lists of fonts: the documented cache alone."""
    _, files = run_apart(LISTEN, tmp_path)
    strays = [
        name
        for name in files
        if not name.startswith(("home/.cache/nim4-jax/", "here/hotwords/"))
    ]
    assert strays == ["here/list.txt"]


def test_telemetry_is_off_before_anything_can_import_onnxruntime():
    asked = "import nim4_jax, os, sys; print(os.environ['ORT_DISABLE_TELEMETRY'], "
    asked += "'onnxruntime' in sys.modules)"
    kept = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"}
    done = subprocess.run([sys.executable, "-c", asked], env=kept, capture_output=True)
    assert done.stdout.split() == [b"1", b"False"]


def test_onnxruntime_is_no_dependency():
    """Only extras bring it."""
    setup = (Path(nim4_jax.__file__).parents[1] / "setup.py").read_text()
    required = setup.split("\nREQUIRES = [")[1].split("\n]")[0]
    assert "numpy" in required and "onnx" not in required


def interrupt(*_, **__):
    raise KeyboardInterrupt


def test_ctrl_c_is_one_line(capsys, monkeypatch):
    """While a command is imported, and while it runs."""
    monkeypatch.setattr(cli.runpy, "run_module", interrupt)
    monkeypatch.setattr(cli.sys, "argv", ["nim4", "transcribe"])
    for command in (cli.main, lambda: errors.guard(interrupt)([])):
        with pytest.raises(SystemExit) as ended:
            command()
        assert ended.value.code == output.INTERRUPTED == 130
        assert capsys.readouterr().err == "interrupted\n"
