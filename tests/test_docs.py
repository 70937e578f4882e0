"""README and docs: commands parse, imports exist, links lead somewhere."""

import ast
import importlib
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
# Reads command lines, prints what is wrong with each. All in one process, since the
# imports take longer than the parsing; flags are defined anew for each command.
PARSE = """
import importlib, json, sys
from absl import flags
from nim4_jax.launch import cli, program

standard = set(flags.FLAGS)
wrong = {}
for words in json.load(sys.stdin):
    for name in set(flags.FLAGS) - standard:
        delattr(flags.FLAGS, name)
    line, name = " ".join(words), words[1].replace("-", "_")
    if name not in cli.COMMANDS:
        wrong[line] = f"no command {name}"
        continue
    importlib.import_module(f"nim4_jax.launch.{name}").define_flags()
    arguments = [program.find_config(word) for word in words[2:]]
    sys.argv = ["nim4", *arguments]  # where config flags look for their overrides
    try:
        flags.FLAGS(sys.argv)
    except Exception as error:
        wrong[line] = repr(error)
print(json.dumps(wrong))
"""


def read_blocks(page: Path) -> list[str]:
    """Lines of the indented blocks of a page, continued lines joined."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf8"), flags=re.DOTALL)
    lines = re.sub(r"\\\n\s*", "", text).split("\n")
    return [line.strip() for line in lines if line.startswith("    ")]


def find_commands(page: Path) -> list[list[str]]:
    """Words of every `nim4 …` of a page; those with placeholders are left out."""
    found = []
    for line in read_blocks(page):
        line = re.sub(r"\s+#.*", "", line).split(" | ")[-1]
        line = re.sub(r"^(python )?launch/(\w+)\.py", r"nim4 \2", line)
        if line.startswith("nim4 ") and not re.search(r"[…$]| \.\.\.", line):
            found.append(shlex.split(line.removesuffix("&").strip()))
    return found


def find_python(page: Path) -> list[str]:
    """Python blocks of a page."""
    return re.findall(
        r"```python\n(.*?)```", page.read_text(encoding="utf8"), re.DOTALL
    )


def test_every_command_parses():
    """Its name, its flags and every key of its config."""
    commands = [words for page in PAGES for words in find_commands(page)]
    assert len(commands) > 40
    done = subprocess.run(
        [sys.executable, "-c", PARSE],
        input=json.dumps(commands),
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2_000:]
    wrong = json.loads(done.stdout.splitlines()[-1])
    assert not wrong, "\n".join(f"{line}: {error}" for line, error in wrong.items())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_of_a_page_imports_what_exists(page):
    """Modules and the names that are taken from them."""
    for block in find_python(page):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    importlib.import_module(alias.name)
            elif isinstance(node, ast.ImportFrom):
                module = importlib.import_module(str(node.module))
                for alias in node.names:
                    if not hasattr(module, alias.name):
                        importlib.import_module(f"{node.module}.{alias.name}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_of_a_page_lead_somewhere(page):
    """Those to files of the project."""
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf8"))
    here = [link for link in links if "://" not in link]
    assert [link for link in here if not (page.parent / link).exists()] == []


def test_tests_that_are_named_exist():
    """`test_file.py::test_name`, with or without its folder."""
    missing = []
    for page in PAGES:
        for file, name in re.findall(
            r"`([\w/]*test_\w+\.py)::(\w+)", page.read_text(encoding="utf8")
        ):
            found = (ROOT / "tests").rglob(Path(file).name)
            if not any(f"def {name}(" in path.read_text("utf8") for path in found):
                missing.append(f"{page.name}: {file}::{name}")
    assert missing == []
