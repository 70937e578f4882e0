"""Law 6: imported weights give the reference's numbers, layer by layer.

The reference is transformers; its numbers are the goldens of tests/goldens/make_llm.py.
"""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nim4_jax.decode import offline
from nim4_jax.layers import Policy
from nim4_jax.models import llm_config, qwen3
from nim4_jax.ops import rotary
from nim4_jax.train import optim
from nim4_jax.types import Frames
from nim4_jax.weights import conversion, hf, rules

GOLDENS = Path(__file__).parents[1] / "goldens"
SIZES = {
    "vocab_size": 101,
    "width": 32,
    "num_layers": 3,
    "num_heads": 4,
    "num_kv_heads": 2,
    "ffn": 48,
}
CONFIGS = {
    "qwen3": llm_config.LLMConfig(**SIZES, head_dim=16),
    "qwen2": llm_config.LLMConfig(**SIZES, head_dim=8, qk_norm=False, qkv_bias=True),
    "llama": llm_config.LLMConfig(
        **SIZES,
        head_dim=8,
        qk_norm=False,
        rope_theta=5e5,
        norm_epsilon=1e-5,
        tie_embeddings=False,
    ),
}
POLICY = Policy()
TOLERANCE = 1e-4


@functools.cache
def load(family):
    """(reference arrays, our parameters of the LLM)."""
    arrays = dict(np.load(GOLDENS / f"llm_{family}.npz"))
    config = CONFIGS[family]
    shapes = conversion.llm_shapes(config)
    moves = rules.plan([rule for rule in hf.RULES if rule.ours in shapes], shapes)
    flat = {path: np.zeros(shape, np.float32) for path, shape in shapes.items()}
    for move in moves:
        array = move.to_ours(arrays[f"weights/{move.theirs}"])
        flat[move.ours][... if move.layer is None else move.layer] = array
    return arrays, jax.tree.map(jnp.asarray, optim.unflatten(flat)["llm"])


def layer_of(params, index):
    """Parameters of one block."""
    return {"params": jax.tree.map(lambda leaf: leaf[index], params["layers"])}


def sub(params, name):
    """Parameters of one sub-layer."""
    return {"params": params["params"][name]}


def make_context(arrays, config):
    """What the blocks share, for the golden batch."""
    mask = jnp.asarray(arrays["mask"])
    positions = rotary.count_positions(mask)
    angles = rotary.rotary_angles(positions, config.head_dim, config.rope_theta)
    return qwen3.Context(angles, mask)


def assert_close(got, expected, mask):
    """Largest difference over real tokens."""
    difference = np.abs(np.asarray(got) - expected)[np.asarray(mask)]
    assert difference.max() <= TOLERANCE


@pytest.mark.parametrize("family", CONFIGS)
def test_every_part_gives_the_references_numbers(family):
    """Embeddings, attention, feed-forward, block, final norm and logits."""
    arrays, params = load(family)
    config, mask = CONFIGS[family], arrays["mask"]
    model = qwen3.Qwen3(config, POLICY)
    ids = jnp.asarray(arrays["ids"], jnp.int32)
    embed = model.apply({"params": params}, ids, method=qwen3.Qwen3.embed)
    assert_close(embed, arrays["embeddings"], mask)
    context = make_context(arrays, config)
    none = jnp.zeros((), jnp.int32)
    hidden = jnp.asarray(arrays["embeddings"])
    for index in range(config.num_layers):
        own = layer_of(params, index)
        norm = qwen3.layers.RMSNorm(POLICY, config.norm_epsilon)
        normed = norm.apply(sub(own, "attention_norm"), hidden)
        attended, _ = qwen3.Attention(config, POLICY).apply(
            sub(own, "attention"), normed, None, none, context
        )
        assert_close(attended, arrays[f"attention{index}"], mask)
        between = norm.apply(sub(own, "mlp_norm"), hidden + attended)
        fed = qwen3.FeedForward(config, POLICY).apply(sub(own, "mlp"), between)
        assert_close(fed, arrays[f"mlp{index}"], mask)
        (out, _), _ = qwen3.Block(config, POLICY).apply(
            own, (hidden, None), none, context
        )
        assert_close(out, arrays[f"block{index}"], mask)
        hidden = jnp.asarray(arrays[f"block{index}"])
    positions = rotary.count_positions(jnp.asarray(mask))
    final, _ = model.apply({"params": params}, embed, positions, jnp.asarray(mask))
    assert_close(final, arrays["final_norm"], mask)
    logits = model.apply(
        {"params": params}, ids, jnp.asarray(mask), method=qwen3.Qwen3.logits
    )
    assert_close(logits, arrays["logits"], mask)


@pytest.mark.parametrize("family", CONFIGS)
def test_cached_decoding_writes_the_references_tokens(family):
    """A padded batch, prefill and 64 cached steps = the full forward, alone."""
    arrays, params = load(family)
    model = qwen3.Qwen3(CONFIGS[family], POLICY)
    ids = jnp.asarray(arrays["ids"], jnp.int32)
    prompts = model.apply({"params": params}, ids, method=qwen3.Qwen3.embed)
    written = offline.generate(
        model,
        params,
        Frames(prompts, jnp.asarray(arrays["mask"])),
        offline.Stop(arrays["greedy"].shape[1], end_id=-1),
    )
    np.testing.assert_array_equal(written.tokens, arrays["greedy"])


@pytest.mark.large
def test_the_goldens_are_those_of_transformers():
    """Where transformers is installed, it still gives the committed numbers."""
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    names = {"qwen3": "Qwen3", "qwen2": "Qwen2", "llama": "Llama"}
    for family, config in CONFIGS.items():
        arrays, _ = load(family)
        theirs = hf.from_llm_config(config, "float32")
        made = getattr(transformers, f"{names[family]}Config").from_dict(theirs)
        model = getattr(transformers, f"{names[family]}ForCausalLM")(made).eval()
        weights = {
            name.removeprefix("weights/"): torch.from_numpy(array)
            for name, array in arrays.items()
            if name.startswith("weights/")
        }
        model.load_state_dict(weights, strict=False)
        with torch.no_grad():
            logits = model(
                torch.from_numpy(arrays["ids"]),
                attention_mask=torch.from_numpy(arrays["mask"]).long(),
            ).logits.numpy()
        assert_close(logits, arrays["logits"], arrays["mask"])
