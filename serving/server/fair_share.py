"""Scheduling of the device between live streams and whole files."""

from __future__ import annotations

_MOST_CREDIT = 1.0  # seconds


class FairShare:
    """Live streams first; files have a share of the device while streams wait.

    |               | no file waits | a file waits                              |
    | ------------- | ------------- | ----------------------------------------- |
    | nobody speaks | sleep         | file                                      |
    | streams wait  | streams       | streams; then a file if its share has room |

    Between two ticks there is at most one call for files. What it took beyond the share
    is paid back by ticks before the next.
    """

    def __init__(self, share: float):
        """An even start.

        Args:
            share: of the device's time that files may have while streams wait, 0 … 1.
        """
        self._gain = share / (1.0 - share)
        self._credit = 0.0

    def allows_file(self, live: bool) -> bool:
        """Whether a file may have the device now.

        Args:
            live: whether streams wait.
        """
        return not live or self._credit >= 0.0

    def add_tick(self, seconds: float) -> None:
        """Streams had the device."""
        self._credit = min(self._credit + seconds * self._gain, _MOST_CREDIT)

    def add_file(self, seconds: float, live: bool) -> None:
        """A file had it, while streams waited or not."""
        if live:
            self._credit -= seconds
