"""The layout of a file: its streams for a decoder, and what of them is missing."""

from __future__ import annotations

import dataclasses

from nim4_jax.data.audio.containers.view import View


@dataclasses.dataclass(frozen=True)
class Layout:
    """What is in a file.

    Attributes:
        parts: streams that follow each other, each a file of its own for a decoder.
        changed: whether they differ from the file as it is stored.
        damage: what is known to be missing, "" if nothing.
        reason: of `AUDIO_REASONS`, what kind of damage it is.
    """

    parts: tuple[View, ...]
    changed: bool = False
    damage: str = ""
    reason: str = "truncated"
