"""Exit codes, and errors printed as one line without a traceback."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import jax

from nim4_jax.process import device_memory, output


class Interrupted(BaseException):
    """Someone asked the run to end; the same command goes on where it was.

    No `Exception`: nobody who handles errors is to take it for one.
    """


EXIT_AGAIN = 75
"""Exit code (EX_TEMPFAIL) of a run that was asked to end: the same command goes on."""


EXIT_HUNG = 76
"""Exit code of a run that stood still on some host: the same command goes on."""


_LAST_WORDS = 3.0  # seconds


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
