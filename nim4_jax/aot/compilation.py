"""Ahead-of-time compilation of a step for absent devices: memory, FLOPs, traffic."""

from __future__ import annotations

import dataclasses
import math
import resource
import time
from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from nim4_jax import sharding
from nim4_jax.accelerators import GIB
from nim4_jax.aot import collectives
from nim4_jax.aot.topologies import Topology
from nim4_jax.features import SAMPLE_RATE
from nim4_jax.models.asr import Asr
from nim4_jax.process import device_memory
from nim4_jax.rates import Rates
from nim4_jax.rl.objective import PARTS, Grpo
from nim4_jax.rl.rollout import Experience
from nim4_jax.rl.worker import make_writer, outline
from nim4_jax.runs.run_settings import TrainSettings
from nim4_jax.train import optim, placement
from nim4_jax.train import state as train_state
from nim4_jax.train.flops import FlopCounter, Lengths, Pass
from nim4_jax.train.state import TrainState
from nim4_jax.train.step import make_train_step
from nim4_jax.types import AsrBatch, Frames, Labels

PHONEMES_PER_SECOND = 14
UTILISATIONS = (0.3, 0.4, 0.5)
"""Shares of the peak at which a step's duration is told."""


@dataclasses.dataclass(frozen=True)
class Load:
    """A batch: rows of equal size.

    Attributes:
        rows: of all devices together.
        seconds: audio of a row.
        tokens: transcript of a row.
    """

    rows: int
    seconds: float
    tokens: int

    @property
    def samples(self) -> int:
        """Audio samples of a row."""
        return int(self.seconds * SAMPLE_RATE)

    def batch(self, mesh: Mesh) -> AsrBatch:
        """Shapes of the batch, rows over the mesh."""
        placed = NamedSharding(mesh, PartitionSpec(sharding.BATCH_AXES))

        def make(length: int, dtype: Any) -> Any:
            shape = (self.rows, length)
            return jax.ShapeDtypeStruct(shape, dtype, sharding=placed)

        def labels(length: int) -> Labels:
            return Labels(make(length, jnp.int32), make(length, jnp.bool_))

        audio = make(self.samples, jnp.float32), make(self.samples, jnp.bool_)
        phonemes = labels(int(self.seconds * PHONEMES_PER_SECOND))
        return AsrBatch(Frames(*audio), phonemes, labels(self.tokens))

    def lengths(self, rates: Rates) -> Lengths:
        """For the count of operations: every row is full."""
        samples = np.full(self.rows, self.samples)
        return Lengths.of(samples, np.full(self.rows, self.tokens), None, rates)


@dataclasses.dataclass(frozen=True)
class Memory:
    """GiB on one device.

    Attributes:
        parameters: the model's, and a frozen copy if the stage has one.
        optimizer: moments.
        batch: what comes in with a step.
        activations: everything that lives only within a step, gradients among it.
        program: the instructions themselves.
        peak: all of it.
        available: what the device has.
    """

    parameters: float
    optimizer: float
    batch: float
    activations: float
    program: float
    peak: float
    available: float


@dataclasses.dataclass(frozen=True)
class Report:
    """What a compiled step takes.

    Attributes:
        program: "train_step", "rollout" or "tick".
        topology: devices that it is for.
        mesh: axis → size.
        remat: what the backward pass computes again.
        rows: of the batch, all devices together.
        seconds: audio of a row.
        tokens: transcript of a row.
        memory: per device; None where the compiler refused it.
        refusal: the compiler's words, "" where it fits.
        flops: part → operations of a step, by formula.
        traffic: kind → count and bytes on one device.
        step_seconds: share of the peak → seconds a step.
        audio_seconds: of a step.
        llm_tokens: of a step, prompt and transcript.
        compile_seconds: how long the compiler took.
        host_gib: most memory that this process has held.
    """

    program: str
    topology: str
    mesh: dict[str, int]
    remat: str
    rows: int
    seconds: float
    tokens: int
    memory: Memory | None
    refusal: str
    flops: dict[str, float]
    traffic: dict[str, dict[str, int]]
    step_seconds: dict[str, float]
    audio_seconds: float
    llm_tokens: float
    compile_seconds: float
    host_gib: float

    @property
    def fits(self) -> bool:
        """Whether there is room; only the TPU's compiler refuses a program itself."""
        return self.memory is not None and self.memory.peak <= self.memory.available


