"""The choice between a CPU-specific and the plain form of a computation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax


def choose(
    *operands: Any, cpu: Callable[..., Any], default: Callable[..., Any], **others: Any
) -> Any:
    """The computation as the platform that it is lowered for has it.

    Args:
        *operands: of all forms, which give arrays of one shape and dtype.
        cpu: the form for CPUs.
        default: the plain one.
        **others: platform → its own form.
    """
    forms = {"cpu": cpu, "default": default, **others}
    return jax.lax.platform_dependent(*operands, **forms)
