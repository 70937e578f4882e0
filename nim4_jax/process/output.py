"""stdout and stderr that never fail on a character that they cannot encode."""

from __future__ import annotations

import codecs
import json
import sys

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""

_ESCAPED = "nim4_escaped"


def accept_any_text() -> None:
    r"""What the encoding of stdout or stderr lacks is written as JSON has it, \u5faa.

    A terminal or a pipe may be ASCII, Latin-1 or GBK, the name of a file of any bytes.
    In --format=json the escapes are read back as what they stand for.
    """
    codecs.register_error(_ESCAPED, _escape)
    for stream in (sys.stdout, sys.stderr):
        # Tests and notebooks put other objects in their place.
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors=_ESCAPED)


def _escape(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


def end_interrupted() -> None:
    """Say so in one line and end the process; what is written is kept."""
    print("interrupted", file=sys.stderr, flush=True)
    sys.exit(INTERRUPTED)
