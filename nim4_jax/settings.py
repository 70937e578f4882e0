"""The border: here ConfigDicts become frozen dataclasses; nothing below reads one."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any, TypeVar

T = TypeVar("T")


def build(cls: type[T], values: Mapping[str, Any], where: str = "config") -> T:
    """A (nested) frozen dataclass from a mapping.

    Raises:
        ValueError: an unknown key (with the nearest known one), a missing one, or a
        value
            of another kind, by its dotted path.
    """
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for key in values:
        if key not in fields:
            near = difflib.get_close_matches(key, fields, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {sorted(fields)}."
            raise ValueError(f"{where}.{key} is unknown; {hint}")
    arguments = {}
    for name, field in fields.items():
        if name in values:
            arguments[name] = _convert(hints[name], values[name], f"{where}.{name}")
        elif (
            field.default is dataclasses.MISSING
            and field.default_factory is dataclasses.MISSING
        ):
            raise ValueError(f"{where}.{name} is missing; {cls.__name__} needs it.")
    return cls(**arguments)


def _choose(shapes: Sequence[type], values: Mapping[str, Any]) -> type:
    """The first dataclass that has all of these fields, else the one with the most."""

    def count(shape: type) -> int:
        return len({field.name for field in dataclasses.fields(shape)} & values.keys())

    return max(shapes, key=count)


def _convert(hint: Any, value: Any, where: str) -> Any:
    """One value as its annotation says."""
    if is_dataclass(hint) and isinstance(value, Mapping):
        return build(hint, value, where)
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        shapes = [kind for kind in typing.get_args(hint) if is_dataclass(kind)]
        if shapes and isinstance(value, Mapping):
            return build(_choose(shapes, value), value, where)
        for choice in typing.get_args(hint):
            if choice is type(None):
                continue
            try:
                return _convert(choice, value, where)
            except ValueError:
                continue
        raise ValueError(f"{where}={value!r} is none of {hint}.")
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"{where}={value!r} must be a list.")
        inner = typing.get_args(hint)
        kinds = [inner[0]] * len(value) if inner[-1:] == (Ellipsis,) else inner
        if len(kinds) != len(value):
            raise ValueError(f"{where}={value!r} must have {len(kinds)} entries.")
        pairs = enumerate(zip(kinds, value))
        return tuple(_convert(kind, item, f"{where}[{i}]") for i, (kind, item) in pairs)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    wrong_bool = isinstance(value, bool) and hint is not bool
    if isinstance(hint, type) and (wrong_bool or not isinstance(value, hint)):
        raise ValueError(f"{where}={value!r} must be of type {hint.__name__}.")
    return value
