"""Compile the streaming tick for a device that is not here."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from nim4_jax import sharding
from nim4_jax.aot import compilation
from nim4_jax.aot.compilation import Report
from nim4_jax.aot.topologies import Topology
from nim4_jax.decode import stream
from nim4_jax.decode.live.stream_config import StreamConfig
from nim4_jax.decode.programs import Arrival
from nim4_jax.layers import Policy
from nim4_jax.models.asr import Asr, AsrConfig, Prompt, abstract_params
from nim4_jax.types import Frames, Labels


def compile_tick(
    config: AsrConfig, prompt: Prompt, streams: int, topology: Topology
) -> Report:
    """A chunk of each of so many streams, on one device, in bfloat16.

    Args:
        config: shape of the model; a stream needs no gradient, so its weights are
            bfloat16 too.
        prompt: token ids around the speech.
        streams: state of the device, and rows of the tick.
        topology: whose first device it is for.
    """
    policy = Policy(params="bfloat16", compute="bfloat16")
    model = Asr(dataclasses.replace(config, policy=policy, remat="none"), packed=False)
    sizes = StreamConfig.of(rates=config.rates)
    mesh = sharding.make_mesh((1, 1, 1), topology.devices[:1])
    with jax.set_mesh(mesh):
        whole = NamedSharding(mesh, PartitionSpec())

        def annotate(leaf: Any) -> Any:
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole)

        boxed = abstract_params(model.config)
        params = jax.tree.map(annotate, nn.unbox(boxed))
        state = jax.eval_shape(
            lambda given: stream.init(model, given, prompt, sizes, streams), params
        )
        arrival = jax.eval_shape(lambda: _arrive(sizes, streams))
        state, arrival = jax.tree.map(annotate, (state, arrival))
        settings = stream.PassSettings(
            sizes, len(prompt.prefix), end_id=0, width=sizes.widths()[-1]
        )
        return compilation.compile_program(
            lambda: stream.lower_tick(model, settings, params, state, arrival),
            {"parameters": params, "batch": (state, arrival)},
            topology,
            {
                "program": "tick",
                "mesh": {name: int(size) for name, size in mesh.shape.items()},
                "remat": "none",
                "rows": streams,
                "seconds": sizes.seconds,
                "tokens": sizes.draft_tokens,
                "flops": {},
                "audio_seconds": streams * sizes.seconds,
                "llm_tokens": float(streams * sizes.speech_tokens),
            },
        )


def _arrive(sizes: StreamConfig, rows: int) -> Arrival:
    """A chunk of every stream."""
    window = (rows, sizes.window)
    suffix = (rows, sizes.suffix_tokens)
    return Arrival(
        slots=None,
        audio=Frames(jnp.zeros(window), jnp.zeros(window, bool)),
        fresh=jnp.zeros(rows, bool),
        limits=jnp.zeros(rows, jnp.int32),
        suffix=Labels(jnp.zeros(suffix, jnp.int32), jnp.zeros(suffix, bool)),
    )


def count_streams(one: Report, many: Report) -> int:
    """Streams that fit by memory, from the peaks of two numbers of them.

    Raises:
        ValueError: one of them does not fit.
    """
    if one.memory is None or many.memory is None:
        raise ValueError(f"{one.rows} or {many.rows} streams do not fit.")
    each = (many.memory.peak - one.memory.peak) / (many.rows - one.rows)
    return many.rows + int((many.memory.available - many.memory.peak) / each)
