"""Profiling of a range of steps with JAX's profiler."""

from __future__ import annotations

import re
from typing import Any

import jax


class ProfileWindow:
    """Traces the steps first … last; view the folder with TensorBoard or XProf.

    Attributes:
        first: first step that is traced; 0 for none.
        last: last one.
    """

    def __init__(self, window: str, folder: str):
        """Parse "FIRST:LAST".

        Args:
            window: numbers of steps; "" for no trace.
            folder: where the trace goes.

        Raises:
            ValueError: no two numbers 1 ≤ FIRST ≤ LAST.
        """
        found = re.fullmatch(r"(\d+):(\d+)", window)
        self.first, self.last = map(int, found.groups()) if found else (0, 0)
        self._folder, self._tracing = folder, False
        if window and not 1 <= self.first <= self.last:
            raise ValueError(
                f"profile={window!r} is no window of steps; write FIRST:LAST, as in "
                "100:105."
            )

    def before(self, step: int) -> None:
        """Told before each step; a resumed run that begins within traces the rest."""
        if self.first <= step <= self.last and not self._tracing:
            jax.profiler.start_trace(self._folder)
            self._tracing = True

    def after(self, step: int, state: Any) -> None:
        """Told after each step was dispatched; the last one is waited for."""
        if self._tracing and step >= self.last:
            jax.block_until_ready(state)
            self.close()

    def close(self) -> None:
        """End a trace that a run leaves early."""
        if self._tracing:
            jax.profiler.stop_trace()
            self._tracing = False


NO_PROFILE = ProfileWindow("", "")
