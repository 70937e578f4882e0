"""The LLM: cached = full, batch = solo, and what its switches change."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nim4_jax import layers, settings
from nim4_jax.configs import base
from nim4_jax.models import kv_cache, llm_config, qwen3
from nim4_jax.ops import attention, fused_attention, rotary

TINY = llm_config.LLMConfig(
    vocab_size=17,
    width=16,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    ffn=24,
)
FLOAT32 = layers.Policy()
MODEL = qwen3.Qwen3(TINY, FLOAT32)
LENGTH = 12


def random_params(model: qwen3.Qwen3):
    """Numbers without a compiled initialisation; no norm is hidden by scales of 1."""
    tokens = jnp.zeros((1, 2), jnp.int32)
    init = functools.partial(model.init, method="logits")
    shapes = jax.eval_shape(init, jax.random.key(0), tokens, tokens == 0)
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        mean = 1.0 if path[-1].key == "scale" else 0.0
        return jnp.asarray(rng.normal(mean, 0.3, leaf.shape), leaf.dtype)

    return jax.tree.map_with_path(draw, nn.unbox(shapes)["params"])


def logits_of(model: qwen3.Qwen3, params, tokens):
    call = jax.jit(functools.partial(model.apply, method="logits"))
    return call({"params": params}, tokens, tokens >= 0)


@functools.cache
def tiny_params():
    with jax.ensure_compile_time_eval():  # whoever asks first may be traced
        return random_params(MODEL)


@jax.jit
def apply(params, *arguments):
    return MODEL.apply({"params": params}, *arguments)


def run(embeddings, positions, mask, cache=None):
    return apply(tiny_params(), embeddings, positions, mask, cache)


def random_embeddings(seed: int, batch: int, length: int):
    return jax.random.normal(jax.random.key(seed), (batch, length, TINY.width))


def poison(embeddings, mask):
    return jnp.where(jnp.asarray(mask)[:, :, None], embeddings, jnp.nan)


masks = st.lists(
    st.lists(st.booleans(), min_size=LENGTH, max_size=LENGTH), min_size=2, max_size=2
).map(np.array)
pieces = st.lists(st.sampled_from([1, 3]), min_size=LENGTH, max_size=LENGTH)


def cut(sizes):
    """Ends of pieces of these sizes, up to LENGTH."""
    ends = [min(int(end), LENGTH) for end in np.cumsum(sizes)]
    return ends[: ends.index(LENGTH) + 1]


@given(mask=masks, sizes=pieces, seed=st.integers(0, 99))
def test_cached_pieces_are_the_full_pass(mask, sizes, seed):
    embeddings = poison(random_embeddings(seed, 2, LENGTH), mask)
    mask = jnp.asarray(mask)
    positions = rotary.count_positions(mask)
    full, none = run(embeddings, positions, mask)
    assert none is None
    cache = kv_cache.init_cache(TINY, 2, LENGTH + 3)
    start, parts = 0, []
    for end in cut(sizes):
        piece = slice(start, end)
        part, cache = run(
            embeddings[:, piece], positions[:, piece], mask[:, piece], cache
        )
        parts.append(part)
        start = end
    assert jnp.all(jnp.isfinite(full))
    np.testing.assert_allclose(jnp.concatenate(parts, 1), full, atol=1e-5)
    assert cache.length.tolist() == [LENGTH, LENGTH]


@pytest.mark.parametrize(
    "kernel, options",
    [("splash", {"interpret": True}), ("cudnn", {"implementation": "xla"})],
)
def test_fused_kernels_change_nothing(kernel, options, monkeypatch):
    """Outputs and gradients, gaps and empty rows in the mask.

    The kernels run without their hardware: splash block by block, cuDNN's call by
    JAX's own form of the same arguments.
    """
    mask = np.random.default_rng(3).random((3, LENGTH)) < 0.6
    mask[1] = False
    embeddings = poison(random_embeddings(4, 3, LENGTH), mask)
    mask = jnp.asarray(mask)
    positions = rotary.count_positions(mask)

    def differentiate():
        def loss(params, embeddings):
            hidden, _ = MODEL.apply({"params": params}, embeddings, positions, mask)
            hidden = jnp.where(mask[:, :, None], hidden, 0.0)
            return jnp.sum(jnp.sin(hidden)), hidden

        run = jax.jit(jax.grad(loss, (0, 1), has_aux=True))
        return run(tiny_params(), embeddings)

    expected = differentiate()
    fused = functools.partial(getattr(fused_attention, kernel), **options)
    monkeypatch.setattr(fused_attention, kernel, fused)
    monkeypatch.setattr(attention, "choose_kernel", lambda *_: kernel)
    close = functools.partial(np.testing.assert_allclose, atol=2e-5, rtol=1e-4)
    jax.tree.map(close, differentiate(), expected)


@given(mask=masks, seed=st.integers(0, 99))
def test_a_padded_row_in_a_batch_is_the_row_alone(mask, seed):
    dense = random_embeddings(seed, 1, LENGTH)
    every = jnp.ones((1, LENGTH), bool)
    # Causal: a shorter row alone is the start of the longest one.
    alone, _ = run(dense, rotary.count_positions(every), every)
    padded = np.full((2, LENGTH, TINY.width), np.nan, np.float32)
    for b in range(2):
        padded[b, mask[b]] = dense[0, : mask[b].sum()]
    flags = jnp.asarray(mask)
    together, _ = run(jnp.asarray(padded), rotary.count_positions(flags), flags)
    for b in range(2):
        np.testing.assert_allclose(
            together[b][mask[b]], alone[0, : mask[b].sum()], atol=1e-5
        )


def test_no_gradient_comes_from_behind_the_mask():
    mask = jnp.array([[True, True, False, True]])
    embeddings = poison(random_embeddings(0, 1, 4), mask)

    def loss(embeddings):
        hidden, _ = run(embeddings, rotary.count_positions(mask), mask)
        return jnp.sum(jnp.where(mask[:, :, None], hidden, 0.0) ** 3)

    gradient = jax.jit(jax.grad(loss))(embeddings)
    assert jnp.all(jnp.isfinite(gradient))
    assert not jnp.any(gradient[0, 2]) and jnp.any(gradient[0, 0])


def test_remat_changes_no_gradient():
    tokens = jnp.arange(8).reshape(2, 4)

    def gradients(remat):
        model = MODEL.clone(remat=remat)

        def loss(params):
            logits = model.apply(
                {"params": params}, tokens, tokens >= 0, method="logits"
            )
            return -jnp.mean(jax.nn.log_softmax(logits)[:, :, 3])

        return jax.tree.leaves(jax.jit(jax.grad(loss))(tiny_params()))

    expected = gradients("none")
    for remat in ("full", "dots"):
        for got, value in zip(gradients(remat), expected):
            np.testing.assert_allclose(got, value, atol=1e-6)


def test_less_is_saved_the_more_is_recomputed():
    """Bytes that stand between forward and backward pass: none > dots > full."""
    tokens = jnp.arange(8).reshape(2, 4)

    def count(remat, model):
        model = model.clone(remat=remat)

        def run(params):
            return model.apply({"params": params}, tokens, tokens >= 0, method="logits")

        saved = jax.eval_shape(lambda given: jax.vjp(run, given)[1], params)
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(saved))

    adapted = dataclasses.replace(TINY, lora=layers.LoraConfig(rank=2))
    for model in (MODEL, qwen3.Qwen3(adapted, FLOAT32)):
        params = random_params(model)
        sizes = [count(remat, model) for remat in layers.REMATS]
        assert sizes[0] > sizes[1] > sizes[2]


def test_an_unknown_remat_lists_the_choices():
    with pytest.raises(ValueError, match=r"'half' is unknown; use one of \('none'"):
        random_params(MODEL.clone(remat="half"))


@pytest.mark.parametrize(
    ("changes", "extra", "missing"),
    [
        ({}, {"query_norm", "key_norm"}, {"head", "bias"}),
        ({"qk_norm": False, "qkv_bias": True}, {"bias"}, {"query_norm", "head"}),
        ({"qk_norm": False, "tie_embeddings": False}, {"head"}, {"key_norm", "bias"}),
    ],
    ids=["qwen3", "qwen2.5", "llama"],
)
def test_variants_have_their_parameters_and_run(changes, extra, missing):
    model = qwen3.Qwen3(dataclasses.replace(TINY, **changes), FLOAT32)
    params = random_params(model)
    names = {key.key for path, _ in jax.tree.leaves_with_path(params) for key in path}
    assert extra <= names and not missing & names
    tokens = jnp.arange(6).reshape(1, 6)
    logits = logits_of(model, params, tokens)
    assert logits.shape == (1, 6, TINY.vocab_size)
    if "bias" in extra:
        assert params["layers"]["attention"]["key"]["bias"].shape == (2, 2, 8)
        assert "bias" not in params["layers"]["attention"]["output"]


def test_full_size_has_the_published_parameter_count_and_axes():
    values = base.get_config("2b3").model.llm.to_dict()
    c = settings.build(llm_config.LLMConfig, values)
    model = qwen3.Qwen3(c, FLOAT32)
    tokens = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    mask = jax.ShapeDtypeStruct((1, 2), jnp.bool_)
    init = functools.partial(model.init, method="logits")
    variables = jax.eval_shape(init, jax.random.key(0), tokens, mask)
    heads = 2 * c.num_heads + 2 * c.num_kv_heads
    block = c.width * c.head_dim * heads + 3 * c.width * c.ffn
    block += 2 * c.width + 2 * c.head_dim
    expected = c.vocab_size * c.width + c.num_layers * block + c.width
    count = sum(x.size for x in jax.tree.leaves(variables))
    assert count == expected == 1_720_574_976
    axes = nn.get_partition_spec(variables)["params"]
    query = axes["layers"]["attention"]["query"]["kernel"]
    assert tuple(query) == ("layers", "embed", "heads", "head_dim")
    known = {"layers", "embed", "heads", "kv_heads", "head_dim", "mlp", "vocab", "norm"}
    specs = jax.tree.leaves(axes, is_leaf=lambda x: isinstance(x, tuple))
    assert {name for spec in specs for name in spec} == known


def test_parameters_initialise_under_a_mesh():
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    tokens = jnp.zeros((1, 2), jnp.int32)
    init = jax.jit(functools.partial(MODEL.init, method="logits"))
    with jax.set_mesh(mesh):
        params = nn.unbox(init(jax.random.key(0), tokens, tokens == 0))["params"]
    assert jnp.std(params["layers"]["mlp"]["down"]["kernel"]) > 0.0
    assert params["layers"]["mlp"]["down"]["kernel"].shape == (2, 24, 16)


def test_bfloat16_runs_near_float32_with_float32_logits():
    policy = layers.Policy(compute="bfloat16")
    model = qwen3.Qwen3(TINY, policy)
    tokens = jnp.arange(10).reshape(2, 5)
    logits = logits_of(model, tiny_params(), tokens)
    assert logits.dtype == jnp.float32
    expected = logits_of(MODEL, tiny_params(), tokens)
    scale = float(jnp.std(expected))
    np.testing.assert_allclose(logits, expected, atol=0.1 * scale + 0.05)

    @jax.jit
    def step(params, cache):
        embeddings = model.apply({"params": params}, tokens, method="embed")
        positions = rotary.count_positions(tokens >= 0)
        return model.apply(
            {"params": params}, embeddings, positions, tokens >= 0, cache
        )

    cache = kv_cache.init_cache(TINY, 2, 5, policy.dtype)
    hidden, cache = step(tiny_params(), cache)
    assert hidden.dtype == cache.keys.dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 0}, "llm.width=0 must be an integer"),
        ({"num_layers": 2.0}, "llm.num_layers=2.0 must be an integer"),
        ({"num_kv_heads": 3}, "llm.num_heads=4 is no multiple of llm.num_kv_heads=3"),
        ({"head_dim": 7}, "llm.head_dim=7 is odd"),
        ({"rope_theta": -1.0}, "llm.rope_theta=-1.0 must be a positive"),
        ({"norm_epsilon": float("nan")}, "llm.norm_epsilon=nan must be a positive"),
    ],
)
def test_configurations_that_make_no_sense_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **change)


VARIANTS = {
    "qwen3": TINY,
    "qwen2": dataclasses.replace(TINY, qk_norm=False, qkv_bias=True),
    "untied": dataclasses.replace(TINY, tie_embeddings=False),
}


@pytest.mark.parametrize("variant", VARIANTS)
@given(mask=masks, cut_at=st.integers(1, LENGTH - 1), seed=st.integers(0, 99))
def test_packed_is_scanned(variant, mask, cut_at, seed):
    scanned, packed, params = packed_pair(variant)
    embeddings = poison(random_embeddings(seed, 2, LENGTH), mask)
    mask = jnp.asarray(mask)
    positions = rotary.count_positions(mask)
    expected, _ = scanned(params, embeddings, positions, mask, None)
    cache = kv_cache.init_cache(TINY, 2, LENGTH + 1, packed=True)
    parts = []
    # One shape for every example: what comes later stands behind the mask.
    for piece in (jnp.arange(LENGTH) < cut_at, jnp.arange(LENGTH) >= cut_at):
        got, wide = packed(
            qwen3.pack(params),
            embeddings,
            positions,
            mask & piece[None],
            kv_cache.grow(cache, cache.slots + LENGTH),
        )
        cache = wide
        parts.append(jnp.where(piece[None, :, None], got, 0.0))
    seen = mask[:, :, None]
    np.testing.assert_allclose(
        jnp.where(seen, sum(parts), 0.0), jnp.where(seen, expected, 0.0), atol=2e-5
    )


@functools.cache
def packed_pair(variant):
    """Both forms of a variant, compiled, and the scanned one's parameters."""
    models = [qwen3.Qwen3(VARIANTS[variant], FLOAT32, packed=p) for p in (False, True)]

    def compiled(model):
        return jax.jit(lambda params, *rest: model.apply({"params": params}, *rest))

    return *map(compiled, models), random_params(models[0])


def test_a_model_with_adapters_is_not_packed():
    config = dataclasses.replace(TINY, lora=layers.LoraConfig(rank=2, targets="up"))
    with pytest.raises(ValueError, match=r"'up'.*merge"):
        qwen3.pack(random_params(qwen3.Qwen3(config, FLOAT32)))
