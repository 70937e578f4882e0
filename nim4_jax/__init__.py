"""NIM4-ASR in JAX: speech → log-mel → Conformer → adaptor → LLM → text."""

import importlib
import os
from typing import Any

# We need no onnxruntime, but the extras `corpus` and `eval-peers` bring libraries that
# import it. From 1.29 on it writes a device id and a database of events into the user's
# cache and holds what sends them; it looks for this when it is imported. Whoever wants
# the telemetry sets it to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_PUBLIC = {
    "nim4_jax.serving.api": ("load", "Recogniser"),
    "nim4_jax.data.audio.reading": ("AudioError",),
    "nim4_jax.decode.hotwords": ("HotwordList",),
    "nim4_jax.decode.live.events": (
        "SpeechStarted",
        "Partial",
        "SpeechStopped",
        "Final",
        "Failed",
    ),
    "nim4_jax.decode.live.listener": ("Listener",),
    "nim4_jax.decode.transcripts": ("Passage", "Recording"),
}
_HOMES = {name: module for module, names in _PUBLIC.items() for name in names}
__all__ = sorted(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    """Public names, imported when they are asked for: commands need few of them."""
    if name not in _HOMES:
        raise AttributeError(f"module 'nim4_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
