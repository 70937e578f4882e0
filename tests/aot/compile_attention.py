"""Compile attention of the full-size LLM for TPUs v5e that are not here.

Run as a program, for a process that has loaded the TPU's compiler keeps it:
`compile_attention.py (attention | blocks) KERNELS DATA FSDP TENSOR`. Prints one JSON
object about the compiled gradient.
"""

import dataclasses
import json
import re
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.experimental import topologies

from nim4_jax import layers, settings, sharding
from nim4_jax.configs import base
from nim4_jax.models.llm_config import LLMConfig
from nim4_jax.models.qwen3 import Qwen3
from nim4_jax.ops import attention

ROWS, LENGTH = 4, 640
FULL = settings.build(LLMConfig, base.get_config("2b3").model.llm.to_dict())


def place(mesh, shape, dtype, *axes):
    """An array that lies on the mesh by its logical axes, without values."""
    placed = jax.sharding.NamedSharding(mesh, sharding.to_spec(axes))
    return jax.ShapeDtypeStruct(shape, dtype, sharding=placed)


def lower_attention(mesh, rows: int, kernels: str):
    """Gradient of one layer's attention by its operands."""
    width = FULL.head_dim
    kernel = attention.choose_kernel(kernels, jnp.bfloat16, width)

    def loss(queries, keys, values, mask):
        outputs = attention.attend_causal(
            queries, keys, values, mask, width**-0.5, kernel
        )
        return jnp.sum(jnp.where(mask[:, :, None, None], outputs, 0), dtype=jnp.float32)

    def operand(heads, name):
        shape = (rows, LENGTH, heads, width)
        return place(mesh, shape, jnp.bfloat16, "batch", None, name, None)

    queries = operand(FULL.num_heads, "heads")
    keys = operand(FULL.num_kv_heads, "kv_heads")
    mask = place(mesh, (rows, LENGTH), jnp.bool_, "batch", None)
    return jax.jit(jax.grad(loss, (0, 1, 2))).lower(queries, keys, keys, mask)


def lower_blocks(mesh, rows: int, kernels: str):
    """Gradient of two blocks by their parameters and inputs, blocks recomputed."""
    config = dataclasses.replace(FULL, num_layers=2)
    model = Qwen3(config, layers.Policy(compute="bfloat16", kernels=kernels), "full")

    def loss(params, embeddings, positions, mask):
        hidden, _ = model.apply({"params": params}, embeddings, positions, mask)
        return jnp.sum(jnp.where(mask[:, :, None], hidden, 0), dtype=jnp.float32)

    shape = (rows, LENGTH)
    inputs = (
        place(mesh, (*shape, config.width), jnp.bfloat16, "batch", None, None),
        place(mesh, shape, jnp.int32, "batch", None),
        place(mesh, shape, jnp.bool_, "batch", None),
    )
    boxed = jax.eval_shape(lambda *x: model.init(jax.random.key(0), *x), *inputs)
    params = jax.tree.map(
        lambda leaf: place(mesh, leaf.value.shape, leaf.value.dtype, *leaf.names),
        boxed["params"],
        is_leaf=lambda leaf: isinstance(leaf, nn.Partitioned),
    )
    return jax.jit(jax.grad(loss, (0, 1))).lower(params, *inputs)


def main() -> None:
    """See the module."""
    part, kernels, *sizes = sys.argv[1:]
    described = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2")
    mesh = sharding.make_mesh(tuple(map(int, sizes)), described.devices)
    rows = ROWS * sharding.count_batch_shards(mesh)
    lower = {"attention": lower_attention, "blocks": lower_blocks}[part]
    with jax.set_mesh(mesh):
        compiled = lower(mesh, rows, kernels).compile()
    text = compiled.as_text()
    square = re.findall(rf"\w+\[[\d,]*{LENGTH},(?:\d+,)?{LENGTH}\]", text)
    found = {
        "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
        "accessed_bytes": int(compiled.cost_analysis()["bytes accessed"]),
        "splash_calls": len(re.findall(r'custom_call_target="tpu_custom_call"', text)),
        "square_arrays": sorted(set(square)),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