def compile_step(
    settings: TrainSettings, load: Load, topology: Topology, mesh: Mesh
) -> Report:
    """Compile the train step of a stage.

    Args:
        settings: of the stage, with kernels that the topology has.
        load: the batch.
        topology: whose devices the mesh is made of.
        mesh: as the run would have it.

    Raises:
        ValueError: the mesh does not divide the model or the rows.
    """
    _check_rows(load, mesh)
    with jax.set_mesh(mesh):
        state, batch = _abstract(settings, load, mesh)
        recipe = settings.recipe
        tx = optim.make_optimizer(recipe.optimizer, recipe.rules, recipe.steps)
        model = Asr(settings.model)
        step = jax.jit(
            make_train_step(model, recipe, tx),
            donate_argnums=0,
            out_shardings=(_lies(state), sharding.replicated()),
        )
        held = {"parameters": state.params, "optimizer": state.opt_state}
        lengths = load.lengths(settings.model.rates)
        return compile_program(
            lambda: step.lower(state, batch),
            held | {"batch": batch},
            topology,
            _describe("train_step", settings, load, mesh, recipe.loss.passes(lengths)),
        )


def compile_rollout(
    settings: TrainSettings, load: Load, topology: Topology, mesh: Mesh
) -> Report:
    """Compile the sampling of a stage of reinforcement learning.

    Raises:
        ValueError: see `compile_step`; or the stage samples nothing.
    """
    _check_rows(load, mesh)
    with jax.set_mesh(mesh):
        state, _ = _abstract(settings, load, mesh)
        batch = load.batch(mesh)
        model = Asr(settings.model)
        params = {name: state.params[name] for name in PARTS}
        placed = NamedSharding(mesh, PartitionSpec(sharding.BATCH_AXES))
        chosen = jax.ShapeDtypeStruct((load.rows,), jnp.bool_, sharding=placed)
        start = np.int32(0)
        write = jax.jit(make_writer(model, settings.recipe))
        lengths = load.lengths(settings.model.rates)
        passes = settings.recipe.loss.drawing_passes(lengths)
        return compile_program(
            lambda: write.lower(params, batch, start, start, chosen),
            {"parameters": params, "batch": batch},
            topology,
            _describe("rollout", settings, load, mesh, passes),
        )


def _check_rows(load: Load, mesh: Mesh) -> None:
    shards = sharding.count_batch_shards(mesh)
    if load.rows % shards:
        raise ValueError(
            f"{load.rows} rows do not divide over the {shards} data shards of mesh "
            f"{dict(mesh.shape)}; give a multiple of {shards}."
        )


def _abstract(
    settings: TrainSettings, load: Load, mesh: Mesh
) -> tuple[TrainState, Any]:
    """Shapes of a state and of what its step takes, placed on the mesh."""
    recipe, batch = settings.recipe, load.batch(mesh)
    model = Asr(settings.model)
    tx = optim.make_optimizer(recipe.optimizer, recipe.rules, recipe.steps)

    def begin() -> TrainState:
        one = jax.tree.map(
            lambda leaf: jnp.zeros((1, *leaf.shape[1:]), leaf.dtype), batch
        )
        params = train_state.init_params(model, recipe, one, recipe.seed)
        params = train_state.add_reference(params, recipe)
        return train_state.init_state(params, recipe, tx)

    state = placement.annotate(jax.eval_shape(begin), settings.model)
    if not isinstance(recipe.loss, Grpo):
        return state, batch
    rolled = outline(model, recipe, state.params, batch).rollout
    placed = NamedSharding(mesh, PartitionSpec(sharding.BATCH_AXES))

    def annotate(leaf: Any) -> Any:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placed)

    return state, Experience(batch, jax.tree.map(annotate, rolled))


