"""Start of `jax.distributed` from the environment, and checks that hosts agree.

where                    how they find each other
TPU pod (GCE, GKE)       JAX asks the machine
SLURM step (srun)        JAX reads SLURM_*: one process a GPU, or what
                         JAX_LOCAL_DEVICE_IDS lists
Kubernetes Job, JobSet   JAX asks the cluster (pip install kubernetes)
anywhere                 NIM4_COORDINATOR=HOST:PORT NIM4_PROCESSES=N NIM4_PROCESS=I
one process              nothing is needed

"Host" is a process here, as in JAX. Each of them runs the same command.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from absl import logging
from absl.logging import converter
from jax._src import clusters, distributed  # what they know has no public name
from jax.sharding import Mesh

from nim4_jax.process import errors
from nim4_jax.process.errors import Interrupted

COORDINATOR, PROCESSES, PROCESS = "NIM4_COORDINATOR", "NIM4_PROCESSES", "NIM4_PROCESS"
PATIENCE = "NIM4_JOIN_SECONDS"

_JOIN_SECONDS = 600  # pods of one job may start minutes apart
_LEAVE_SECONDS = 60
_AGREE_SECONDS = 600
_SHOWN = 12
_ABSENT = "absent"

Facts = dict[str, Any]
"""Dotted name → value, JSON-able."""


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Inside, `jax.devices()` are those of all hosts; before any use of devices.

    Leaving it waits for the others; an error does not, since they may be waiting for
    this host: `errors.guard` then ends the process at once.

    Raises:
        ValueError: an environment that cannot work.
    """
    if join():
        logging.info(
            "%d hosts with %d devices each",
            jax.process_count(),
            jax.local_device_count(),
        )
    try:
        yield
    except Interrupted:
        jax.distributed.shutdown()
        raise
    jax.distributed.shutdown()


