"""Strides and lengths that relate samples, feature frames, encoder frames and tokens.

samples   16 kHz
features  10 ms: `hop` samples apart, `window` long
encoder   40 ms (Conformer) or 20 ms (Whisper): `frame_stride` features apart
speech    160 ms: `speech_stride` encoder frames, a token for the LLM
"""

from __future__ import annotations

import dataclasses

import numpy as np

Array = np.ndarray | int

SAMPLE_RATE = 16_000
"""Hz; the only rate below the data border."""


@dataclasses.dataclass(frozen=True)
class Rates:
    """Facts of one model; the defaults are the Conformer's on Kaldi's features.

    Attributes:
        hop: samples between feature frames.
        window: samples of a feature frame.
        lead: samples of feature frame t before sample hop · t.
        tail: samples beyond the end of the audio that its last frame may cover.
        frame_stride: feature frames per encoder frame.
        frames_before: feature frames before its own that an encoder frame sees.
        frames_after: feature frames behind its own.
        speech_stride: encoder frames per speech token.
        max_frames: longest utterance in encoder frames; None for any.
    """

    hop: int = 160
    window: int = 400
    lead: int = 0
    tail: int = 0
    frame_stride: int = 4
    frames_before: int = 0
    frames_after: int = 3
    speech_stride: int = 4
    max_frames: int | None = None

    @property
    def frame_samples(self) -> int:
        """Samples from one encoder frame to the next."""
        return self.hop * self.frame_stride

    @property
    def frame_seconds(self) -> float:
        """Seconds from one encoder frame to the next."""
        return self.frame_samples / SAMPLE_RATE

    def count_encoder_frames(self, samples: Array) -> Array:
        """Encoder frames of audio: ⌈T / frame_stride⌉ of its T feature frames.

        Args:
            samples: int [...], lengths.
        """
        covered = np.asarray(samples) + self.lead + self.tail
        features = np.maximum(0, 1 + (covered - self.window) // self.hop)
        return -(-features // self.frame_stride)

    def frames_of_chunk(self, ms: int) -> int:
        """Encoder frames of a chunk of so many milliseconds.

        Raises:
            ValueError: it is no whole number of speech tokens.
        """
        frames, rest = divmod(ms * SAMPLE_RATE, 1000 * self.frame_samples)
        if rest or frames < 1 or frames % self.speech_stride:
            token = 1000 * self.frame_samples * self.speech_stride // SAMPLE_RATE
            raise ValueError(
                f"a chunk of {ms} ms is no whole number of speech tokens; use a "
                f"multiple of {token} ms, as {max(1, round(640 / token)) * token}."
            )
        return frames

    @property
    def samples_before(self) -> int:
        """Samples that a chunk sees before its first."""
        return self.frames_before * self.hop + self.lead

    @property
    def samples_after(self) -> int:
        """Samples that a chunk sees behind its last."""
        ahead = (self.frames_after - 1) * self.hop - self.lead + self.window
        return max(ahead, 0)
