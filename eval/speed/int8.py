"""Weight-only int8 of SmolLM2-135M's weights: against our own float32."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nim4_jax.eval.speed import decode, measure
from nim4_jax.layers import Policy
from nim4_jax.models import quantisation
from nim4_jax.models.llm_config import LLMConfig
from nim4_jax.models.qwen3 import Qwen3
from nim4_jax.text.tokenizer import Tokenizer
from nim4_jax.types import Params
from nim4_jax.weights import conversion

_INT8 = Policy(weights="int8")


def _count_megabytes(params: Params) -> float:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(params)) / 1e6


def _score(params: Params, config: LLMConfig, policy: Policy, tokens: np.ndarray):
    """Log-probability of every next token, [B, L − 1]."""
    model = Qwen3(config, policy)
    mask = jnp.ones(tokens.shape, bool)
    logits: Any = model.apply({"params": params}, tokens, mask, method="logits")
    scores = jax.nn.log_softmax(logits[:, :-1])
    return jnp.take_along_axis(scores, tokens[:, 1:, None], axis=-1)[..., 0]


def run(full: bool, threads: int) -> list[measure.Row]:
    """Memory, speed, and how far log-probabilities of real text move."""
    del threads
    params, config, tokenizer = decode.load(decode.find_weights())
    shapes = conversion.llm_shapes(config, _INT8)
    small = quantisation.quantise({"llm": params}, shapes)["llm"]
    prompts = decode.make_prompts(Tokenizer(tokenizer), max(decode.BATCHES))
    exact = _score(params, config, conversion.FLOAT32, prompts)
    change = float(jnp.mean(jnp.abs(_score(small, config, _INT8, prompts) - exact)))
    sizes = [_count_megabytes(tree) for tree in (small, params)]
    runs = 9 if full else 3
    made = {"peer_name": "our float32", "runs": 1}
    rows = [
        measure.Row(
            figure="weights_smollm2_megabytes",
            unit="MB",
            ours=sizes[0],
            peer=sizes[1],
            ratio=sizes[1] / sizes[0],
            **made,
        ),
        measure.Row(
            figure="log_prob_change_nats",
            unit="nats",
            ours=change,
            peer=None,
            ratio=None,
            **made,
        ),
    ]
    ours, peer = decode.Ours(small, config, _INT8), decode.Ours(params, config)
    for batch in decode.BATCHES:
        rows.append(
            measure.compare(
                f"decode_smollm2_int8_batch{batch}_ms_per_token",
                "ms",
                functools.partial(ours.write, prompts[:batch]),
                functools.partial(peer.write, prompts[:batch]),
                peer_name="our float32",
                runs=runs,
                scale=1e3 / decode.NEW,
            )
        )
    return rows
