"""Frozen, type-checked dataclasses from ConfigDicts and other mappings."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any, TypeVar

T = TypeVar("T")

USUAL = "usual"
"""Key of a field's metadata: the dataclass that is meant where several would do."""


def build(cls: type[T], values: Mapping[str, Any], where: str = "config") -> T:
    """A (nested) frozen dataclass from a mapping.

    Raises:
        ValueError: an unknown key (with the nearest known one), a missing one, a value
            of another kind, or fields that may be of several dataclasses or of none,
            by its dotted path.
    """
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for key in values:
        if key not in fields:
            hint = _find_near(key, cls) or f"known: {sorted(fields)}."
            raise ValueError(f"{where}.{key} is unknown; {hint}")
    arguments = {}
    for name, field in fields.items():
        if name in values:
            usual = field.metadata.get(USUAL)
            arguments[name] = _convert(
                hints[name], values[name], f"{where}.{name}", usual
            )
        elif (
            field.default is dataclasses.MISSING
            and field.default_factory is dataclasses.MISSING
        ):
            raise ValueError(f"{where}.{name} is missing; {cls.__name__} needs it.")
    return cls(**arguments)


def _choose(
    shapes: Sequence[type], values: Mapping[str, Any], where: str, usual: type | None
) -> type:
    """The one dataclass that has all of these fields, or the usual one of several.

    Raises:
        ValueError: none has, by the fields that each does not know; or several have.
    """
    unknown = {
        shape: values.keys() - {field.name for field in dataclasses.fields(shape)}
        for shape in shapes
    }
    fitting = [shape for shape in shapes if not unknown[shape]]
    if len(fitting) == 1 or (len(shapes) == 1 and not fitting):
        return (fitting or shapes)[0]
    if usual in fitting:
        return usual
    if fitting:
        names = " or ".join(shape.__name__ for shape in fitting)
        own = "; ".join(
            f"{shape.__name__} by {', '.join(sorted(_list_own(shape, fitting)))}"
            for shape in fitting
        )
        raise ValueError(
            f"{where} has the fields {sorted(values)}, which may be {names}; tell them "
            f"apart: {own}."
        )
    reasons = "".join(
        f" {shape.__name__} has no {key!r}; {_find_near(key, shape)}".rstrip()
        for shape in shapes
        for key in sorted(unknown[shape])
    )
    raise ValueError(
        f"{where} has the fields {sorted(values)}, which are of no known kind:{reasons}"
    )


def _find_near(key: str, shape: type) -> str:
    """A question after the field that may be meant; "" if none is near."""
    names = [field.name for field in dataclasses.fields(shape)]
    near = difflib.get_close_matches(key, names, 1)
    return f"did you mean {near[0]!r}?" if near else ""


def _list_own(shape: type, others: Sequence[type]) -> set[str]:
    """Fields that none of the others has."""
    names = {field.name for field in dataclasses.fields(shape)}
    return names.difference(
        *({f.name for f in dataclasses.fields(o)} for o in others if o is not shape)
    )


def _convert(hint: Any, value: Any, where: str, usual: type | None = None) -> Any:
    """One value as its annotation says; `usual` as for `_choose`."""
    if is_dataclass(hint) and isinstance(value, Mapping):
        return build(hint, value, where)
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        shapes = [kind for kind in typing.get_args(hint) if is_dataclass(kind)]
        if shapes and isinstance(value, Mapping):
            return build(_choose(shapes, value, where, usual), value, where)
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
