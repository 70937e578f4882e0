"""Low-rank adaptation: a zero start, only its matrices train, and merging is exact."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from nim4_jax.layers import LoraConfig, Policy
from nim4_jax.models import lora
from nim4_jax.models.llm_config import LLMConfig
from nim4_jax.models.qwen3 import Qwen3
from nim4_jax.train import optim

PLAIN = LLMConfig(
    vocab_size=31,
    width=16,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=6,
    ffn=24,
    qkv_bias=True,
)
LORA = LoraConfig(rank=3, alpha=6.0)
TOKENS = jnp.arange(10, dtype=jnp.int32).reshape(2, 5)


def build(config=LORA):
    """The model under that adaptation."""
    return Qwen3(dataclasses.replace(PLAIN, lora=config), Policy())


@functools.cache
def init(config=LORA):
    """Its parameters."""
    mask = jnp.ones(TOKENS.shape, bool)
    made = build(config).init(jax.random.key(0), TOKENS, mask, method=Qwen3.logits)
    return nn.unbox(made)["params"]


def run(params, config=LORA):
    """Logits."""
    mask = jnp.ones(TOKENS.shape, bool)
    return build(config).apply({"params": params}, TOKENS, mask, method=Qwen3.logits)


def shake(params):
    """Every B (and A) random."""
    rng = np.random.default_rng(0)

    def change(path, leaf):
        adapts = path[-1].key in (lora.A, lora.B)
        return 0.3 * rng.normal(size=leaf.shape) if adapts else leaf

    made = jax.tree_util.tree_map_with_path(change, params)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), made)


def names(params, kind=lora.A):
    """Projections that have an adapter."""
    return sorted(p.split("/")[-2] for p in optim.flatten(params) if p.endswith(kind))


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ("query|value", ["query", "value"]),
        (".*", ["down", "gate", "key", "output", "query", "up", "value"]),
        ("nothing", []),
    ],
)
def test_targets_are_a_regular_expression(targets, expected):
    """Whole names of projections."""
    params = init(dataclasses.replace(LORA, targets=targets))
    assert names(params) == names(params, lora.B) == expected


def test_it_begins_as_the_model_without():
    """B is zero: the logits are those of the same kernels alone."""
    params = init()
    flat = optim.flatten(params)
    bare = {path: leaf for path, leaf in flat.items() if "lora" not in path}
    assert all((leaf == 0).all() for path, leaf in flat.items() if lora.B in path)
    plain = run(optim.unflatten(bare), LoraConfig())
    np.testing.assert_array_equal(run(params), plain)


def test_merged_says_what_unmerged_says():
    """kernel + α/r · A·B in place gives the logits of the two products in a row."""
    params = shake(init())
    merged = lora.merge(params, LORA)
    assert not names(merged)
    assert np.abs(run(params) - run(init())).max() > 0.1
    np.testing.assert_allclose(run(merged, LoraConfig()), run(params), atol=1e-5)


def test_rules_train_the_adapters_alone():
    """A stage freezes the LLM but for them by a regular expression."""
    params = {"llm": init()}
    rules = ((".*/lora_[ab]", 1.0), (".*", None))
    trainable, frozen = optim.split_params(params, rules)
    assert all(path.endswith((lora.A, lora.B)) for path in trainable)
    assert not any("lora" in path for path in frozen)
    assert len(trainable) == 14


@pytest.mark.parametrize(
    ("values", "message"), [({"rank": -1}, "rank"), ({"targets": "("}, "targets")]
)
def test_bad_values_are_refused(values, message):
    """Negative ranks, broken expressions."""
    with pytest.raises(ValueError, match=message):
        LoraConfig(**values)
