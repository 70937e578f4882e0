"""Batch decoding of a whole prompt: one prefill, then one jitted loop of tokens."""

from __future__ import annotations

import dataclasses
import functools
import numbers

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from nim4_jax import sharding, struct, types
from nim4_jax.decode.programs import Generation
from nim4_jax.models import kv_cache, qwen3
from nim4_jax.ops import rotary, sampling


@struct.dataclass
class _Options:
    """What may change from call to call without a recompilation.

    Attributes:
        end_id: token that ends a row.
        temperature: positive; None for greedy.
        top_p: nucleus mass; None for no limit.
    """

    end_id: Int[Array, ""]
    temperature: Float[Array, ""] | None = None
    top_p: Float[Array, ""] | None = None


@struct.dataclass
class _Rows:
    """The same of each row of the result.

    Attributes:
        limits: tokens that it may write.
        rngs: its key; None for greedy.
    """

    limits: Int[Array, " B"]
    rngs: Key[Array, " B"] | None = None


@struct.dataclass
class _Loop:
    """State of the token loop: what is out, and what the next step needs."""

    step: Int[Array, ""]
    output: Generation
    cache: kv_cache.KVCache
    last: Int[Array, " B"]
    position: Int[Array, " B"]
    active: Bool[Array, " B"]


@dataclasses.dataclass(frozen=True)
class Stop:
    """Stopping criteria of generation, for each row.

    Attributes:
        max_new_tokens: size of the result, ≥ 1; the cache holds L + max_new_tokens.
        end_id: token that ends a row.
        limits: Int [B], tokens that each row may write, cut at max_new_tokens; None for
            all.
    """

    max_new_tokens: int
    end_id: int | Int[Array, ""]
    limits: Int[Array, " B"] | None = None


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Sampling settings: temperature, top-k, nucleus.

    Attributes:
        temperature: the number 0 is greedy; an array must be positive.
        rng: one key or a key per row of the result; needed when temperature > 0.
        top_p: nucleus mass, see `sampling.restrict`.
        top_k: number of candidates, see `sampling.restrict`.
        samples: K, how often each prompt is continued; it is read once.
    """

    temperature: float | Float[Array, ""] = 0.0
    rng: Key[Array, "*B"] | None = None
    top_p: float | None = None
    top_k: int | None = None
    samples: int = 1

    def check(self) -> None:
        """Refuse what makes no sense.

        Raises:
            ValueError: see `sampling.check_settings`; or less than one sample.
        """
        if self.samples < 1:
            raise ValueError(f"samples={self.samples} must be ≥ 1.")
        sampling.check_settings(self.temperature, self.rng, self.top_p, self.top_k)

    @property
    def greedy(self) -> bool:
        """Whether the best token is taken, known before anything is traced."""
        known = isinstance(self.temperature, numbers.Real)
        return known and bool(self.temperature == 0.0)


GREEDY = Sampling()


def generate(
    model: qwen3.Qwen3,
    params: types.Params,
    prompt: types.Frames,
    stop: Stop,
    how: Sampling = GREEDY,
) -> Generation:
    """Continue each prompt until its end token or its limit.

    A row is the same whatever rows stand beside it and wherever its padding lies; drawn
    rows too, if `how.rng` holds a key per row. Repeated calls with the same shapes
    compile once, also when temperature, top_p, end_id, limits or rng change.

    Args:
        model: the LLM, unbound.
        params: its parameters.
        prompt: Frames of Float [B, L, D], tokens and speech as the LLM reads them; gaps
            and padding may be anywhere. A row without any real position writes nothing.
        stop: when rows end.
        how: tokens are chosen.

    Returns:
        Generation of shape [B · K, max_new_tokens]; the K of a prompt stand together.

    Raises:
        ValueError: sizes that do not fit, or settings that `Sampling.check` refuses.
    """
    batch, limits = prompt.values.shape[0], stop.limits
    if limits is None:
        limits = jnp.full((batch,), stop.max_new_tokens, jnp.int32)
    _check_shapes(model, prompt, stop.max_new_tokens, limits)
    how.check()
    limits = jnp.repeat(limits, how.samples)
    options = _Options(jnp.asarray(stop.end_id, jnp.int32))
    rows = _Rows(jnp.asarray(limits, jnp.int32))
    if not how.greedy:
        assert how.rng is not None  # `check` has seen to it
        options = dataclasses.replace(
            options,
            temperature=jnp.asarray(how.temperature, jnp.float32),
            top_p=None if how.top_p is None else jnp.asarray(how.top_p, jnp.float32),
        )
        keys = sampling.row_keys(how.rng, batch * how.samples)
        rows = dataclasses.replace(rows, rngs=keys)
    top_k = None if how.greedy else how.top_k
    settings = (model, stop.max_new_tokens, top_k, how.samples)
    return _generate(settings, (params, options), (prompt.values, prompt.mask), rows)


def _check_shapes(model, prompt, max_new_tokens, limits) -> None:
    batch, length, width = prompt.values.shape
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens={max_new_tokens} must be ≥ 1.")
    if prompt.mask.shape != (batch, length):
        raise ValueError(
            f"the prompt's mask has shape {prompt.mask.shape}, but its embeddings "
            f"{prompt.values.shape} need {(batch, length)}."
        )
    if width != model.config.width:
        raise ValueError(
            f"prompt embeddings are {width} wide, but the LLM is {model.config.width}."
        )
    if limits.shape != (batch,):
        raise ValueError(f"limits has shape {limits.shape}; need {(batch,)}.")


@functools.partial(jax.jit, static_argnums=0)
def _generate(settings, shared, prompts, rows: _Rows) -> Generation:
    """`_write`, on each device of a mesh for its own rows.

    Rows know nothing of each other. Left to itself the compiler gathers what is written
    into the cache, for it cannot see that a scatter stays within its row; gathers every
    kernel over the fsdp axis for each token; and lets all devices wait for the longest
    row. This way parameters are gathered once, before the loop, and each device holds
    its share of the tensor axis whole: the LLM of 2b3 takes 3.2 GiB in bfloat16 (6.4 if
    a compiler gathers before it rounds), beside about 5 GiB that a rollout in stage 6
    needs on each of 16 v5e of 15.75 GiB, optimizer and reference included.
    """
    write = functools.partial(_write, settings)
    count = prompts[1].shape[0]
    return sharding.split_rows(write, count, shared=1)(shared, prompts, rows)


def _write(settings, shared, prompts, rows: _Rows) -> Generation:
    """One prefill and the loop of tokens.

    Args:
        settings: (model, max_new_tokens, top_k, samples), static.
        shared: (parameters, options).
        prompts: (embeddings, mask) [B, L].
        rows: of the result, B · samples.
    """
    model, max_new_tokens, top_k, samples = settings
    params, options = shared
    embeddings, mask = prompts
    variables = {"params": params}

    def draw(loop: _Loop, hidden: Float[Array, "B 1 D"]) -> _Loop:
        logits = model.apply(variables, hidden, method="unembed")[:, 0]
        drawn = _draw(logits, loop.step, options, rows.rngs, top_k)
        return _record(loop, options.end_id, rows.limits, *drawn)

    def advance(loop: _Loop) -> _Loop:
        embedded = model.apply(variables, loop.last[:, None], method="embed")
        hidden, cache = model.apply(
            variables,
            embedded,
            loop.position[:, None],
            loop.active[:, None],
            loop.cache,
        )
        return draw(
            dataclasses.replace(loop, cache=cache, position=loop.position + 1), hidden
        )

    def unfinished(loop: _Loop) -> Bool[Array, ""]:
        return (loop.step < max_new_tokens) & jnp.any(loop.active)

    batch, length, _ = embeddings.shape
    # The prompt attends to its own slots only; room for the answer comes after it.
    cache = kv_cache.init_cache(
        model.config, batch, length, model.policy.dtype, packed=model.packed
    )
    positions = rotary.count_positions(mask)
    hidden, cache = model.apply(variables, embeddings, positions, mask, cache)
    # The last real slot of each row says what comes next; padding may follow it.
    final = length - 1 - jnp.argmax(mask[:, ::-1], axis=1)
    hidden = jnp.take_along_axis(hidden, final[:, None, None], axis=1)
    if samples > 1:
        cache = kv_cache.repeat(cache, samples)
        hidden, mask = (jnp.repeat(x, samples, axis=0) for x in (hidden, mask))
    cache = kv_cache.grow(cache, length + max_new_tokens)
    loop = _start(cache, mask, max_new_tokens, rows.limits)
    return jax.lax.while_loop(unfinished, advance, draw(loop, hidden)).output


def _start(cache, mask, max_new_tokens: int, limits) -> _Loop:
    """The loop's state before the first token."""
    shape = (mask.shape[0], max_new_tokens)
    counts = jnp.sum(mask, axis=1, dtype=jnp.int32)
    return _Loop(
        step=jnp.zeros((), jnp.int32),
        output=Generation(
            tokens=jnp.zeros(shape, jnp.int32),
            mask=jnp.zeros(shape, jnp.bool_),
            log_probs=jnp.zeros(shape, jnp.float32),
        ),
        cache=cache,
        last=jnp.zeros(shape[:1], jnp.int32),
        position=counts,
        active=(limits > 0) & (counts > 0),
    )


def _draw(logits, step, options: _Options, rngs, top_k: int | None):
    """One token per row; its randomness depends on the row's key and the step alone."""
    if options.temperature is None:
        return sampling.sample(logits)
    keys = jax.vmap(lambda rng: jax.random.fold_in(rng, step))(rngs)
    return sampling.sample(logits, keys, options.temperature, options.top_p, top_k)


def _record(loop: _Loop, end_id, limits, tokens, log_probs) -> _Loop:
    """Put the drawn tokens down as those of `loop.step`, and see who goes on."""
    active = loop.active

    def put(column, new):
        new = jnp.where(active, new, jnp.zeros((), new.dtype))[:, None]
        return jax.lax.dynamic_update_slice_in_dim(column, new, loop.step, axis=1)

    output = Generation(
        tokens=put(loop.output.tokens, tokens),
        mask=put(loop.output.mask, active),
        log_probs=put(loop.output.log_probs, log_probs),
    )
    step = loop.step + 1
    active = active & (tokens != end_id) & (step < limits)
    return dataclasses.replace(
        loop, step=step, output=output, last=tokens, active=active
    )
