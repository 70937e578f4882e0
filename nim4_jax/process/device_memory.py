"""Recognising out-of-memory errors of compilers and devices."""

from __future__ import annotations

import re

_FULL = re.compile(r"RESOURCE_EXHAUSTED|[Oo]ut of memory|exceed\w* .*hbm")
_TELLING = re.compile(r"[Uu]sed|exceed|[Oo]ut of memory")

ADVICE = (
    "Smaller config.data.batch_size or more config.micro_batches, "
    "config.model.remat=full, or a larger fsdp size in config.mesh need less; nim4 "
    "train --compile_only --search finds what fits, without the devices."
)


def is_lacking(error: BaseException) -> bool:
    """Whether that is what an error of JAX is about."""
    return bool(_FULL.search(str(error)))


def shorten(message: str) -> str:
    """The compiler's words on memory, without its list of every buffer."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    told = [line for line in lines if _TELLING.search(line)]
    return " ".join(dict.fromkeys((told or lines)[:3]))[:400]
