"""The start of every command: flags parsed, errors printed as one line."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib import resources
from typing import Any

from absl import app, flags

import nim4_jax
import nim4_jax.configs
from nim4_jax.process import errors, logs, memory, output


def find_config(argument: str) -> str:
    """--config=configs/X.py works anywhere: absent files are the package's."""
    name, equals, value = argument.partition("=")
    if name not in ("--config", "-config") or not equals:
        return argument
    path, colon, size = value.partition(":")
    packaged = resources.files(nim4_jax.configs) / os.path.basename(path)
    if os.path.exists(path) or not packaged.is_file():
        return argument
    return f"{name}={packaged}{colon}{size}"


def _parse(arguments: list[str]) -> list[str]:
    """absl's flags; what is wrong with them is one line and exit code 2."""
    try:
        return flags.FLAGS([find_config(argument) for argument in arguments])
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        if os.environ.get("NIM4_TRACEBACK"):
            raise
        reason = str(error)
        # ml_collections hands a KeyError on, of which str() shows quotes and escapes.
        if error.args and isinstance(inner := error.args[0], KeyError):
            reason = f"the config has no key {' '.join(str(inner.args[0]).split())}"
        print(f"error: {reason}", file=sys.stderr)
        sys.exit(2)


def launch(
    main: Callable[[Any], None], define_flags: Callable[[], None] = lambda: None
) -> None:
    """Define and parse flags, then run `main` as a program."""
    memory.keep()
    output.accept_any_text()
    logs.prepare()
    define_flags()
    app.run(errors.guard(main), flags_parser=_parse)
