"""The cache: rows at their own offsets, and a past that can be taken back."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nim4_jax import layers
from nim4_jax.models import kv_cache, llm_config, qwen3
from nim4_jax.ops import rotary

CONFIG = llm_config.LLMConfig(
    vocab_size=5,
    width=12,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=6,
    ffn=16,
)
MODEL = qwen3.Qwen3(CONFIG, layers.Policy())
SLOTS = 16


@functools.cache
def params():
    tokens = jnp.zeros((1, 2), jnp.int32)
    init = functools.partial(MODEL.init, method="logits")
    shapes = jax.eval_shape(init, jax.random.key(0), tokens, tokens == 0)
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0.2, 0.3, leaf.shape), leaf.dtype),
        nn.unbox(shapes)["params"],
    )


@jax.jit
def apply(params, embeddings, start, mask, cache):
    positions = rotary.count_positions(mask, start)
    return MODEL.apply({"params": params}, embeddings, positions, mask, cache)


def run(embeddings, start, mask, cache):
    return apply(params(), embeddings, start, mask, cache)


def random_embeddings(seed: int, length: int, batch: int = 2):
    return jax.random.normal(jax.random.key(seed), (batch, length, CONFIG.width))


def run_dense(seed: int, length: int, cache):
    """`length` real tokens per row after those in the cache."""
    embeddings = random_embeddings(seed, length, cache.mask.shape[0])
    mask = jnp.ones(embeddings.shape[:2], bool)
    return run(embeddings, cache.length, mask, cache)


@given(kept=st.tuples(st.integers(0, 9), st.integers(0, 9)), seed=st.integers(0, 99))
def test_rewinding_and_going_on_is_as_if_it_had_never_been(kept, seed):
    _, cache = run_dense(seed, 9, kv_cache.init_cache(CONFIG, 2, SLOTS))
    cache = kv_cache.rewind(cache, jnp.array(kept))
    assert cache.length.tolist() == list(kept)
    hidden, cache = run_dense(seed + 1, 4, cache)
    assert cache.length.tolist() == [kept[0] + 4, kept[1] + 4]
    for b in range(2):
        past, new = random_embeddings(seed, 9), random_embeddings(seed + 1, 4)
        # One shape for every example: what never was stands behind the mask.
        mask = jnp.arange(9)[None, :] < kept[b]
        mask = jnp.concatenate([mask, jnp.ones((1, 4), bool)], axis=1)
        row = jnp.concatenate([past[b : b + 1], new[b : b + 1]], axis=1)
        empty = kv_cache.init_cache(CONFIG, 1, SLOTS)
        expected, _ = run(row, empty.length, mask, empty)
        np.testing.assert_allclose(hidden[b], expected[0, 9:], atol=1e-5)


def test_rewinding_never_lengthens():
    _, cache = run_dense(0, 3, kv_cache.init_cache(CONFIG, 2, SLOTS))
    assert kv_cache.rewind(cache, jnp.array([8, 2])).length.tolist() == [3, 2]


def test_a_grown_cache_goes_on_like_the_small_one():
    _, small = run_dense(0, 3, kv_cache.init_cache(CONFIG, 2, 5))
    large = kv_cache.grow(small, SLOTS)
    expected, _ = run_dense(1, 2, small)
    got, large = run_dense(1, 2, large)
    np.testing.assert_allclose(got, expected, atol=1e-6)
    assert large.slots == SLOTS


def test_structure_and_shapes_stay_so_that_the_cache_can_be_donated():
    cache = kv_cache.init_cache(CONFIG, 2, SLOTS)
    _, after = run_dense(0, 3, cache)
    assert jax.tree.structure(after) == jax.tree.structure(cache)
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, cache)


def test_tokens_beyond_the_last_slot_leave_the_earlier_ones_alone():
    _, cache = run_dense(0, 3, kv_cache.init_cache(CONFIG, 1, 4))
    _, after = run_dense(1, 3, cache)
    np.testing.assert_array_equal(after.keys[..., :3, :], cache.keys[..., :3, :])
    assert jnp.all(jnp.isfinite(after.keys))


def test_sizes_that_do_not_fit_are_refused():
    cache = kv_cache.init_cache(CONFIG, 1, 4)
    with pytest.raises(ValueError, match="5 tokens do not fit a cache of 4 slots"):
        kv_cache.extend(cache, jnp.ones((1, 5), bool))
    with pytest.raises(ValueError, match="slots=0"):
        kv_cache.init_cache(CONFIG, 1, 0)
    with pytest.raises(ValueError, match="grow\\(slots=3\\)"):
        kv_cache.grow(cache, 3)
