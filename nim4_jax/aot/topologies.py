"""Device topologies (TPU slices, GPUs) to compile for without having them.

libtpu compiles for any TPU topology on any Linux machine, and so does JAX's CUDA plugin
for a GPU of which it is told the facts.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
import re
from collections.abc import Iterator
from typing import Any, cast

import jax
from jax.experimental import topologies

from nim4_jax import accelerators
from nim4_jax.accelerators import Accelerator
from nim4_jax.aot import gpu_targets

_FLAT = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 256: "16x16"}
_CUBE = {4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4"}


_WITHOUT_TRIALS = "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false"


@dataclasses.dataclass(frozen=True)
class _Generation:
    """How a generation of TPUs is named and built.

    Attributes:
        cloud: prefix of the names that are ordered by.
        shapes: chips → the shape of their network.
        cores: what the number in the cloud's name counts of a chip.
    """

    cloud: str
    shapes: dict[int, str]
    cores: int = 1


_GENERATIONS = {
    "v5e": _Generation("v5litepod", _FLAT),
    "v6e": _Generation("v6e", _FLAT),
    "v5p": _Generation("v5p", _CUBE, cores=2),
    "v4": _Generation("v4", _CUBE, cores=2),
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices to compile for.

    Attributes:
        name: as in "v5e:4x4".
        devices: in JAX's order.
        accelerator: what each of them can do.
    """

    name: str
    devices: list[Any]
    accelerator: Accelerator


def normalise(name: str) -> tuple[str, str]:
    """(generation, shape) of "v5e:4x4", or of a cloud's name as "v5e-16", "v5p-8".

    Raises:
        ValueError: no such generation, or a number of chips without a usual shape.
    """
    generation, colon, shape = name.lower().partition(":")
    number = None
    if not colon:
        generation, _, count = generation.partition("-")
        generation = {"v5litepod": "v5e"}.get(generation, generation)
        number = int(count) if count.isdigit() else 0
    if generation not in _GENERATIONS:
        raise ValueError(
            f"topology {name!r}: no TPU generation {generation!r}; use one of "
            f"{', '.join(_GENERATIONS)}, as in v5e:4x4 or v5e-16, or one of the GPUs "
            f"{', '.join(gpu_targets.TARGETS)}."
        )
    made = _GENERATIONS[generation]
    usual = {made.cores * chips: of for chips, of in made.shapes.items()}
    if number is not None:
        if number not in usual:
            names = (f"{generation}-{n} = {generation}:{s}" for n, s in usual.items())
            raise ValueError(
                f"topology {name!r}: no usual shape of {generation}-{number}; known: "
                f"{', '.join(names)}."
            )
        shape = usual[number]
    if not re.fullmatch(r"\d+(x\d+){1,2}", shape):
        raise ValueError(
            f"topology {name!r}: {shape!r} is no shape; write {generation}:"
            f"{next(iter(made.shapes.values()))}, sizes with x between them."
        )
    return generation, shape


def describe(name: str) -> Topology:
    """Devices that need not be here.

    "v5e:4x4", "v5p-8" or "2xv5e-16" (two slices); "h100" or "h100-8" (one node).

    Raises:
        ValueError: the compiler is not installed, or knows no such topology.
    """
    gpu, _, count = name.lower().partition("-")
    if gpu in gpu_targets.TARGETS:
        return _describe_gpus(gpu, count or "1")
    return _describe_tpus(name)


def _describe_gpus(gpu: str, count: str) -> Topology:
    if not count.isdigit() or not 1 <= int(count) <= 8:
        raise ValueError(f"topology {gpu}-{count}: a node has 1 to 8 GPUs.")
    if importlib.util.find_spec("jax_plugins.xla_cuda12") is None:
        raise ValueError(
            "compiling for GPUs needs JAX's CUDA plugin: "
            "pip install 'nim4-jax[gpu-aot]'."
        )
    # Without a GPU there is nothing to try kernels on; XLA reads it when loaded.
    chosen = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{_WITHOUT_TRIALS} {chosen}"
    found = topologies.get_topology_desc(
        platform="cuda",
        target_config=gpu_targets.TARGETS[gpu],
        topology=f"1x1x{int(count)}",
    )
    devices = list(found.devices)
    accelerator = cast(Accelerator, accelerators.find(devices[0].device_kind))
    return Topology(f"{gpu}-{int(count)}", devices, accelerator)


def _describe_tpus(name: str) -> Topology:
    several = re.fullmatch(r"(\d+)x([a-z].*)", name.lower())
    slices, one = (int(several[1]), several[2]) if several else (1, name)
    generation, shape = normalise(one)
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(
            "compiling for TPUs needs libtpu: pip install 'nim4-jax[tpu-aot]'."
        )
    made = _GENERATIONS[generation]
    chips = 1
    for size in shape.split("x"):
        chips *= int(size)
    # libtpu asks its surroundings for these where it finds no TPU.
    surroundings = {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": f"{made.cloud}-{chips * made.cores}",
        "TPU_WORKER_HOSTNAMES": "localhost",
        # Nothing is run, so a training beside this one is not disturbed.
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
    with _environment(surroundings):
        try:
            found = topologies.get_topology_desc(
                platform="tpu",
                topology_name=f"{generation}:{shape}",
                num_slices=slices,
            )
        except Exception as error:  # libtpu raises what its build raises
            reason = str(error).strip().splitlines()[0]
            raise ValueError(
                f"libtpu knows no topology {generation}:{shape} ({reason}); usual "
                f"shapes: {', '.join(made.shapes.values())}."
            ) from error
    kind = found.devices[0].device_kind
    accelerator = accelerators.find(kind)
    if accelerator is None:
        raise ValueError(
            f"{name} has devices of kind {kind!r}, of which accelerators.py knows "
            "neither peak nor memory; add them there."
        )
    prefix = f"{slices}x" if slices > 1 else ""
    return Topology(f"{prefix}{generation}:{shape}", list(found.devices), accelerator)


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Variables that the user has set stay as they are."""
    missing = {key: value for key, value in values.items() if key not in os.environ}
    os.environ.update(missing)
    try:
        yield
    finally:
        for key in missing:
            del os.environ[key]


def stay_off_accelerators() -> None:
    """Keep this process on the CPU: it only compiles. Before JAX is first used."""
    jax.config.update("jax_platforms", "cpu")
