"""The contract of `models.encoder`, for every encoder there is."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st

from nim4_jax.layers import Policy
from nim4_jax.models.conformer import ConformerConfig
from nim4_jax.models.whisper_encoder import WhisperEncoderConfig
from nim4_jax.ops.chunking import UNLIMITED, Chunking
from nim4_jax.types import Frames

WIDTH, MELS = 16, 16
LENGTH, CACHED = 48, 24  # encoder frames of the padded utterances, of the cache
SIZES = (1, 2, 3, 4, 6, 12)  # chunks that divide both

CONFORMER = ConformerConfig(
    num_layers=2,
    width=WIDTH,
    num_heads=2,
    num_mels=MELS,
    subsampling_channels=2,
    ffn_factor=2,
    conv_kernel=7,
    conv_expansion=2,
)
CONFIGS = {
    "conformer": CONFORMER,
    "causal conformer": dataclasses.replace(CONFORMER, conv_context="causal"),
    "whisper": WhisperEncoderConfig(
        num_layers=2, width=WIDTH, num_heads=2, num_mels=MELS, max_frames=LENGTH
    ),
}
every_encoder = pytest.mark.parametrize("name", CONFIGS)


def make_frames(seed: int, lengths: list[int], size: int) -> Frames:
    """Normal features, NaN behind each length."""
    values = np.random.default_rng(seed).normal(size=(len(lengths), size, MELS))
    mask = np.arange(size)[None] < np.asarray(lengths)[:, None]
    return Frames(np.where(mask[..., None], values, np.nan).astype(np.float32), mask)


@functools.cache
def make(name: str):
    """(config, module, jitted pass, jitted advance, random parameters)."""
    config = CONFIGS[name]
    module = config.build(Policy())
    frames = make_frames(0, [16], 16)
    init = functools.partial(module.init, jax.random.key(0))
    shapes = nn.unbox(jax.eval_shape(init, frames, Chunking.full()))
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        noise = 0.3 * rng.normal(size=leaf.shape)
        return np.float32(noise + (path[-1].key == "scale"))

    params = jax.tree_util.tree_map_with_path(draw, shapes)
    advance = functools.partial(module.apply, method="advance")
    return config, module, jax.jit(module.apply), jax.jit(advance), params


def feed(name: str, features: Frames, size: int, chunking: Chunking) -> Frames:
    """An utterance chunk by chunk, each with the feature frames that it sees."""
    config, module, _, advance, params = make(name)
    stride, before = config.frame_stride, config.frames_before
    pads = ((0, 0), (before, config.frames_after))
    values = np.pad(features.values, (*pads, (0, 0)), constant_values=np.nan)
    padded = Frames(values, np.pad(features.mask, pads))
    state, pieces = module.init_state(features.mask.shape[0], CACHED), []
    for start in range(0, features.mask.shape[1], stride * size):
        stop = start + before + stride * size + config.frames_after
        piece = jax.tree.map(lambda x, s=slice(start, stop): x[:, s], padded)
        got, state = advance(params, piece, state, chunking)
        pieces.append(got)
    return jax.tree.map(lambda *leaves: np.concatenate(leaves, axis=1), *pieces)


@every_encoder
@settings(max_examples=8)
@given(
    seed=st.integers(0, 99),
    shares=st.lists(st.floats(0, 1), min_size=2, max_size=2),
    size=st.sampled_from(SIZES),
    left=st.integers(0, CACHED),
)
def test_chunk_by_chunk_is_the_masked_whole(name, seed, shares, size, left):
    """Law 1: any chunk size, left chunks and lengths, NaN behind the mask."""
    config, _, apply, _, params = make(name)
    most = config.frame_stride * LENGTH
    features = make_frames(seed, [round(share * most) for share in shares], most)
    chunking = Chunking.of(size, min(left, CACHED // size))
    expected = apply(params, features, chunking)
    got = feed(name, features, size, chunking)
    np.testing.assert_array_equal(got.mask, expected.mask)
    valid = np.asarray(got.mask)
    pair = np.asarray(got.values)[valid], np.asarray(expected.values)[valid]
    np.testing.assert_allclose(*pair, atol=1e-5, rtol=1e-5)


@functools.cache
def make_grade(name: str):
    """(parameters, features, chunking) → (score and outputs, parameter gradient)."""
    apply = make(name)[2]

    def grade(params, features, chunking):
        got = apply(params, features, chunking)
        return jnp.sum(jnp.square(got.masked().values - 0.3)), got.values

    return jax.jit(jax.value_and_grad(grade, has_aux=True))


@every_encoder
@pytest.mark.parametrize("size", [4, UNLIMITED])
def test_nan_behind_the_mask_is_harmless(name, size):
    """Outputs and parameter gradients are those of zeros behind the mask."""
    params, grade = make(name)[4], make_grade(name)
    dirty, chunking = make_frames(5, [0, 70], 96), Chunking.of(size, 2)
    zeros = dataclasses.replace(dirty, values=np.nan_to_num(dirty.values))
    poisoned, clean = grade(params, dirty, chunking), grade(params, zeros, chunking)
    jax.tree.map(np.testing.assert_array_equal, poisoned, clean)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(poisoned[1]))


@every_encoder
def test_padding_never_matters(name):
    """A row gives the same alone and beside a longer one."""
    _, _, apply, _, params = make(name)
    long = make_frames(5, [96, 61], 96)
    short = jax.tree.map(lambda leaf: leaf[1:, :61], long)
    together = apply(params, long, Chunking.full())
    alone = apply(params, short, Chunking.full())
    count = alone.mask.shape[1]
    np.testing.assert_allclose(
        together.values[1:, :count], alone.values, atol=1e-5, rtol=1e-5
    )


@every_encoder
@pytest.mark.parametrize("frames", [1, 2, 4, 5, 47])
def test_every_feature_frame_is_covered(name, frames):
    """⌈T / stride⌉ valid frames: no speech is dropped at the end."""
    config, _, apply, _, params = make(name)
    got = apply(params, make_frames(0, [frames], frames), Chunking.full())
    assert int(got.lengths()[0]) == -(-frames // config.frame_stride)


@every_encoder
def test_a_chunk_sees_no_further_than_it_says(name):
    """A changed feature frame moves no chunk that ends before it, less the overlap."""
    config, _, apply, _, params = make(name)
    size, stride = 4, config.frame_stride
    features = make_frames(2, [stride * LENGTH], stride * LENGTH)
    edge = 5 * size * stride  # the first feature frame of chunk 5
    chunking = Chunking.of(size, 3)
    before = np.asarray(apply(params, features, chunking).values)
    for changed, first in (
        (edge + config.frames_after - 1, 4),
        (edge + config.frames_after, 5),
    ):
        values = features.values.copy()
        values[:, changed] += 1.0
        after = apply(
            params, dataclasses.replace(features, values=values), chunking
        ).values
        moved = np.any(np.asarray(after) != before, axis=(0, 2))
        assert not moved[: first * size].any()
        assert moved[first * size : (first + 1) * size].any()


@every_encoder
def test_chunkings_do_not_recompile(name):
    """Law 8: chunk size and left chunks are data, one program for all draws."""
    _, module, _, _, params = make(name)
    traces = []

    @jax.jit
    def run(params, frames, chunking):
        traces.append(1)
        return module.apply(params, frames, chunking)

    for chunking in (Chunking.of(1, 0), Chunking.of(9, 4), Chunking.full()):
        run(params, make_frames(0, [9], 24), chunking)
    assert len(traces) == 1


@every_encoder
@pytest.mark.parametrize("extra", [-1, 1])
def test_a_piece_must_end_with_a_window(name, extra):
    """The error names the length and what to feed."""
    config, module, _, advance, params = make(name)
    length = config.frames_before + 2 * config.frame_stride + config.frames_after
    state = module.init_state(1, CACHED)
    with pytest.raises(ValueError, match=rf"piece of {length + extra} feature frames"):
        advance(params, make_frames(0, [9], length + extra), state, Chunking.of(2, 1))


@every_encoder
def test_less_is_saved_the_more_is_recomputed(name):
    """Bytes that stand between forward and backward pass: none > dots > full."""
    config, _, _, _, params = make(name)
    frames, chunking = make_frames(2, [24, 9], 24), Chunking.of(2, 1)

    def count(kind):
        module = config.build(Policy(), kind)

        def encode(params):
            return module.apply(params, frames, chunking).values

        saved = jax.eval_shape(lambda given: jax.vjp(encode, given)[1], params)
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(saved))

    assert count("none") > count("dots") > count("full")


@every_encoder
@pytest.mark.parametrize("remat", ["dots", "full"])
def test_recomputation_changes_no_gradient(name, remat):
    """What is saved for the backward pass is a matter of memory alone."""
    config, _, _, _, params = make(name)
    frames, chunking = make_frames(2, [24, 9], 24), Chunking.of(2, 1)

    def slope(kind):
        module = config.build(Policy(), kind)

        def grade(params):
            got = module.apply(params, frames, chunking)
            return jnp.sum(jnp.square(got.masked().values))

        return jax.jit(jax.grad(grade))(params)

    jax.tree.map(
        lambda got, want: np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4),
        slope(remat),
        slope("none"),
    )
