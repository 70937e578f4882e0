"""What tests of encoder releases share."""

import pytest
from absl import logging


@pytest.fixture
def log(monkeypatch) -> list[str]:
    """What is logged, in order."""
    lines: list[str] = []

    def note(message, *args):
        lines.append(str(message) % args if args else str(message))

    monkeypatch.setattr(logging, "info", note)
    monkeypatch.setattr(logging, "warning", note)
    return lines
