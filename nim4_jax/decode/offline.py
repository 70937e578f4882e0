"""Batch decoding of a whole prompt: one prefill, then one jitted loop of tokens."""

from __future__ import annotations

import functools

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from nim4_jax import types
from nim4_jax.models import kv_cache, qwen3
from nim4_jax.ops import rotary, sampling


@flax.struct.dataclass
class Generation:
    """What the LLM wrote after each prompt, left aligned.

    Attributes:
        tokens: Int[Array, "B L"]; 0 behind the mask.
        mask: Bool[Array, "B L"], True for real tokens, the end token among them.
        log_probs: Float[Array, "B L"], nats, under the distribution that was sampled;
            0 behind the mask.
    """

    tokens: Int[Array, "B L"]
    mask: Bool[Array, "B L"]
    log_probs: Float[Array, "B L"]

    def lengths(self) -> Int[Array, " B"]:
        """Number of tokens of each row, the end token included."""
        return jnp.sum(self.mask, axis=1, dtype=jnp.int32)


@flax.struct.dataclass
class _Loop:
    """State of the token loop: what is out, and what the next step needs."""

    step: Int[Array, ""]
    output: Generation
    cache: kv_cache.KVCache
    last: Int[Array, " B"]
    position: Int[Array, " B"]
    active: Bool[Array, " B"]


def generate(
    model: qwen3.Qwen3,
    params: types.Params,
    prompt_embeddings: Float[Array, "B L D"],
    prompt_mask: Bool[Array, "B L"],
    *,
    max_new_tokens: int,
    end_id: int,
    temperature: float = 0.0,
    rng: Key[Array, "*B"] | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    limits: Int[Array, " B"] | None = None,
) -> Generation:
    """Continue each prompt until its end token or its limit.

    A row is the same whatever rows stand beside it and wherever its padding lies; drawn
    rows too, if `rng` holds a key per row. Repeated calls with the same shapes compile
    once, also when temperature, top_p, end_id, limits or rng change.

    Args:
        model: the LLM, unbound.
        params: its parameters.
        prompt_embeddings: tokens and speech, as the LLM reads them.
        prompt_mask: True where the prompt is real; gaps and padding may be anywhere. A
            row without any real position writes nothing.
        max_new_tokens: size of the result, ≥ 1; the cache holds L + max_new_tokens.
        end_id: token that ends a row.
        temperature: 0 is greedy.
        rng: one key or a key per row; needed when temperature > 0.
        top_p: nucleus mass, see `sampling.restrict`.
        top_k: number of candidates, see `sampling.restrict`.
        limits: tokens that each row may write, cut at max_new_tokens; None for all.

    Returns:
        Generation of shape [B, max_new_tokens].

    Raises:
        ValueError: sizes that do not fit, or temperature > 0 without rng.
    """
    batch, length, width = prompt_embeddings.shape
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens={max_new_tokens} must be ≥ 1.")
    if prompt_mask.shape != (batch, length):
        raise ValueError(
            f"prompt_mask has shape {prompt_mask.shape}, but the prompt embeddings "
            f"{prompt_embeddings.shape} need {(batch, length)}."
        )
    if width != model.config.width:
        raise ValueError(
            f"prompt embeddings are {width} wide, but the LLM is {model.config.width}."
        )
    if temperature < 0.0:
        raise ValueError(f"temperature={temperature} must be ≥ 0 (0 is greedy).")
    if temperature > 0.0 and rng is None:
        raise ValueError(f"temperature={temperature} samples: give an rng key.")
    if limits is None:
        limits = jnp.full((batch,), max_new_tokens, jnp.int32)
    greedy = temperature == 0.0
    return _generate(
        # Parameters do not change in the loop: unrolled, XLA slices the layers once.
        model.clone(unroll=model.config.num_layers, remat="none"),
        max_new_tokens,
        greedy,
        None if greedy else top_k,
        params,
        prompt_embeddings,
        prompt_mask,
        jnp.asarray(limits, jnp.int32),
        jnp.asarray(end_id, jnp.int32),
        None if greedy else jnp.asarray(temperature, jnp.float32),
        None if greedy or top_p is None else jnp.asarray(top_p, jnp.float32),
        None if greedy else sampling.row_keys(rng, batch),
    )


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _generate(
    model: qwen3.Qwen3,
    max_new_tokens: int,
    greedy: bool,
    top_k: int | None,
    params: types.Params,
    embeddings: Float[Array, "B L D"],
    mask: Bool[Array, "B L"],
    limits: Int[Array, " B"],
    end_id: Int[Array, ""],
    temperature: Float[Array, ""] | None,
    top_p: Float[Array, ""] | None,
    rngs: Key[Array, " B"] | None,
) -> Generation:
    batch, length, _ = embeddings.shape

    def run(embeddings, positions, mask, cache):
        return model.apply({"params": params}, embeddings, positions, mask, cache)

    def draw(hidden, step):
        """One token per row from [B 1 D] hidden states."""
        logits = model.apply({"params": params}, hidden, method="unembed")[:, 0]
        if greedy:
            return sampling.sample(logits)
        keys = jax.vmap(lambda rng: jax.random.fold_in(rng, step))(rngs)
        return sampling.sample(logits, keys, temperature, top_p, top_k)

    def record(loop: _Loop, tokens, log_probs) -> _Loop:
        """The drawn tokens put down as those of `loop.step`."""
        active = loop.active

        def put(old, new):
            new = jnp.where(active, new, jnp.zeros((), new.dtype))
            return jax.lax.dynamic_update_slice_in_dim(
                old, new[:, None].astype(old.dtype), loop.step, axis=1
            )

        output = Generation(
            tokens=put(loop.output.tokens, tokens),
            mask=put(loop.output.mask, active),
            log_probs=put(loop.output.log_probs, log_probs),
        )
        step = loop.step + 1
        active = active & (tokens != end_id) & (step < limits)
        return loop.replace(step=step, output=output, last=tokens, active=active)

    def advance(loop: _Loop) -> _Loop:
        embedded = model.apply({"params": params}, loop.last[:, None], method="embed")
        hidden, cache = run(
            embedded, loop.position[:, None], loop.active[:, None], loop.cache
        )
        loop = loop.replace(cache=cache, position=loop.position + 1)
        return record(loop, *draw(hidden, loop.step))

    def unfinished(loop: _Loop):
        return (loop.step < max_new_tokens) & jnp.any(loop.active)

    cache = kv_cache.init_cache(
        model.config, batch, length + max_new_tokens, model.policy.dtype
    )
    hidden, cache = run(embeddings, rotary.count_positions(mask), mask, cache)
    # The last real slot of each row says what comes next; padding may follow it.
    final = length - 1 - jnp.argmax(mask[:, ::-1], axis=1)
    hidden = jnp.take_along_axis(hidden, final[:, None, None], axis=1)
    counts = jnp.sum(mask, axis=1, dtype=jnp.int32)
    shape = (batch, max_new_tokens)
    loop = _Loop(
        step=jnp.int32(0),
        output=Generation(
            tokens=jnp.zeros(shape, jnp.int32),
            mask=jnp.zeros(shape, jnp.bool_),
            log_probs=jnp.zeros(shape, jnp.float32),
        ),
        cache=cache,
        last=jnp.zeros((batch,), jnp.int32),
        position=counts,
        active=(limits > 0) & (counts > 0),
    )
    loop = record(loop, *draw(hidden, jnp.int32(0)))
    return jax.lax.while_loop(unfinished, advance, loop).output
