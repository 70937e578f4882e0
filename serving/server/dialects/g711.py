"""G.711 audio (µ-law, A-law): one byte a sample, 8 kHz.

Source: ITU-T G.711, tables of the two laws' expansion.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int16

RATE = 8_000


def _expand_mu() -> Int16[np.ndarray, "256"]:
    code = ~np.arange(256, dtype=np.uint8)
    exponent, mantissa = (code >> 4 & 7).astype(np.int32), (code & 15).astype(np.int32)
    size = ((2 * mantissa + 33) << (exponent + 2)) - 132
    return np.where(code & 128, -size, size).astype(np.int16)


def _expand_a() -> Int16[np.ndarray, "256"]:
    code = np.arange(256, dtype=np.uint8) ^ 0x55
    exponent, mantissa = (code >> 4 & 7).astype(np.int32), (code & 15).astype(np.int32)
    small = 16 * mantissa + 8
    size = np.where(exponent, (small + 256) << np.maximum(exponent - 1, 0), small)
    return np.where(code & 128, size, -size).astype(np.int16)


TABLES = {"audio/pcmu": _expand_mu(), "audio/pcma": _expand_a()}


def decode(data: bytes, kind: str) -> Int16[np.ndarray, " S"]:
    """Samples of bytes.

    Args:
        data: a byte a sample.
        kind: one of TABLES.
    """
    return TABLES[kind][np.frombuffer(data, np.uint8)]
