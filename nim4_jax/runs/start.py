"""Set-up and shutdown that all training commands share: hosts, signals, logs."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from etils import epath
from ml_collections import ConfigDict

import nim4_jax
from nim4_jax.model_files import loading
from nim4_jax.runs import restart
from nim4_jax.runs.restart import Restart
from nim4_jax.text import phonemes
from nim4_jax.train.multihost import hosts
from nim4_jax.train.multihost.preemption import Preemption


@contextlib.contextmanager
def begun(config: ConfigDict, workdir: str) -> Iterator[tuple[Preemption, Restart]]:
    """Inside, the hosts have met and mean the same run, and may be asked to stop.

    Args:
        config: of the run; each host's must be the same.
        workdir: of the run, likewise.

    Yields:
        What tells when to stop, and what the flags allow where a run is resumed.

    Raises:
        ValueError: the hosts disagree; names what, and who has which value.
        TimeoutError: a host does not come.
    """
    with hosts.joined(), Preemption() as stop:
        allowed = restart.from_flags()
        arguments = {"workdir": workdir, **dataclasses.asdict(allowed)}
        hosts.agree(describe(config, arguments), "config")
        yield stop, allowed


def describe(config: ConfigDict, arguments: Mapping[str, Any]) -> hosts.Facts:
    """What must be the same on every host: config, flags, code, text resources.

    Args:
        config: of the run.
        arguments: flag → value.
    """
    facts = {f"--{name}": value for name, value in arguments.items()}
    facts |= _flatten("config", json.loads(config.to_json_best_effort()))
    for name in ("jax", "jaxlib", "nim4-jax"):
        facts[f"version of {name}"] = importlib.metadata.version(name)
    facts["version of Python"] = platform.python_version()
    facts["source of nim4_jax"] = _hash_source()
    facts["phoneme inventory"] = phonemes.INVENTORY_HASH[:16]
    if "tokenizer" in config:
        facts["tokenizer file"] = _hash_file(loading.find_tokenizer(config.tokenizer))
    return facts


def _flatten(path: str, value: Any) -> hosts.Facts:
    if not isinstance(value, dict):
        return {path: value}
    return {
        name: leaf
        for key, inner in value.items()
        for name, leaf in _flatten(f"{path}.{key}", inner).items()
    }


def _hash_source() -> str:
    """Of all Python files of the package, wherever it is installed."""
    digest = hashlib.sha256()
    for part in ("", ".configs", ".data", ".launch"):
        module = importlib.import_module(f"{nim4_jax.__name__}{part}")
        folder = Path(str(module.__file__)).parent
        for path in sorted(folder.rglob("*.py")):
            digest.update(f"{part}/{path.relative_to(folder)}".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _hash_file(path: str) -> str:
    try:
        return hashlib.sha256(epath.Path(path).read_bytes()).hexdigest()[:16]
    except OSError as error:
        return f"{path} cannot be read ({error.strerror})"
