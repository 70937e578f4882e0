"""Device programs for file workers, interleaved with those of streams."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from nim4_jax.decode.programs import Budget, Generation, Heard, Programs
from nim4_jax.rates import SAMPLE_RATE, Rates
from nim4_jax.text import prompt
from nim4_jax.text.tokenizer import Tokenizer
from nim4_jax.types import Frames, Labels


class SharedPrograms:
    """Programs of which each call waits for its turn on the device's thread.

    All else that transcribing a file takes stays in the caller's thread. Prompts have
    few widths, so that all programs can be compiled beforehand.

    Attributes:
        widths: of prompts, tokens, growing.
    """

    def __init__(
        self,
        programs: Programs,
        tokenizer: Tokenizer,
        widths: Sequence[int],
        call: Callable[[Callable[[], Any]], Any],
    ):
        """Over a model's own.

        Args:
            programs: of the model.
            tokenizer: of the LLM.
            widths: see the attribute.
            call: runs work on the device's thread and returns what it made.
        """
        self._programs, self._call, self.widths = programs, call, tuple(widths)
        self._bare = prompt.encode_suffix(tokenizer)

    @property
    def parts(self) -> tuple[str, ...]:
        """Of the model."""
        return self._programs.parts

    @property
    def rates(self) -> Rates:
        """Of the model."""
        return self._programs.rates

    @property
    def budget(self) -> Budget:
        """Longest answers."""
        return self._programs.budget

    def hear(self, audio: Frames) -> Heard:
        """As the model's own, on the host."""
        return self._call(lambda: self._hear(audio))

    def transcribe(
        self, audio: Frames, suffix: Labels | None
    ) -> tuple[Heard, Generation]:
        """As the model's own, on the host."""
        wide = self._widen(suffix, len(audio.mask))
        return self._call(lambda: self._transcribe(audio, wide))

    def warm_up(self, seconds: Sequence[float], most_rows: int) -> None:
        """Compile what calls may need; on the device's own thread.

        Args:
            seconds: lengths of batches.
            most_rows: of a batch; there may be fewer, by powers of two.
        """
        sizes = {1 << power for power in range(most_rows.bit_length())} | {most_rows}
        for rows in sorted(sizes):
            for length in seconds:
                shape = rows, round(length * SAMPLE_RATE)
                silence = Frames(np.zeros(shape, np.float32), np.zeros(shape, bool))
                if len(self.widths) > 1:
                    self._hear(silence)
                for width in self.widths:
                    self._transcribe(silence, self._pack(rows, width))

    def _hear(self, audio: Frames) -> Heard:
        return jax.device_get(self._programs.hear(audio))

    def _transcribe(self, audio: Frames, suffix: Labels) -> tuple[Heard, Generation]:
        return jax.device_get(self._programs.transcribe(audio, suffix))

    def _pack(self, rows: int, width: int) -> Labels:
        """Prompts without hints."""
        ids, mask = np.zeros((rows, width), np.int32), np.zeros((rows, width), bool)
        ids[:, : len(self._bare)], mask[:, : len(self._bare)] = self._bare, True
        return Labels(ids, mask)

    def _widen(self, suffix: Labels | None, rows: int) -> Labels:
        if suffix is None:
            return self._pack(rows, self.widths[0])
        needed = int(np.asarray(suffix.mask).sum(axis=1).max())
        width = next((own for own in self.widths if own >= needed), None)
        if width is None:
            raise ValueError(
                f"hints make a prompt of {needed} tokens; there is room for "
                f"{self.widths[-1]}. Give fewer."
            )
        return Labels(
            *(_fit(np.asarray(part), width) for part in (suffix.ids, suffix.mask))
        )


def _fit(rows: np.ndarray, width: int) -> np.ndarray:
    """Rows of another width; what is cut off is padding."""
    fitted = np.zeros((len(rows), width), rows.dtype)
    kept = min(width, rows.shape[1])
    fitted[:, :kept] = rows[:, :kept]
    return fitted
