"""Weight-only int8: the numbers of the rounded float model."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from hypothesis import given
from hypothesis import strategies as st

from nim4_jax.decode import offline
from nim4_jax.model_files import loading
from nim4_jax.models import quantisation, qwen3
from nim4_jax.models.asr import Asr
from nim4_jax.ops.chunking import Chunking
from nim4_jax.train import parameter_count
from nim4_jax.types import Frames
from nim4_jax.weights import conversion

CONFIG = loading.build_model_config(
    {
        "features": {},
        "encoder": {"num_layers": 2, "width": 16, "num_heads": 2, "conv_kernel": 3},
        "adaptor_width": 12,
        "llm": {
            "vocab_size": 19,
            "width": 16,
            "num_layers": 2,
            "num_heads": 4,
            "num_kv_heads": 2,
            "head_dim": 6,
            "ffn": 20,
            "qkv_bias": True,
            "tie_embeddings": False,
        },
    }
)
INT8 = dataclasses.replace(
    CONFIG, policy=dataclasses.replace(CONFIG.policy, weights="int8")
)


@functools.cache
def params():
    """Random numbers of the float model."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: rng.normal(0.0, 0.4, leaf.shape).astype(np.float32),
        parameter_count.trace_params(CONFIG),
    )


def shapes():
    """By path, of the model with int8 weights."""
    traced = traverse_util.flatten_dict(parameter_count.trace_params(INT8), sep="/")
    return {path: leaf.shape for path, leaf in traced.items()}


@functools.cache
def quantised():
    """The same model with int8 weights."""
    return quantisation.quantise(params(), shapes())


def rounded():
    """The float model whose kernels and tables are what the int8 ones stand for."""
    flat = traverse_util.flatten_dict(quantised(), sep="/")
    made = {}
    for path, leaf in flat.items():
        name = path.removesuffix("_int8")
        if (
            not path.endswith("_scale")
            or path.removesuffix("_scale") + "_int8" not in flat
        ):
            scale = flat[f"{name}_scale"] if name != path else 1
            made[name] = leaf * scale
    return traverse_util.unflatten_dict(made, sep="/")


def run(config, values, packed=False):
    """Phoneme scores and LLM logits of noise."""
    model = Asr(config, packed=packed)

    def hear(asr, audio):
        frames = asr.encode(asr.extract(audio), Chunking.full())
        speech = asr.adapt(frames)
        tokens = asr.llm.embed(jnp.arange(speech.mask.shape[1], dtype=jnp.int32)[None])
        positions = jnp.arange(speech.mask.shape[1], dtype=jnp.int32)[None]
        hidden, _ = asr.llm(speech.values + tokens, positions, speech.mask)
        return asr.score_phonemes(frames), asr.unembed(hidden)

    noise = 0.1 * np.random.default_rng(1).normal(size=(1, 16_000))
    audio = Frames(jnp.asarray(noise, jnp.float32), jnp.ones((1, 16_000), bool))
    call = jax.jit(functools.partial(model.apply, method=hear))
    return call({"params": jax.device_put(values)}, audio)


@pytest.mark.parametrize("packed", [False, True])
def test_int8_gives_the_numbers_of_the_rounded_model(packed):
    values = quantised()
    if packed:
        values = {**values, "llm": qwen3.pack(values["llm"])}
    for got, expected in zip(run(INT8, values, packed), run(CONFIG, rounded())):
        np.testing.assert_allclose(got, expected, atol=2e-4, rtol=1e-4)


def test_the_rounded_model_is_near_and_not_the_same():
    for got, expected in zip(run(CONFIG, rounded()), run(CONFIG, params())):
        distance = np.linalg.norm(got - expected) / np.linalg.norm(expected)
        assert 1e-4 < distance < 0.1


@given(
    seed=st.integers(0, 2**31),
    shape=st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4)),
    axes=st.sets(st.integers(0, 2)),
    zero=st.booleans(),
)
def test_no_weight_is_off_by_more_than_half_a_step(seed, shape, axes, zero):
    kernel = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    kernel[0] *= 0.0 if zero else 1e-30
    scale = tuple(1 if axis in axes else size for axis, size in enumerate(shape))
    made = quantisation.quantise(
        {"a": {"kernel": kernel}},
        {"a/kernel_int8": shape, "a/kernel_scale": scale},
    )["a"]
    assert made["kernel_int8"].dtype == np.int8 and made["kernel_scale"].shape == scale
    error = np.abs(made["kernel_int8"] * made["kernel_scale"] - kernel)
    assert (error <= made["kernel_scale"] * 0.5001).all()


def test_kernels_and_tables_are_int8_and_the_rest_is_as_it_was():
    before = traverse_util.flatten_dict(params(), sep="/")
    after = traverse_util.flatten_dict(quantised(), sep="/")
    kept = {path for path in after if path in before}
    assert all(np.array_equal(after[path], before[path]) for path in kept)
    lost = {path for path in before if path not in after}
    assert lost == {p.removesuffix("_int8") for p in after if p.endswith("_int8")}
    assert "llm/embedding/table" in lost and "adaptor/up/kernel" in lost
    assert not any("norm" in path or path.startswith("cmvn") for path in lost)


def test_a_quantised_model_is_not_quantised_again():
    with pytest.raises(ValueError, match="quantised already"):
        quantisation.quantise(quantised(), shapes())


def test_the_shapes_are_those_that_the_model_declares():
    made = traverse_util.flatten_dict(quantised(), sep="/")
    assert {path: leaf.shape for path, leaf in made.items()} == shapes()


def test_decoding_never_holds_the_weights_as_floats():
    """XLA would gladly convert every int8 kernel before the loop."""
    llm = dataclasses.replace(
        CONFIG.llm, vocab_size=4096, width=64, ffn=512, num_layers=8, head_dim=16
    )
    shapes = conversion.llm_shapes(llm, INT8.policy)
    params = traverse_util.unflatten_dict(
        {
            path: jax.ShapeDtypeStruct(
                shape, jnp.int8 if path.endswith("_int8") else jnp.float32
            )
            for path, shape in shapes.items()
        },
        sep="/",
    )["llm"]
    model = qwen3.Qwen3(llm, INT8.policy)

    def write(params, embeddings):
        prompt = Frames(embeddings, jnp.ones(embeddings.shape[:2], bool))
        return offline.generate(model, params, prompt, offline.Stop(8, end_id=-1))

    embeddings = jax.ShapeDtypeStruct((1, 4, llm.width), jnp.float32)
    memory = jax.jit(write).lower(params, embeddings).compile().memory_analysis()
    floats = sum(4 * np.prod(shape) for p, shape in shapes.items() if "_int8" in p)
    assert memory.temp_size_in_bytes < 0.3 * floats
