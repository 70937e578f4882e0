"""What a compiled train step holds: never the logits of all answer places."""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nim4_jax import sharding
from nim4_jax.layers import Embed, Policy
from nim4_jax.models.asr import Asr
from nim4_jax.ops import cross_entropy
from nim4_jax.train.step import make_train_step

ROWS, PLACES, VOCAB = 8, 77, 3001  # extents that nothing else in the model has
WIDTH = 16  # of the tiny LLM


def compile_step(tiny, chunk: int):
    """Stage 4's step, `chunk` answer places at a time."""
    llm = dataclasses.replace(tiny.CONFIG.llm, vocab_size=VOCAB)
    config = dataclasses.replace(tiny.CONFIG, llm=llm)
    recipe = tiny.make_recipe(
        dataclasses.replace(tiny.PLAIN_TRANSCRIBE, vocab_chunk=chunk)
    )
    tx, state = tiny.make_state(recipe, config)
    batch = tiny.make_batch(0, rows=ROWS)
    ids = np.ones((ROWS, PLACES), np.int32)
    batch = dataclasses.replace(
        batch, tokens=dataclasses.replace(batch.tokens, ids=ids, mask=ids > 0)
    )
    step = jax.jit(make_train_step(Asr(config), recipe, tx), donate_argnums=0)
    return step.lower(state, batch).compile()


def find_arrays(compiled) -> dict[tuple[int, ...], int]:
    """Shape → bytes of every array that the program names."""
    found = re.findall(r"\b(pred|[suf]\d+|bf16)\[([\d,]+)\]", compiled.as_text())
    arrays = {}
    for kind, extents in found:
        shape = tuple(map(int, extents.split(",")))
        bits = int(kind.lstrip("bsuf")) if kind != "pred" else 8
        arrays[shape] = max(arrays.get(shape, 0), math.prod(shape) * bits // 8)
    return arrays


def count_places(arrays) -> int:
    """Most answer places (of all rows) whose logits one array holds."""
    # [V, D] are the table, its gradient and its moments.
    counts = [
        math.prod(shape) // VOCAB
        for shape in arrays
        if VOCAB in shape and sorted(shape) != [WIDTH, VOCAB]
    ]
    return max(counts)


def check_chunks(compiled, chunk: int) -> None:
    """Logits of `chunk` places a row and of no more, unless that is everything."""
    arrays = find_arrays(compiled)
    everything = ROWS * PLACES * VOCAB * 4
    whole = chunk >= PLACES
    assert count_places(arrays) == ROWS * min(chunk, PLACES)
    assert (max(arrays.values()) >= everything) == whole
    assert any({PLACES, VOCAB} <= set(shape) for shape in arrays) == whole
    temporary = compiled.memory_analysis().temp_size_in_bytes
    assert (temporary >= everything) == whole


def test_logits_exist_a_chunk_at_a_time_in_the_compiled_step(tiny):
    """Stage 4's whole step, update included."""
    check_chunks(compile_step(tiny, 8), 8)


@pytest.mark.parametrize("chunk", [8, PLACES])
def test_the_search_finds_whole_logits(chunk):
    """Of the loss alone, where a chunk as long as the answer is all of it."""
    targets = jnp.ones((ROWS, PLACES), jnp.int32)

    def loss(hidden, table):
        scores, _ = cross_entropy.token_log_probs(
            hidden, targets, lambda states: states @ table.T, chunk
        )
        return jnp.sum(scores)

    shapes = (ROWS, PLACES, WIDTH), (VOCAB, WIDTH)
    arguments = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
    check_chunks(jax.jit(jax.grad(loss, (0, 1))).lower(*arguments).compile(), chunk)


def test_each_device_scores_its_rows_against_its_part_of_the_vocabulary():
    """On a 2 × 2 × 2 mesh no collective moves logits, in either pass.

    Fewer places than the model is wide: there the compiler would rather gather them.
    """
    vocab, width, chunk = 4096, 64, 4
    table = Embed(vocab, width, Policy())
    mesh = sharding.make_mesh((2, 2, 2))

    def place(shape, dtype, *axes):
        placed = jax.sharding.NamedSharding(mesh, sharding.to_spec(axes))
        return jax.ShapeDtypeStruct(shape, dtype, sharding=placed)

    def loss(hidden, params, targets):
        def unembed(states):
            return table.apply({"params": params}, states, method="attend")

        scores, best = cross_entropy.token_log_probs(hidden, targets, unembed, chunk)
        return jnp.sum(scores), jnp.sum(best)

    arguments = (
        place((ROWS, 24, width), jnp.float32, "batch", None, None),
        {"table": place((vocab, width), jnp.float32, "vocab", "embed")},
        place((ROWS, 24), jnp.int32, "batch", None),
    )
    with jax.set_mesh(mesh):
        step = jax.jit(jax.grad(loss, (0, 1), has_aux=True))
        text = step.lower(*arguments).compile().as_text()
    moved = re.findall(
        r"= (\S+) (?:all-gather|all-reduce|all-to-all)(?:-start)?\(", text
    )
    shapes = [tuple(map(int, re.findall(r"\d+", m.split("{")[0])[1:])) for m in moved]
    local = vocab // 2  # half of the vocabulary on each part of the tensor axis
    assert f"{ROWS // 4},{chunk},{local}" in text
    assert moved and not any(
        len(shape) > 2 and shape[-1] >= local for shape in shapes
    ), shapes
