"""What only launchers do: flags, logging, devices, and errors a person can read."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import jax
from absl import app, flags, logging


def prepare() -> None:
    """Logging, and a compilation cache that outlives the process."""
    logging.set_verbosity(logging.INFO)
    logging.use_absl_handler()
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if not cache:
        home = os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache"))
        jax.config.update("jax_compilation_cache_dir", os.path.join(home, "nim4-jax"))


def guard(function: Callable[[Any], None]) -> Callable[[Any], None]:
    """The function, with errors of input as one line on stderr and exit code 2.

    `--traceback` (or NIM4_TRACEBACK=1) shows where they came from.
    """

    def guarded(argv: Any) -> None:
        try:
            function(argv)
        except (ValueError, OSError, FloatingPointError) as error:
            if os.environ.get("NIM4_TRACEBACK"):
                raise
            print(f"error: {error}", file=sys.stderr)
            print("(NIM4_TRACEBACK=1 shows the traceback)", file=sys.stderr)
            sys.exit(2)

    return guarded


def launch(main: Callable[[Any], None], argv: list[str] | None = None) -> None:
    """Parse flags and run `main` as a program."""
    prepare()

    def parse(args: list[str]) -> list[str]:
        return flags.FLAGS(args, known_only=False)

    def checked(args: list[str]) -> list[str]:
        try:
            return parse(args)
        except (flags.Error, AttributeError, ValueError) as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)

    app.run(guard(main), argv=argv, flags_parser=checked)
