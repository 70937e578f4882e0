"""The cache folder of the commands."""

from __future__ import annotations

import os


def find_folder() -> str:
    """`~/.cache/nim4-jax`, or in XDG_CACHE_HOME."""
    home = os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache"))
    return os.path.join(home, "nim4-jax")


def keep_fonts() -> None:
    """Matplotlib's list of fonts goes there too, not beside the user's own settings.

    It looks for its folder when it is imported.
    """
    os.environ.setdefault("MPLCONFIGDIR", os.path.join(find_folder(), "matplotlib"))
