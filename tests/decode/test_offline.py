"""Batch decoding: cached sampler = teacher forcing, batch = solo, one compilation."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nim4_jax import layers
from nim4_jax.decode import offline
from nim4_jax.models import llm_config, qwen3
from nim4_jax.ops import rotary
from nim4_jax.types import Frames

CONFIG = llm_config.LLMConfig(
    vocab_size=13,
    width=16,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    ffn=24,
)
MODEL = qwen3.Qwen3(CONFIG, layers.Policy())
LENGTH, NEW = 8, 6
FULL = np.ones((3, LENGTH), bool)
NEVER = 999
"""An end token that no row can write."""


@pytest.fixture(autouse=True)
def strict_dtypes():
    """Decoding is strict about dtypes too."""
    with jax.numpy_dtype_promotion("strict"):
        yield


@functools.cache
def params():
    """Large random weights: each token is decided clearly, and they differ."""
    tokens = jnp.zeros((1, 2), jnp.int32)
    init = functools.partial(MODEL.init, method="logits")
    shapes = jax.eval_shape(init, jax.random.key(0), tokens, tokens == 0)
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0.1, 0.3, leaf.shape), leaf.dtype),
        nn.unbox(shapes)["params"],
    )


def random_prompt(seed: int, mask):
    """Embeddings with NaN behind the mask."""
    mask = jnp.asarray(mask)
    embeddings = jax.random.normal(jax.random.key(seed), (*mask.shape, CONFIG.width))
    return jnp.where(mask[:, :, None], embeddings, jnp.nan), mask


def generate(prompt, model=MODEL, **settings):
    ends = {"max_new_tokens": NEW, "end_id": NEVER}
    for name in ("max_new_tokens", "end_id", "limits"):
        if name in settings:
            ends[name] = settings.pop(name)
    stop, how = offline.Stop(**ends), offline.Sampling(**settings)
    return offline.generate(model, params(), Frames(*prompt), stop, how)


@jax.jit
def forced_logits(params, embeddings, mask, tokens, tokens_mask):
    """Logits that predict `tokens` after the prompt, in one uncached pass."""
    apply = functools.partial(MODEL.apply, {"params": params})
    answer = apply(tokens, method="embed")
    mask = jnp.concatenate([mask, tokens_mask], axis=1)
    embeddings = jnp.concatenate([embeddings, answer], axis=1)
    hidden, _ = apply(embeddings, rotary.count_positions(mask), mask)
    prompt = embeddings.shape[1] - tokens.shape[1]
    last = prompt - 1 - jnp.argmax(mask[:, :prompt][:, ::-1], axis=1)
    first = jnp.take_along_axis(hidden, last[:, None, None], axis=1)
    hidden = jnp.concatenate([first, hidden[:, prompt:-1]], axis=1)
    return apply(hidden, method="unembed")


prompt_masks = st.lists(
    st.lists(st.booleans(), min_size=LENGTH, max_size=LENGTH).filter(any),
    min_size=3,
    max_size=3,
).map(np.array)


@given(
    mask=prompt_masks, seed=st.integers(0, 99), temperature=st.sampled_from([0.0, 0.7])
)
def test_log_probabilities_are_the_teacher_forced_ones(mask, seed, temperature):
    prompt = random_prompt(seed, mask)
    out = generate(prompt, temperature=temperature, rng=jax.random.key(seed), end_id=2)
    logits = forced_logits(params(), *prompt, out.tokens, out.mask) / (
        temperature or 1.0
    )
    table = jax.nn.log_softmax(logits)
    expected = jnp.take_along_axis(table, out.tokens[:, :, None], axis=2)[:, :, 0]
    expected = jnp.where(out.mask, expected, 0.0)
    np.testing.assert_allclose(out.log_probs, expected, atol=1e-4)
    if temperature == 0.0:
        best = jnp.where(out.mask, jnp.argmax(logits, axis=2).astype(jnp.int32), 0)
        np.testing.assert_array_equal(out.tokens, best)


@given(
    mask=prompt_masks, seed=st.integers(0, 99), temperature=st.sampled_from([0.0, 1.0])
)
def test_rows_together_are_rows_alone_without_their_padding(mask, seed, temperature):
    embeddings, mask = random_prompt(seed, mask)
    rngs = jax.random.split(jax.random.key(seed), 3)
    setting = {"temperature": temperature, "end_id": 2}
    together = generate((embeddings, mask), rng=rngs, **setting)
    for b in range(3):
        # The real tokens moved to the end: the same row with all gaps closed.
        order = jnp.argsort(mask[b], stable=True)
        dense = (embeddings[b : b + 1, order], mask[b : b + 1, order])
        alone = generate(dense, rng=rngs[b : b + 1], **setting)
        np.testing.assert_array_equal(alone.tokens[0], together.tokens[b])
        np.testing.assert_allclose(alone.log_probs[0], together.log_probs[b], atol=1e-4)


def test_a_row_stops_after_its_end_token_and_keeps_it():
    prompt = random_prompt(0, FULL)
    free = generate(prompt)
    end = int(free.tokens[0, 2])
    first = free.tokens[0].tolist().index(end)
    out = generate(prompt, end_id=end)
    assert out.lengths()[0] == first + 1
    assert out.tokens[0].tolist() == free.tokens[0, : first + 1].tolist() + [0] * (
        NEW - first - 1
    )
    assert not jnp.any(out.log_probs[0, first + 1 :])


def test_limits_and_empty_prompts_bound_each_row():
    mask = FULL.copy()
    mask[2] = False
    prompt = random_prompt(0, mask)
    assert generate(prompt, limits=jnp.array([0, 3, 4])).lengths().tolist() == [0, 3, 0]
    out = generate(prompt, limits=jnp.array([50, NEW, 1]))
    assert out.lengths().tolist() == [NEW, NEW, 0]
    assert not jnp.any(jnp.where(out.mask, 0, out.tokens))


def test_repeated_calls_compile_once():
    prompt = random_prompt(0, np.ones((5, LENGTH), bool))
    before = offline._generate._cache_size()
    for seed in range(3):
        generate(
            random_prompt(seed, prompt[1]),
            temperature=0.5 + seed,
            top_p=0.5 + 0.1 * seed,
            rng=jax.random.key(seed),
            end_id=seed,
            limits=jnp.full((5,), seed),
        )
    other = qwen3.Qwen3(CONFIG, layers.Policy())
    setting = {"temperature": 1.0, "top_p": 1.0, "rng": jax.random.key(0)}
    generate(prompt, other, end_id=1, **setting)
    assert offline._generate._cache_size() == before + 1


def test_restricted_sampling_to_one_token_is_greedy():
    prompt = random_prompt(1, FULL)
    out = generate(prompt, temperature=1.0, top_k=1, rng=jax.random.key(0))
    np.testing.assert_array_equal(out.tokens, generate(prompt).tokens)
    np.testing.assert_allclose(out.log_probs, 0.0, atol=1e-6)


def test_bfloat16_decodes():
    model = qwen3.Qwen3(CONFIG, layers.Policy(compute="bfloat16"))
    prompt = random_prompt(0, FULL)
    out = generate(prompt, model)
    assert out.log_probs.dtype == jnp.float32 and jnp.all(out.mask)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0 must be"),
        ({"temperature": 0.5}, "give an rng key"),
        ({"temperature": -0.5}, "temperature=-0.5 must be"),
        ({"limits": jnp.array([1])}, "limits has shape \\(1,\\); need \\(3,\\)"),
    ],
)
def test_settings_that_make_no_sense_are_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        generate(random_prompt(0, FULL), **setting)


def test_prompts_that_do_not_fit_are_refused():
    embeddings, mask = random_prompt(0, FULL)
    with pytest.raises(ValueError, match="mask has shape \\(3, 7\\)"):
        generate((embeddings, mask[:, 1:]))
    with pytest.raises(ValueError, match="are 8 wide, but the LLM is 16"):
        generate((embeddings[:, :, :8], mask))


@given(samples=st.integers(1, 4), seed=st.integers(0, 99))
def test_samples_that_share_a_prompt_are_those_of_repeated_prompts(samples, seed):
    embeddings, mask = random_prompt(seed, np.tri(3, LENGTH, 4, dtype=bool))
    settings = {"temperature": 1.0, "top_p": 0.9, "limits": jnp.array([2, 0, NEW])}
    keys = jax.random.split(jax.random.key(seed), 3 * samples)
    shared = generate((embeddings, mask), rng=keys, samples=samples, **settings)
    repeated = [jnp.repeat(x, samples, axis=0) for x in (embeddings, mask)]
    settings["limits"] = jnp.repeat(settings["limits"], samples)
    alone = generate(repeated, rng=keys, **settings)
    assert np.array_equal(shared.tokens, alone.tokens)
    assert np.array_equal(shared.mask, alone.mask)
    np.testing.assert_allclose(shared.log_probs, alone.log_probs, atol=1e-5)


def test_no_samples_are_refused():
    with pytest.raises(ValueError, match="samples=0"):
        generate(random_prompt(0, FULL), samples=0)
