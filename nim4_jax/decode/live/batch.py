"""Batches of streams for one device call: which rows, and their arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from nim4_jax.decode.live.prompter import Prompter
from nim4_jax.decode.live.slots import Row, Slot
from nim4_jax.decode.live.stream_config import StreamConfig
from nim4_jax.decode.programs import Arrival
from nim4_jax.types import Frames, Labels

OccupiedSlot = tuple[int, Slot]
"""A slot of the device's state, and who has it."""


def list_sizes(most: int) -> tuple[int, ...]:
    """Numbers of rows for which programs exist: 1 2 4 8 12 16 24 32 48 64 … most.

    From 8 on a batch is filled up by less than half; below, a row costs little beside
    the weights that are read for all.
    """
    sizes, size = [], 1
    while size < most:
        sizes.append(size)
        # Doubled in two steps, 8 → 12 → 16.
        power = 1 << (size.bit_length() - 1)
        size = size * 2 if size < 8 else size + power // 2
    return (*sizes, most)


@dataclasses.dataclass(frozen=True, eq=False)
class Batch:
    """Streams in one call of the device.

    Attributes:
        occupied: who takes part.
        rows: what is to be done for each.
        places: row of the call that each has.
        size: rows of the call.
        whole: whether it has a row for every stream, its own.
    """

    occupied: list[OccupiedSlot]
    rows: list[Row]
    places: list[int]
    size: int
    whole: bool

    @classmethod
    def form(
        cls,
        occupied: list[OccupiedSlot],
        rows: list[Row],
        sizes: Sequence[int],
        streams: int,
    ) -> Batch:
        """The smallest that there is a program for.

        Args:
            occupied: who takes part, at most the largest size.
            rows: what is to be done for each.
            sizes: numbers of rows, growing.
            streams: that the state has room for.
        """
        size = next(size for size in sizes if size >= len(occupied))
        whole = size == streams
        places = (
            [index for index, _ in occupied] if whole else list(range(len(occupied)))
        )
        return cls(occupied, rows, places, size, whole)

    def find_width(self, config: StreamConfig, prompter: Prompter) -> int:
        """Tokens of suffix and old text that the call needs room for."""
        longest = max(
            slot.length + prompter.count(row.hints)
            for (_, slot), row in zip(self.occupied, self.rows)
        )
        return next(width for width in config.widths() if width >= longest)

    def list_slots(self, streams: int) -> Int[np.ndarray, " B"]:
        """Slot of each row, `streams` for nobody's."""
        return self._spread([index for index, _ in self.occupied], streams)

    def arrive(self, config: StreamConfig, prompter: Prompter, streams: int) -> Arrival:
        """Arguments of a tick for this batch."""
        audio = np.zeros((self.size, config.window), np.float32)
        mask = np.zeros(audio.shape, bool)
        fresh = np.zeros(self.size, bool)
        for place, row in zip(self.places, self.rows):
            piece = row.piece
            assert piece is not None
            span = slice(piece.missing, piece.missing + len(piece.samples))
            audio[place, span], mask[place, span] = piece.samples, True
            fresh[place] = piece.fresh
        return Arrival(
            None if self.whole else self.list_slots(streams),
            Frames(audio, mask),
            fresh,
            self.list_limits(),
            self.pack(prompter),
        )

    def list_limits(self) -> Int[np.ndarray, " B"]:
        """Tokens that each text may have; 0 asks for none."""
        return self._spread([row.limit for row in self.rows], 0)

    def list_kept(self) -> Int[np.ndarray, " B"]:
        """Tokens of each text that calls before this one wrote."""
        return self._spread([row.kept for row in self.rows], 0)

    def pack(self, prompter: Prompter) -> Labels:
        """The prompts behind the speech."""
        names: list[tuple[str, ...]] = [()] * self.size
        for place, row in zip(self.places, self.rows):
            names[place] = row.hints
        return prompter.pack(names)

    def commit(self, heard: Any, written: Any) -> None:
        """Note what the device did for all rows, before any of it is read.

        Whatever happens to one stream then, no other one is given a chunk twice.

        Args:
            heard: `Heard` of NumPy arrays; None behind a second pass.
            written: `Written` of NumPy arrays.
        """
        for place, (_, slot), row in zip(self.places, self.occupied, self.rows):
            row = dataclasses.replace(
                row,
                written=_take_row(written, place),
                heard=None if heard is None else _take_row(heard, place),
            )
            slot.commit(row)

    def _spread(self, values: Sequence[int], nothing: int) -> Int[np.ndarray, " B"]:
        spread = np.full(self.size, nothing, np.int32)
        spread[self.places] = values
        return spread


def _take_row(struct, place: int):
    """One row of a struct of NumPy arrays; what is not by rows stays."""
    return jax.tree.map(lambda leaf: leaf[place] if np.ndim(leaf) else leaf, struct)
