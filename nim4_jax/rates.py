"""How samples, frames and tokens follow each other in time.

samples   16 kHz
features  10 ms apart, 25 ms each        (features.FeatureConfig)
encoder   40 ms apart: FRAME_STRIDE features, under a window of FRAME_WINDOW
speech    160 ms apart: SPEECH_STRIDE encoder frames, a token for the LLM
"""

FRAME_STRIDE = 4
"""Feature frames per encoder frame."""

FRAME_WINDOW = 7
"""Feature frames under one encoder frame: encoder frame u covers 4·u … 4·u + 6."""

FRAME_OVERLAP = FRAME_WINDOW - FRAME_STRIDE
"""Feature frames that an encoder frame shares with the next."""

SPEECH_STRIDE = 4
"""Encoder frames per speech token."""