def join() -> bool:
    """Connect to the other hosts, if the environment says that there are any.

    Returns:
        Whether `jax.distributed` is up; that may be with one process.

    Raises:
        ValueError: an environment that cannot work.
    """
    given = read_environment()
    cluster = "" if given else _detect()
    if not given and not cluster:
        _refuse_lonely_pod()
        return False
    if given:
        given["cluster_detection_method"] = "deactivate"
    seconds = _read_patience()
    where = f"{COORDINATOR} says" if given else f"cluster {cluster!r} was detected"
    deadline = threading.Timer(seconds, _give_up, (where, given, seconds))
    deadline.daemon = True
    deadline.start()
    try:
        # JAX's own time limit kills the process with a stack trace: ours comes first.
        jax.distributed.initialize(
            **given,
            initialization_timeout=seconds + 60,
            shutdown_timeout_seconds=_LEAVE_SECONDS,
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise ValueError(
            f"{where}, but the hosts cannot be joined: {error}. Mend the environment, "
            f"or set {COORDINATOR}, {PROCESSES} and {PROCESS}."
        ) from error
    finally:
        deadline.cancel()
    if jax.process_count() > 1:
        _sign_log(jax.process_index())
    return True


def read_environment() -> dict[str, Any]:
    """Arguments of `jax.distributed.initialize` from NIM4_*; {} when none is set.

    Raises:
        ValueError: some are missing, or numbers that cannot be.
    """
    given = {
        name: os.environ.get(name, "") for name in (COORDINATOR, PROCESSES, PROCESS)
    }
    if not any(given.values()):
        return {}
    if missing := [name for name, value in given.items() if not value]:
        raise ValueError(
            f"{', '.join(n for n, v in given.items() if v)} set, but not "
            f"{', '.join(missing)}; give all three: the address HOST:PORT of host 0, "
            "the number of processes and this one's number, from 0."
        )
    host, colon, port = given[COORDINATOR].rpartition(":")
    if not (host and colon and port.isdecimal()):
        raise ValueError(
            f"{COORDINATOR}={given[COORDINATOR]!r}; expected HOST:PORT of host 0."
        )
    count, rank = given[PROCESSES], given[PROCESS]
    if not (count.isdecimal() and rank.isdecimal() and int(rank) < int(count)):
        raise ValueError(
            f"{PROCESSES}={count!r} and {PROCESS}={rank!r}; expected a number of "
            "processes and a smaller number from 0."
        )
    return {
        "coordinator_address": given[COORDINATOR],
        "num_processes": int(count),
        "process_id": int(rank),
    }


def _detect() -> str:
    """Name of the cluster that JAX finds itself in, "" for none.

    Raises:
        ValueError: it seems to be in one, and cannot read it.
    """
    for kind in clusters.ClusterEnv._cluster_types:
        if kind.opt_in_only_method:
            continue
        try:
            if kind.is_env_present():
                return kind.name or kind.__name__
        except Exception as error:
            raise ValueError(
                f"{kind.__name__} cannot be read: {error}. Set {COORDINATOR}, "
                f"{PROCESSES} and {PROCESS} instead."
            ) from error
    return ""


def _refuse_lonely_pod() -> None:
    """A pod of a Kubernetes job that would train all by itself, beside the others."""
    number = os.environ.get("JOB_COMPLETION_INDEX", "0")
    if "KUBERNETES_SERVICE_HOST" in os.environ and number != "0":
        raise ValueError(
            f"this is pod {number} of a Kubernetes job, and nothing says where the "
            f"others are; pip install kubernetes, or set {COORDINATOR}, {PROCESSES} "
            f"and {PROCESS}."
        )


def _read_patience() -> int:
    value = os.environ.get(PATIENCE, str(_JOIN_SECONDS))
    if not value.isdecimal() or int(value) < 1:
        raise ValueError(f"{PATIENCE}={value!r}; expected whole seconds, 1 or more.")
    return int(value)


def _give_up(where: str, given: Mapping[str, Any], seconds: int) -> None:
    """End a process that has waited too long for the others."""
    state = distributed.global_state
    address = given.get("coordinator_address") or state.coordinator_address
    rank = given.get("process_id", state.process_id)
    count = given.get("num_processes", "?")
    cure = (
        f"not all of the {count} hosts have come; look at the logs of the others"
        if rank == 0
        else f"host 0 at {address} does not answer; check the address and the port"
    )
    print(
        f"error: {where}, and after {seconds} s host {rank} ({socket.gethostname()}) "
        f"has not joined: {cure}, or allow more time with {PATIENCE}.",
        file=sys.stderr,
        flush=True,
    )
    os._exit(errors.EXIT_HUNG)


def _sign_log(rank: int) -> None:
    """Lines say which host wrote them; of others than host 0 only warnings appear."""
    handler = logging.get_absl_handler()
    formatter = logging.PythonFormatter()
    plain = formatter.format
    formatter.format = lambda record: f"[host {rank}] {plain(record)}"
    handler.setFormatter(formatter)
    handler.addFilter(
        lambda record: rank == 0 or record.levelno >= converter.STANDARD_WARNING
    )


def check_mesh(mesh: Mesh) -> None:
    """Refuse a mesh that leaves hosts without work.

    Raises:
        ValueError: none of a host's devices belongs to it.
    """
    working = {device.process_index for device in mesh.devices.flat}
    idle = sorted(set(range(jax.process_count())) - working)
    if idle:
        raise ValueError(
            f"mesh {dict(mesh.shape)} takes {mesh.size} of {jax.device_count()} "
            f"devices, and none of host {', '.join(map(str, idle))}; set config.mesh "
            "to sizes whose product is the number of devices, −1 for the rest."
        )


def agree(facts: Facts, about: str) -> None:
    """Compare what each host says; all call it, and all return or all raise.

    Nothing runs on devices: they may be what the hosts differ in.

    Args:
        facts: of this host.
        about: once in a run, names the comparison.

    Raises:
        ValueError: they differ; names what, and who has which value.
        TimeoutError: a host does not come.
    """
    if jax.process_count() == 1:
        return
    client: Any = distributed.global_state.client
    place, rank = f"nim4/agree/{about}", jax.process_index()
    text = json.dumps(facts, sort_keys=True, default=str)
    digest = hashlib.sha256(text.encode()).hexdigest()
    client.key_value_set(f"{place}/facts/{rank}", text)
    client.key_value_set(f"{place}/hash/{rank}", digest)
    _meet(f"{place}/told", about)
    hashes = {_rank(key): h for key, h in client.key_value_dir_get(f"{place}/hash/")}
    if len(set(hashes.values())) == 1:
        return
    texts = client.key_value_dir_get(f"{place}/facts/")
    told = {_rank(key): json.loads(value) for key, value in texts}
    jax.distributed.shutdown()  # together, so that each one's message is its last word
    raise ValueError(f"the hosts disagree on the {about}: {compare(told)}")


def _rank(key: str) -> int:
    return int(key.rsplit("/", 1)[1])


def _meet(name: str, about: str) -> None:
    """Wait for all hosts."""
    client: Any = distributed.global_state.client
    try:
        client.wait_at_barrier(name, 1000 * _AGREE_SECONDS)
    except jax.errors.JaxRuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise TimeoutError(
            f"not every host came to compare the {about} within {_AGREE_SECONDS} s: "
            f"{reason}. Look at the logs of the others."
        ) from error


def compare(told: Mapping[int, Facts]) -> str:
    """Host → facts, as "NAME is A on host 0, B on hosts 1, 2; …" where they differ."""
    names = dict.fromkeys(name for facts in told.values() for name in facts)
    found = []
    for name in names:
        holders: dict[str, list[int]] = {}
        for host in sorted(told):
            value = json.dumps(told[host].get(name, _ABSENT), ensure_ascii=False)
            holders.setdefault(value, []).append(host)
        if len(holders) > 1:
            sides = [f"{value} on {_name(who)}" for value, who in holders.items()]
            found.append(f"{name} is {', '.join(sides)}")
    more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return "; ".join(found[:_SHOWN]) + more + ". Start every host with one command."


def _name(hosts: list[int]) -> str:
    shown = ", ".join(map(str, hosts[:_SHOWN]))
    more = f" and {len(hosts) - _SHOWN} more" if len(hosts) > _SHOWN else ""
    return f"host{'s' * (len(hosts) > 1)} {shown}{more}"
