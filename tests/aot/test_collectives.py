"""Collectives read from compiled programs: known traffic, loops included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from nim4_jax import sharding
from nim4_jax.aot import collectives

TURNS = 5


@pytest.fixture
def mesh():
    return sharding.make_mesh((1, 8, 1))


def compile_text(function, mesh, *shapes) -> str:
    cut = NamedSharding(mesh, PartitionSpec("fsdp"))
    whole = NamedSharding(mesh, PartitionSpec())
    arrays = [jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes]
    jitted = jax.jit(function, in_shardings=cut, out_shardings=whole)
    return jitted.lower(*arrays).compile().as_text()


def test_a_gather_is_counted_with_its_bytes(mesh):
    """A cut array of 64 × 4 floats that every device wants whole."""
    traffic = collectives.read(compile_text(lambda x: x, mesh, (64, 4)))
    assert traffic == {"all-gather": collectives.Traffic(1, 64 * 4 * 4)}


def test_a_sum_is_counted_with_its_bytes(mesh):
    """What is left of a sum over the cut axis is four floats."""
    traffic = collectives.read(compile_text(lambda x: x.sum(0), mesh, (64, 4)))
    assert traffic == {"all-reduce": collectives.Traffic(1, 4 * 4)}


def test_a_loop_counts_as_often_as_it_turns(mesh):
    """A sum over the cut axis in every turn, which depends on the turn before."""

    def run(x):
        def turn(carry, _):
            return jnp.sin(x * carry[None]).sum(0), None

        return jax.lax.scan(turn, x[0], None, length=TURNS)[0]

    traffic = collectives.read(compile_text(run, mesh, (64, 4)))
    assert traffic["all-reduce"].count >= TURNS
    assert traffic["all-reduce"].bytes >= TURNS * 4 * 4


TPU = """
%start.1 (p: bf16[8,16]) -> (bf16[8,16], bf16[8,128]) {
  %all-gather.1 = bf16[8,128]{1,0} all-gather(%p), dimensions={1}
  ROOT %c = (bf16[8,16], bf16[8,128]) custom-call(%all-gather.1), custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion.2 (p: bf16[8,16]) -> bf16[8,128] {
  ROOT %all-gather.2 = bf16[8,128]{1,0} all-gather(%p), dimensions={1}
}

%done.3 (p: bf16[8,16]) -> bf16[8,128] {
  %all-gather.3 = bf16[8,128]{1,0} all-gather(%p), dimensions={1}
  ROOT %c = bf16[8,128]{1,0} custom-call(%all-gather.3), custom_call_target="AsyncCollectiveDone"
}

%below.4 (p: (u32[], bf16[8,16])) -> pred[] {
  %seven = u32[]{:T(128)} constant(7)
  %turn = u32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %compare.1 = pred[]{:T(512)} compare(%turn, %seven), direction=LT
}

%body.5 (p: (u32[], bf16[8,16])) -> (u32[], bf16[8,16]) {
  %permuted = (bf16[8,16]{1,0}, bf16[8,16]{1,0}) collective-permute-start(%x)
}

ENTRY %main.6 (p: bf16[8,16]) -> bf16[8,128] {
  %s = (bf16[8,16], bf16[8,128]) fusion(%p), calls=%start.1
  %m = bf16[8,128] fusion(%p), calls=%async_collective_fusion.2
  %d = bf16[8,128] fusion(%p), calls=%done.3
  %w = (u32[], bf16[8,16]) while(%t), condition=%below.4, body=%body.5
}
"""  # noqa: E501


def test_a_tpu_program_spreads_one_gather_over_fusions():
    """It is one gather; a loop without a known count turns up to its constant."""
    traffic = collectives.read(TPU)
    assert traffic["all-gather"] == collectives.Traffic(1, 8 * 128 * 2)
    assert traffic["collective-permute"] == collectives.Traffic(7, 7 * 8 * 16 * 2)
