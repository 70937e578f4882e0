"""Data sheets of accelerators: peak FLOP/s, memory and bandwidth, for utilisation."""

from __future__ import annotations

import dataclasses

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """One device as JAX counts them.

    Attributes:
        name: short, as in "v5e".
        kind: beginning of JAX's `device_kind`.
        peak: dense bfloat16 operations per second.
        memory: bytes of high-bandwidth memory that programs may use.
        bandwidth: bytes per second between it and the cores.
    """

    name: str
    kind: str
    peak: float
    memory: float
    bandwidth: float


ACCELERATORS = (
    Accelerator("v5e", "TPU v5 lite", 197e12, 15.75 * GIB, 819e9),
    Accelerator("v6e", "TPU v6 lite", 918e12, 31.25 * GIB, 1.64e12),
    Accelerator("v5p", "TPU v5", 459e12, 95.74 * GIB, 2.765e12),
    Accelerator("v4", "TPU v4", 275e12, 30.75 * GIB, 1.228e12),
    Accelerator("h100", "NVIDIA H100", 989e12, 79.1 * GIB, 3.35e12),
    Accelerator("h200", "NVIDIA H200", 989e12, 139.8 * GIB, 4.8e12),
    Accelerator("a100", "NVIDIA A100", 312e12, 79.1 * GIB, 2.039e12),
)


def find(kind: str) -> Accelerator | None:
    """The accelerator of a `device_kind`; None for an unknown one, as a CPU is."""
    found = (known for known in ACCELERATORS if kind.startswith(known.kind))
    return next(found, None)
