"""bfloat16 where the policy says, float32 where it must be, and the same curve."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nim4_jax import layers
from nim4_jax.models.asr import Asr, AsrConfig
from nim4_jax.ops import product
from nim4_jax.train import optim
from nim4_jax.train import state as train_state
from nim4_jax.train.losses import CrCtc, Transcribe
from nim4_jax.train.step import make_train_step

STEPS, WINDOW, TOLERANCE = 32, 8, 5e-3
RULES = (
    ("(ctc_head|cmvn|phoneme_reader)/.*", None),
    ("(encoder|adaptor)/.*", 1.0),
    ("llm/.*", 0.2),
)
ROUNDED = ("exp", "exp2", "log", "log1p", "rsqrt", "sqrt", "cumsum", "cumlogsumexp")
"""Operations that lose too much in bfloat16, beside sums."""


def make_config(tiny, **policy: str) -> AsrConfig:
    """Wide enough for the policies to differ, two blocks each."""
    encoder = dataclasses.replace(
        tiny.CONFIG.encoder, num_layers=2, width=64, num_heads=4, conv_kernel=7
    )
    llm = dataclasses.replace(
        tiny.CONFIG.llm,
        vocab_size=256,
        width=64,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        ffn=128,
    )
    return dataclasses.replace(
        tiny.CONFIG,
        encoder=encoder,
        llm=llm,
        adaptor_width=64,
        policy=layers.Policy(**policy),
    )


def make_run(tiny, loss, config: AsrConfig):
    """(train step, state) at the scale of fresh weights, without their compilation."""
    optimizer = optim.OptimizerConfig(peak_rate=2e-3, warmup_steps=5, weight_decay=1e-2)
    recipe = tiny.make_recipe(loss, RULES, STEPS)
    recipe = dataclasses.replace(recipe, optimizer=optimizer)
    params = tiny.make_params(recipe, config)
    mels = config.features.num_mels
    params["cmvn"] = {"mean": np.full(mels, 8.0), "scale": np.full(mels, 0.25)}

    def place(path, leaf):
        small = 0.4 if path[-1].key in ("kernel", "table") else 1.0
        dtype = jnp.float32 if path[0].key == "cmvn" else config.policy.param_dtype
        return jnp.asarray(small * leaf, dtype)

    params = jax.tree_util.tree_map_with_path(place, params)
    tx = optim.make_optimizer(recipe.optimizer, recipe.rules, recipe.steps)
    state = train_state.init_state(params, recipe, tx)
    return make_train_step(Asr(config), recipe, tx), state


def train(tiny, **policy: str) -> np.ndarray:
    """Loss of each step of stage 4 on four batches in turn, smoothed."""
    loss = Transcribe(tiny.PROMPT, augment=tiny.NO_AUGMENT, vocab_chunk=2)
    step, state = make_run(tiny, loss, make_config(tiny, **policy))
    step = jax.jit(step, donate_argnums=0)
    batches = [tiny.make_batch(seed, rows=8) for seed in range(4)]
    curve = []
    for number in range(STEPS):
        state, metrics = step(state, batches[number % len(batches)])
        curve.append(float(metrics["loss"]))
    return np.convolve(curve, np.full(WINDOW, 1.0 / WINDOW), "valid")


def test_curves_of_bfloat16_and_float32_agree(tiny):
    """The smoothed losses differ by 0.5 % at most while they fall by 10 % and more."""
    expected = train(tiny)
    assert expected[-1] < 0.9 * expected[0]
    found = train(tiny, compute="bfloat16")
    np.testing.assert_allclose(found, expected, rtol=TOLERANCE)
    assert np.any(found != expected)


@pytest.mark.long
def test_the_tolerance_tells_what_must_be_float32(tiny):
    """With parameters and moments in bfloat16 the curves part."""
    expected = train(tiny, compute="bfloat16")
    short = train(tiny, compute="bfloat16", params="bfloat16")
    assert np.max(np.abs(short / expected - 1.0)) > TOLERANCE


def walk(jaxpr):
    """Every equation of a traced function, those of inner functions too."""
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from walk(inner)


def find_short_sums(jaxpr) -> set[str]:
    """Operations on bfloat16 that ought to be float32, with their operands."""
    found = set()
    for equation in walk(jaxpr):
        shapes = [var.aval for var in equation.invars]
        if not any(getattr(s, "dtype", None) == jnp.bfloat16 for s in shapes):
            continue
        name = equation.primitive.name
        summed = name == "reduce_sum" and math.prod(
            shapes[0].shape[axis] for axis in equation.params["axes"]
        )
        if name in ROUNDED or (summed and summed > 1):
            found.add(f"{name} {[str(shape) for shape in shapes]}")
    return found


@pytest.mark.parametrize("kind", [CrCtc, Transcribe])
def test_no_statistic_is_taken_in_bfloat16(tiny, kind):
    """Forward, backward and update: sums, exponentials, roots, logarithms."""
    loss = CrCtc() if kind is CrCtc else Transcribe(tiny.PROMPT)
    step, state = make_run(tiny, loss, make_config(tiny, compute="bfloat16"))
    traced = jax.make_jaxpr(step)(state, tiny.make_batch(0))
    assert not find_short_sums(traced.jaxpr)
    # Parameters, moments and metrics.
    assert {leaf.dtype.name for leaf in traced.out_avals} == {"float32", "int32"}


def test_the_search_finds_statistics_in_bfloat16():
    """A norm, a softmax and the gradient of a bias as they should not be."""

    def norm(x):
        return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True))

    def bias(x):
        return jax.grad(lambda b: (x + b[None]).astype(jnp.float32).sum())(x[0])

    x = jnp.ones((3, 4), jnp.bfloat16)
    for function in (norm, jax.nn.softmax, bias):
        assert find_short_sums(jax.make_jaxpr(function)(x).jaxpr), function
    assert not find_short_sums(jax.make_jaxpr(lambda x: jnp.tanh(x) + x)(x).jaxpr)


def test_scores_are_float32_sums_of_short_products():
    """Not sums that were rounded and made long again."""
    keys = jax.random.split(jax.random.key(0))
    left, right = (jax.random.normal(k, (5, 64), jnp.bfloat16) for k in keys)
    outputs = product.einsum("ad,bd->ab", left, right)
    exact = np.float64(left) @ np.float64(right).T
    np.testing.assert_allclose(outputs, exact, rtol=1e-5, atol=1e-5)
    assert np.any(outputs != outputs.astype(jnp.bfloat16).astype(jnp.float32))
