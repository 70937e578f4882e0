"""What only launchers do: flags, logging, devices, and errors a person can read."""

from __future__ import annotations

import logging as py_logging
import os
import sys
import time
import traceback
from collections.abc import Callable
from importlib import resources
from typing import Any

import jax
from absl import app, flags, logging

import nim4_jax
import nim4_jax.configs
from nim4_jax.launch import cache, device_memory, memory, output
from nim4_jax.train.interruption import Interrupted

EXIT_AGAIN = 75
"""Exit code (EX_TEMPFAIL) of a run that was asked to end: the same command goes on."""
EXIT_HUNG = 76
"""Exit code of a run that stood still on some host: the same command goes on."""

_LAST_WORDS = 3.0  # seconds
_FOLDERS = (
    os.path.dirname(os.path.abspath(__file__)),
    os.path.dirname(os.path.abspath(nim4_jax.__file__)),
)


def prepare() -> None:
    """Quiet libraries, our own log lines, and compilations kept between processes."""
    logging.use_absl_handler()
    logging.set_verbosity(logging.INFO)
    # Libraries log each file they write through absl's logger; keep what is ours.
    logging.get_absl_handler().addFilter(
        lambda record: record.levelno >= py_logging.ERROR or _ours(record)
    )
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", cache.find_folder())


def _ours(record: py_logging.LogRecord) -> bool:
    """Whether a log record was written by a module of this project."""
    path = os.path.abspath(record.pathname)
    return any(path.startswith(folder + os.sep) for folder in _FOLDERS)


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


def guard(function: Callable[[Any], None]) -> Callable[[Any], None]:
    """The function, with errors of input as one line on stderr and exit code 2.

    Ctrl-C is one line, too, and exit code 130.

    NIM4_TRACEBACK=1 shows where they came from. What was interrupted and is to be
    started again ends with `EXIT_AGAIN`.

    On several hosts an error ends the process at once: leaving in good order means to
    wait for the others, who may be waiting for this one in the midst of a step.
    """

    def guarded(argv: Any) -> None:
        try:
            function(argv)
        except KeyboardInterrupt:
            _end(output.INTERRUPTED, "interrupted")
        except Interrupted as reason:
            _end(EXIT_AGAIN, f"stopped: {reason}; run the same command again")
        except Exception as error:
            if told := _explain(error):
                if os.environ.get("NIM4_TRACEBACK"):
                    if not jax.distributed.is_initialized():
                        raise
                    traceback.print_exc()
                _end(2, f"error: {told}")
            if not jax.distributed.is_initialized():
                raise
            traceback.print_exc()
            _end(1, f"error: {type(error).__name__}, see above")

    return guarded


def _explain(error: Exception) -> str:
    """An error that the user can mend, in one line; "" for one of our own making."""
    if isinstance(error, ValueError | OSError | FloatingPointError):
        return str(error)
    ours = not isinstance(error, jax.errors.JaxRuntimeError)
    if ours or not device_memory.is_lacking(error):
        return ""
    return f"{device_memory.shorten(str(error))} {device_memory.ADVICE}"


def _end(code: int, text: str) -> None:
    """The process's last words, with the host's number where there are several."""
    if not jax.distributed.is_initialized():
        print(text, file=sys.stderr)
        sys.exit(code)
    rank = jax.process_index()
    print(f"[host {rank}] {text}", file=sys.stderr, flush=True)
    if rank == 0:
        # The others die with the coordinator: those that fail alike say so first.
        time.sleep(_LAST_WORDS)
    os._exit(code)


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
    prepare()
    define_flags()
    app.run(guard(main), flags_parser=_parse)
