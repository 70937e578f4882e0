"""Frozen dataclasses that are JAX pytrees.

As `flax.struct`, which it stands for so that a program that only loads an exported
bundle needs no Flax.
"""

from __future__ import annotations

import dataclasses
import typing
from typing import Any, TypeVar

import jax

T = TypeVar("T")


def static(**options: Any) -> Any:
    """A field that is part of the structure, not an array: hashable, never traced."""
    return dataclasses.field(metadata={"static": True}, **options)


@typing.dataclass_transform(
    frozen_default=True, field_specifiers=(dataclasses.field, static)
)
def dataclass(cls: type[T]) -> type[T]:
    """Decorator: a frozen dataclass, registered as a pytree.

    `dataclasses.replace` makes one with other values in some fields.
    """
    return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True)(cls))
