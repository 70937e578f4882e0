"""Law 1 for one block and the stack of the Conformer; what a frame may see."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st

from nim4_jax.layers import Policy, rematerialise
from nim4_jax.models.conformer import (
    Block,
    ConformerConfig,
    ConformerStack,
)
from nim4_jax.ops.chunking import Chunking
from nim4_jax.types import Frames

WIDTH, MELS, LENGTH, CACHED = 16, 16, 48, 24
SIZES = (1, 2, 3, 4, 6, 12)  # chunk sizes that divide both piece lengths
PIECES = (12, 24)  # encoder frames; each compiles once


def make_config(context: str, layers: int = 2) -> ConformerConfig:
    """A tiny encoder whose convolution looks further than a chunk."""
    return ConformerConfig(
        num_layers=layers,
        width=WIDTH,
        num_heads=2,
        num_mels=MELS,
        subsampling_channels=2,
        ffn_factor=2,
        conv_kernel=7,
        conv_expansion=1 if context == "causal" else 2,
        conv_context=context,
    )


def make_frames(seed: int, lengths: list[int], size: int, width: int) -> Frames:
    """Normal values, NaN behind each length."""
    values = np.random.default_rng(seed).normal(size=(len(lengths), size, width))
    mask = np.arange(size)[None] < np.asarray(lengths)[:, None]
    return Frames(np.where(mask[..., None], values, np.nan).astype(np.float32), mask)


def cut(frames: Frames, start: int, stop: int) -> Frames:
    """A piece of a stream; in numpy, because each eager slice would compile."""
    return jax.tree.map(lambda leaf: leaf[:, start:stop], frames)


def join(pieces: list[Frames]) -> Frames:
    """Pieces in a row."""
    return jax.tree.map(lambda *leaves: np.concatenate(leaves, axis=1), *pieces)


def assert_frames(got: Frames, expected: Frames):
    """Equal where valid, and valid at the same places."""
    np.testing.assert_array_equal(got.mask, expected.mask)
    valid = np.asarray(got.mask)
    pair = np.asarray(got.values)[valid], np.asarray(expected.values)[valid]
    np.testing.assert_allclose(*pair, atol=1e-5, rtol=1e-5)


def make_params(init, *inputs):
    """Random parameters without compiling the initialisers."""
    rng = np.random.default_rng(1)
    shapes = nn.unbox(jax.eval_shape(init, jax.random.key(0), *inputs))

    def draw(path, leaf):
        noise = 0.3 * rng.normal(size=leaf.shape)
        return np.float32(noise + (path[-1].key == "scale"))

    return jax.tree_util.tree_map_with_path(draw, shapes)


@functools.cache
def make_stack(context: str, layers: int):
    """(init_state, jitted apply, parameters) of a stack of blocks."""
    module = ConformerStack(make_config(context, layers), Policy())
    frames = make_frames(0, [4], 4, WIDTH)
    params = make_params(module.init, frames, Chunking.full())
    return module.init_state, jax.jit(module.apply), params


cuts = st.sampled_from([(12, 12, 12, 12), (24, 24), (12, 24, 12), (24, 12, 12)])
lengths = st.lists(st.integers(0, LENGTH), min_size=2, max_size=2)


@pytest.mark.parametrize("layers", [1, 2], ids=["block", "stack"])
@pytest.mark.parametrize("context", ["chunk", "causal"])
@settings(max_examples=12)
@given(
    seed=st.integers(0, 99),
    lengths=lengths,
    size=st.sampled_from(SIZES),
    left=st.integers(0, CACHED),
    cuts=cuts,
    lead=st.booleans(),
)
def test_stack_in_pieces_equals_the_whole(
    context, layers, seed, lengths, size, left, cuts, lead
):
    """Law 1: any chunk size, left chunks, lengths and cuts, NaN behind the mask."""
    init_state, apply, params = make_stack(context, layers)
    chunking = Chunking.of(size, min(left, CACHED // size))
    frames = make_frames(seed, lengths, LENGTH, WIDTH)
    expected, _ = apply(params, frames, chunking)
    state, pieces, place = init_state(2, CACHED), [], 0
    if lead:
        nothing = make_frames(seed, [0, 0], PIECES[0], WIDTH)
        got, state = apply(params, nothing, chunking, state)
        assert not got.mask.any()
    for count in cuts:
        piece = cut(frames, place, place + count)
        got, state = apply(params, piece, chunking, state)
        pieces.append(got)
        place += count
    assert_frames(join(pieces), expected)


@pytest.mark.parametrize("size, left", [(5, 0), (4, 2), (3, 1)])
def test_a_state_of_exactly_the_left_chunks_is_enough(size, left):
    """One chunk a time, with room for left · size frames and no more."""
    init_state, apply, params = make_stack("chunk", 2)
    chunking = Chunking.of(size, left)
    frames = make_frames(7, [30, 21], 30, WIDTH)
    expected, _ = apply(params, frames, chunking)
    state, pieces = init_state(2, left * size), []
    for place in range(0, 30, size):
        got, state = apply(params, cut(frames, place, place + size), chunking, state)
        pieces.append(got)
    assert_frames(join(pieces), expected)


@pytest.mark.parametrize("context", ["chunk", "causal"])
def test_the_future_beyond_a_chunk_is_unseen(context):
    """A changed frame moves its own chunk and later ones, never earlier chunks."""
    _, apply, params = make_stack(context, 2)
    size, changed = 4, 17
    frames = make_frames(2, [LENGTH], LENGTH, WIDTH)
    values = frames.values.copy()
    values[:, changed] += 1.0
    other = dataclasses.replace(frames, values=values)
    chunking = Chunking.of(size, 3)
    before, _ = apply(params, frames, chunking)
    after, _ = apply(params, other, chunking)
    moved = np.any(np.asarray(after.values) != np.asarray(before.values), axis=(0, 2))
    assert not moved[:16].any() and moved[16:20].all()
    before, _ = apply(params, frames, Chunking.full())
    after, _ = apply(params, other, Chunking.full())
    moved = np.any(np.asarray(after.values) != np.asarray(before.values), axis=(0, 2))
    assert moved.all()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"num_heads": 3}, "width 16.*multiple of num_heads 3"),
        ({"conv_kernel": 8}, "conv_kernel=8 must be odd"),
        ({"conv_context": "both"}, r"'both' is unknown.*'chunk', 'causal'"),
    ],
)
def test_impossible_shapes_are_refused(change, message):
    """The error says what came and what fits."""
    shape = {"width": WIDTH, "num_heads": 2, **change}
    with pytest.raises(ValueError, match=message):
        ConformerConfig(**shape)


def test_an_unknown_recomputation_rule_lists_the_rules():
    """remat is none, dots or full."""
    with pytest.raises(ValueError, match=r"remat='some' is unknown.*none.*dots.*full"):
        rematerialise(Block, "some")