def _lies(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.sharding, tree)


def size_on_device(tree: Any) -> float:
    """Bytes that shapes with shardings take of each device."""
    return float(
        sum(
            np.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
            for leaf in jax.tree.leaves(tree)
        )
    )


def _describe(
    program: str,
    settings: TrainSettings,
    load: Load,
    mesh: Mesh,
    passes: Sequence[Pass],
) -> dict[str, Any]:
    """What a report says of a stage's program before it is compiled."""
    recipe = settings.recipe
    counter = FlopCounter(settings.model, recipe.loss, recipe.rules)
    prompt = getattr(recipe.loss, "prompt", None)
    lengths = load.lengths(settings.model.rates)
    tokens = 0.0 if prompt is None else np.sum(lengths.prompt(prompt) + lengths.answer)
    return {
        "program": program,
        "mesh": {name: int(size) for name, size in mesh.shape.items()},
        "remat": settings.model.remat,
        "rows": load.rows,
        "seconds": load.seconds,
        "tokens": load.tokens,
        "flops": counter.add_up(passes),
        "audio_seconds": load.rows * load.seconds,
        "llm_tokens": float(tokens),
    }


def compile_program(
    lower: Callable[[], Any],
    held: dict[str, Any],
    topology: Topology,
    facts: dict[str, Any],
) -> Report:
    """Lower and compile; a lack of memory is part of the report, not an error.

    Args:
        lower: gives the lowered program.
        held: "parameters", "batch" and maybe "optimizer": shapes with shardings.
        topology: what it is compiled for.
        facts: fields of the report that are known beforehand, "mesh" and "flops" among
            them.
    """
    began, refusal, memory, traffic = time.perf_counter(), "", None, {}
    try:
        compiled = lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if not device_memory.is_lacking(error):
            raise
        refusal = device_memory.shorten(str(error))
    else:
        memory = _read_memory(compiled, held, topology)
        traffic = collectives.read(compiled.as_text())
    rate = topology.accelerator.peak * math.prod(facts["mesh"].values())
    needed = sum(facts["flops"].values()) / rate
    return Report(
        **facts,
        topology=topology.name,
        memory=memory,
        refusal=refusal,
        traffic={kind: dataclasses.asdict(one) for kind, one in traffic.items()},
        step_seconds={str(share): needed / share for share in UTILISATIONS},
        compile_seconds=time.perf_counter() - began,
        host_gib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB,
    )


def _read_memory(compiled: Any, held: dict[str, Any], topology: Topology) -> Memory:
    stats = compiled.memory_analysis()
    program = stats.generated_code_size_in_bytes
    fresh = stats.output_size_in_bytes - stats.alias_size_in_bytes
    temporary = stats.temp_size_in_bytes + fresh
    peak = stats.argument_size_in_bytes + temporary + program
    sizes = {name: size_on_device(tree) / GIB for name, tree in held.items()}
    return Memory(
        parameters=sizes["parameters"],
        optimizer=sizes.get("optimizer", 0.0),
        batch=sizes["batch"],
        activations=temporary / GIB,
        program=program / GIB,
        peak=peak / GIB,
        available=topology.accelerator.memory / GIB,
    )


def to_json(report: Report) -> dict[str, Any]:
    """The report as plain numbers and words."""
    return dataclasses.asdict(report)


def from_json(values: dict[str, Any]) -> Report:
    """What `to_json` gave."""
    memory = values["memory"]
    return Report(**{**values, "memory": memory and Memory(**cast(dict, memory))})
