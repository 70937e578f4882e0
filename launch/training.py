"""How each command that trains begins and ends."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

from ml_collections import ConfigDict

from nim4_jax.launch import hosts, restart
from nim4_jax.launch.preemption import Preemption
from nim4_jax.launch.restart import Restart


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
        hosts.agree(hosts.describe(config, arguments), "config")
        yield stop, allowed
