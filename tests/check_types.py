"""Pyright over the packages as they are installed: `python tests/check_types.py`.

setup.py maps data/ to nim4_jax.data and so on, which pyright cannot follow: it would
see nothing of what one of these packages takes from another. A folder of links lays
them out.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
LAYOUT = ROOT / "build" / "typecheck"
MAPPED = ("configs", "data", "eval", "launch", "serving")


def lay_out() -> None:
    """Links to all packages and modules in one folder, and pyright's settings."""
    shutil.rmtree(LAYOUT, ignore_errors=True)
    package = LAYOUT / "nim4_jax"
    package.mkdir(parents=True)
    for path in [*(ROOT / "nim4_jax").iterdir(), *(ROOT / name for name in MAPPED)]:
        (package / path.name).symlink_to(path)
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf8"))["tool"]
    # Links to folders are followed where they are named only.
    folders = [path for path in package.iterdir() if (path / "__init__.py").exists()]
    settings["pyright"] |= {
        "include": [
            str(path.relative_to(LAYOUT)) for path in [package, *sorted(folders)]
        ],
        "stubPath": str(ROOT / "tests" / "typings"),
        "venvPath": str(ROOT),
    }
    (LAYOUT / "pyrightconfig.json").write_text(json.dumps(settings["pyright"]))


if __name__ == "__main__":
    lay_out()
    pyright = Path(sys.executable).with_name("pyright")
    sys.exit(subprocess.run([pyright, "--project", LAYOUT, *sys.argv[1:]]).returncode)
