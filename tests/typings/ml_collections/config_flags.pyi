"""Flags whose value is a config."""

from typing import Any

def DEFINE_config_file(name: str, *args: Any, **kwargs: Any) -> Any: ...
