"""Logging of a command, and JAX's compilation cache."""

from __future__ import annotations

import importlib.util
import logging as py_logging
import os

import jax
from absl import logging

from nim4_jax.process import cache

_PARTS = ("", ".configs", ".data", ".eval", ".launch", ".serving")
_FOLDERS = tuple(
    os.path.dirname(str(spec.origin))
    for part in _PARTS
    if (spec := importlib.util.find_spec(f"nim4_jax{part}"))
)


def prepare() -> None:
    """Quiet libraries, our own log lines, and compilations kept between processes."""
    logging.use_absl_handler()
    logging.set_verbosity(logging.INFO)
    # Libraries log each file they write through absl's logger; keep what is ours.
    logging.get_absl_handler().addFilter(
        lambda record: record.levelno >= py_logging.ERROR or _ours(record)
    )
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", cache.find_folder())


def _ours(record: py_logging.LogRecord) -> bool:
    """Whether a log record was written by a module of this project."""
    path = os.path.abspath(record.pathname)
    return any(path.startswith(folder + os.sep) for folder in _FOLDERS)
