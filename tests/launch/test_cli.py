"""The wheel and the console script: what a user installs is whole."""

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("wheel")
    source = tmp_path_factory.mktemp("source") / "tree"
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    for name in listed:
        if (ROOT / name).is_file():
            target = source / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", out]
    subprocess.run([*command, source], check=True, capture_output=True)
    (built,) = out.glob("*.whl")
    return built


def test_wheel_holds_all_parts_and_data_under_one_name(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"nim4_jax"}
    for needed in (
        "nim4_jax/launch/train.py",
        "nim4_jax/configs/stage1.py",
        "nim4_jax/models/asr.py",
        "nim4_jax/text/resources/nano_tokenizer.json",
        "nim4_jax/data/wordlists/places_en.txt",
    ):
        assert needed in names
    assert any(name.startswith("nim4_jax/data/bundled/commands/") for name in names)
    assert any(name.startswith("nim4_jax/data/bundled/prompts/") for name in names)
    assert any(name.startswith("nim4_jax/pretrained/") for name in names)
    assert not any(name.startswith(("tests/", "nim4_jax/tests")) for name in names)


def test_console_script_answers_in_an_empty_venv(wheel, tmp_path):
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "--no-deps", wheel]
    subprocess.run(install, check=True, capture_output=True)
    script = tmp_path / "venv" / "bin" / "nim4"
    told = subprocess.run(
        [script, "--help"], cwd="/", capture_output=True, text=True, check=True
    )
    for command in ("train", "pipeline", "evaluate", "transcribe"):
        assert f"\n  {command} " in told.stdout


def run_cli(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "nim4_jax.launch.cli", *arguments],
        cwd="/",
        capture_output=True,
        text=True,
    )


def test_unknown_command_lists_the_commands():
    done = run_cli("transcirbe")
    assert done.returncode == 2
    assert "no command 'transcirbe'" in done.stderr and "transcribe" in done.stderr


def test_every_command_is_a_launcher():
    from nim4_jax.launch import cli

    for command in cli.COMMANDS:
        assert (ROOT / "launch" / f"{command}.py").is_file(), command


def test_typo_in_a_config_override_names_the_near_miss():
    done = run_cli(
        "train",
        "--config=configs/stage1.py:nano",
        "--workdir=/nonexistent",
        "--config.optimizer.peek_rate=1e-3",
    )
    assert done.returncode == 2
    assert "peak_rate" in done.stderr
    assert "Traceback" not in done.stderr


def test_unknown_size_lists_the_sizes():
    done = run_cli("train", "--config=configs/stage1.py:huge", "--workdir=/nonexistent")
    assert done.returncode == 2
    assert "nano, smollm2, base, small, 2b3" in done.stderr
