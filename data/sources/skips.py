"""Counts and examples of records that could not be used, by reason."""

from __future__ import annotations

import threading
from collections import Counter

EMPTY_TRANSCRIPT = "empty transcript"
NO_PHONEME = "no phoneme"
TOO_MANY_LABELS = "too many labels"
TOO_SHORT_FOR_CTC = "too short for CTC"


class SkipReport:
    """Skipped examples by reason, with their places; safe to share between threads.

    An example counts once per reason, however often the epochs come back to it.

    Attributes:
        repeated: rows delivered again within an epoch only to fill its last batch.
    """

    def __init__(self, kept_lines: int = 1000):
        """Start empty; at most `kept_lines` places are remembered per reason."""
        self._kept_lines = kept_lines
        self._lock = threading.Lock()
        self._seen: set[tuple[str, int]] = set()
        self._lines: dict[str, list[str]] = {}
        self._counts: Counter[str] = Counter()
        self.repeated = 0

    def add(self, reason: str, index: int, origin: str, detail: str) -> None:
        """Count example `index`, found at `origin` ("file:line")."""
        with self._lock:
            if (reason, index) in self._seen:
                return
            self._seen.add((reason, index))
            self._counts[reason] += 1
            lines = self._lines.setdefault(reason, [])
            if len(lines) < self._kept_lines:
                lines.append(f"{origin}: {reason}: {detail}")

    def add_repeated(self, rows: int) -> None:
        """Count rows that fill an epoch's last batch."""
        with self._lock:
            self.repeated += rows

    @property
    def counts(self) -> dict[str, int]:
        """Number of distinct examples skipped, by reason."""
        with self._lock:
            return dict(self._counts)

    @property
    def total(self) -> int:
        """Number of skips of all reasons."""
        return sum(self.counts.values())

    def examples(self, reason: str) -> list[str]:
        """The remembered "file:line: reason: detail" lines of one reason."""
        with self._lock:
            return list(self._lines.get(reason, ()))

    def summary(self) -> str:
        """One line per reason with its count and its first example."""
        lines = []
        for reason, count in sorted(self.counts.items()):
            lines.append(f"skipped {count}: {reason}, first {self.examples(reason)[0]}")
        return "\n".join(lines) or "nothing skipped"
