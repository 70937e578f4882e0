"""The streaming step on the device: one state and one jitted program for B streams.

A tick takes the next chunk of some streams:

    audio ─ features ─ encoder (caches of `left` chunks) ─ adaptor ─ speech tokens
    LLM, one pass:  [prompt's start and speech so far, cached] speech | instruction,
                    hotwords | text so far: kept tokens, draft
    of the draft stays what the LLM would still write (greedy verification), then it
    writes on, token by token. `_find_kept` and `_find_stable` say which tokens are kept
    and which are the draft of the next chunk.

The speech stays in the cache for good, what comes after it is forgotten: the next chunk
goes before it. So the text equals greedy decoding of the whole prompt that begins with
the kept part of the text, and what the draft saves is passes of the LLM.

Source: NIM4-ASR §2.4.1; verification as in speculative decoding (arXiv 2211.17192).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from nim4_jax import struct
from nim4_jax.decode import drafts
from nim4_jax.decode.live.stream_config import StreamConfig
from nim4_jax.decode.programs import Arrival, Heard, Request, Written
from nim4_jax.models import kv_cache
from nim4_jax.models.asr import Asr, AsrConfig, Prompt
from nim4_jax.models.encoder import EncoderState
from nim4_jax.models.kv_cache import KVCache
from nim4_jax.ops import ctc, rotary
from nim4_jax.types import Frames, Labels, Params


@struct.dataclass
class StreamState:
    """All that is kept of B streams between two chunks.

    Attributes:
        encoder: what it keeps of the last `left` chunks.
        last_id: Int[Array, "B"], the CTC head's class in the last frame.
        cache: the LLM's, of the prompt's start and the speech so far.
        tokens: Int[Array, "B L"], text so far.
        length: Int[Array, "B"], its tokens.
        stable: Int[Array, "B"], tokens that no tick will change.
        chunks: Int[Array, "B"], chunks of the utterance so far.
    """

    encoder: EncoderState
    last_id: Int[Array, " B"]
    cache: KVCache
    tokens: Int[Array, "B L"]
    length: Int[Array, " B"]
    stable: Int[Array, " B"]
    chunks: Int[Array, " B"]


def init(
    model: Asr, params: Params, prompt: Prompt, config: StreamConfig, streams: int
) -> StreamState:
    """State of so many streams, with the prompt's start in every cache.

    Args:
        model: the whole recogniser.
        params: its parameters.
        prompt: of which the prefix is read once here.
        config: sizes.
        streams: B, ≥ 1.
    """
    if streams < 1:
        raise ValueError(f"streams={streams} must be ≥ 1.")
    return _init(model, prompt, config, streams, params)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _init(
    model: Asr, prompt: Prompt, config: StreamConfig, streams: int, params: Params
) -> StreamState:
    llm, policy = model.config.llm, model.config.policy
    ids = jnp.asarray([prompt.prefix], jnp.int32)
    mask = jnp.ones(ids.shape, bool)
    cache = kv_cache.init_cache(
        llm, 1, config.slots(ids.shape[1]), policy.dtype, packed=model.packed
    )

    def read(asr: Asr):
        return asr.llm(asr.llm.embed(ids), rotary.count_positions(mask), mask, cache)[1]

    cache = model.apply({"params": params}, method=read)
    encoder = model.config.encoder.build(policy)
    zeros = jnp.zeros((streams,), jnp.int32)
    return StreamState(
        encoder=encoder.init_state(streams, config.left * config.chunk),
        last_id=zeros,
        cache=kv_cache.repeat(cache, streams),
        tokens=jnp.zeros((streams, config.text_tokens), jnp.int32),
        length=zeros,
        stable=zeros,
        chunks=zeros,
    )


@dataclasses.dataclass(frozen=True)
class PassSettings:
    """Static arguments of a tick or a second pass.

    Attributes:
        config: sizes.
        prefix: tokens of the prompt's start.
        end_id: token that ends a text.
        width: one of `config.widths()`, at least the longest suffix and text of the
            streams.
    """

    config: StreamConfig
    prefix: int
    end_id: int
    width: int


def tick(
    model: Asr,
    settings: PassSettings,
    params: Params,
    state: StreamState,
    arrival: Arrival,
) -> tuple[StreamState, Heard, Written]:
    """Take the next chunk of some streams in; the others stay as they are.

    Args:
        model: the whole recogniser.
        settings: sizes and tokens.
        params: parameters.
        state: donated.
        arrival: chunks, and what they are to be read with.
    """
    return _tick(model, settings, params, state, arrival)


def lower_tick(
    model: Asr,
    settings: PassSettings,
    params: Params,
    state: StreamState,
    arrival: Arrival,
) -> jax.stages.Lowered:
    """A tick for arrays of given shapes and places, to be compiled ahead of time."""
    return _tick.lower(model, settings, params, state, arrival)


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=(3,))
def _tick(model, settings, params, state, arrival):
    config, prefix = settings.config, settings.prefix
    streams = state if arrival.slots is None else _take(state, arrival.slots)
    streams = _restart(streams, arrival.fresh, prefix)
    heard, speech, encoder, last_id = _listen(
        model, config, params, streams, arrival.audio
    )
    chunks = streams.chunks + 1
    kept = _find_kept(config, streams, chunks)
    text = Labels(streams.tokens, drafts.up_to(streams.length, config.text_tokens))
    written, cache = drafts.write(
        model,
        settings.end_id,
        (settings.width, config.draft_tokens, config.new_tokens),
        params,
        streams.cache,
        drafts.Page(speech, arrival.suffix, text, kept, arrival.limits),
    )
    stable = _find_stable(config, kept, written.length, chunks)
    written = dataclasses.replace(written, stable=stable)
    streams = StreamState(
        encoder=encoder,
        last_id=last_id,
        cache=cache,
        tokens=written.tokens,
        length=written.length,
        stable=stable,
        chunks=chunks,
    )
    if arrival.slots is None:
        return _keep_others(state, arrival.active, streams), heard, written
    return _put(state, arrival.slots, streams), heard, written


def _find_kept(
    config: StreamConfig, streams: StreamState, chunks: Int[Array, " B"]
) -> Int[Array, " B"]:
    """Tokens of the old text that this tick keeps; those behind them are its draft.

    All but the last `unstable_tokens`, and none in the first `free_chunks` chunks.
    """
    kept = jnp.maximum(streams.stable, streams.length - config.unstable_tokens)
    kept = jnp.where(chunks <= config.free_chunks, 0, kept)
    return jnp.minimum(kept, streams.length)


def _find_stable(
    config: StreamConfig,
    kept: Int[Array, " B"],
    length: Int[Array, " B"],
    chunks: Int[Array, " B"],
) -> Int[Array, " B"]:
    """Tokens of the new text that the next tick will keep: `_find_kept`, told ahead."""
    stable = jnp.maximum(kept, length - config.unstable_tokens)
    return jnp.where(chunks < config.free_chunks, 0, stable)


def finish(
    model: Asr,
    settings: PassSettings,
    params: Params,
    state: StreamState,
    request: Request,
) -> tuple[StreamState, Written]:
    """The second pass over utterances that are complete: all text is a draft.

    A text that is neither finished nor at its limit behind it needs another call, which
    goes on where this one stopped (`Request.kept`).

    Args:
        model: the whole recogniser.
        settings: as for `tick`.
        params: parameters.
        state: donated; only texts change.
        request: streams whose utterance is over, and what is asked for.
    """
    return _finish(model, settings, params, state, request)


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=(3,))
def _finish(model, settings, params, state, request):
    config = settings.config
    slots = request.slots
    streams = _take(state, slots)
    text = Labels(streams.tokens, drafts.up_to(streams.length, config.text_tokens))
    nothing = Frames(
        jnp.zeros(
            (slots.shape[0], 0, model.config.llm.width), model.config.policy.dtype
        ),
        jnp.zeros((slots.shape[0], 0), bool),
    )
    page = drafts.Page(nothing, request.suffix, text, request.kept, request.limits)
    sizes = settings.width, settings.width, config.new_tokens
    written, _ = drafts.write(
        model, settings.end_id, sizes, params, streams.cache, page
    )
    state = dataclasses.replace(
        state,
        tokens=state.tokens.at[slots].set(written.tokens, mode="drop"),
        length=state.length.at[slots].set(written.length, mode="drop"),
    )
    return state, written


def _find_axes(state: StreamState) -> StreamState:
    """The axis of the streams in each leaf: behind the layers, where these are one."""
    axes = jax.tree.map(lambda _: 0, state)
    blocks = jax.tree.map(lambda _: 1, state.encoder.blocks)
    heads = jax.tree.map(lambda leaf: leaf.ndim - 4, state.cache.keys)
    return dataclasses.replace(
        axes,
        encoder=dataclasses.replace(axes.encoder, blocks=blocks),
        cache=dataclasses.replace(axes.cache, keys=heads, values=heads),
    )


def _take(state: StreamState, slots: Int[Array, " B"]) -> StreamState:
    def pick(leaf, axis):
        return jnp.take(leaf, slots, axis, mode="clip")

    return jax.tree.map(pick, state, _find_axes(state))


def _put(state: StreamState, slots: Int[Array, " B"], rows: StreamState) -> StreamState:
    def store(leaf, row, axis):
        return leaf.at[(slice(None),) * axis + (slots,)].set(row, mode="drop")

    return jax.tree.map(store, state, rows, _find_axes(state))


def _keep_others(
    old: StreamState, active: Bool[Array, " B"], new: StreamState
) -> StreamState:
    """The new state of the active streams, the old one of all others.

    In the cache of the others only slots behind their last token were written, and none
    of these is seen before it is written again: the old keys and values need no copy.
    """

    def choose(new, old, axis):
        rows = active.reshape((1,) * axis + (-1,) + (1,) * (new.ndim - axis - 1))
        return jnp.where(rows, new, old)

    def strip(state):
        return dataclasses.replace(
            state, cache=dataclasses.replace(state.cache, keys=(), values=())
        )

    small = jax.tree.map(choose, strip(new), strip(old), strip(_find_axes(old)))
    keys, values = new.cache.keys, new.cache.values
    return dataclasses.replace(
        small, cache=dataclasses.replace(small.cache, keys=keys, values=values)
    )


def _restart(state: StreamState, fresh: Bool[Array, " B"], prefix: int) -> StreamState:
    """Nothing but the prompt's start in the rows that begin an utterance.

    What they held is overwritten, not only masked: a mask does not stop NaN.
    """

    def clear(leaf, axis):
        gone = fresh.reshape((1,) * axis + (-1,) + (1,) * (leaf.ndim - axis - 1))
        return jnp.where(gone, jnp.zeros((), leaf.dtype), leaf)

    def clear_slots(leaf):
        rows = fresh.reshape((-1, 1, 1, 1))
        slots = jnp.arange(leaf.shape[-2], dtype=jnp.int32).reshape((1, 1, -1, 1))
        gone = rows & (slots >= prefix)
        gone = gone.reshape((1,) * (leaf.ndim - 4) + gone.shape)
        return jnp.where(gone, jnp.zeros((), leaf.dtype), leaf)

    cache = state.cache
    cache = kv_cache.rewind(cache, jnp.where(fresh, prefix, cache.length))
    cache = dataclasses.replace(
        cache,
        keys=jax.tree.map(clear_slots, cache.keys),
        values=jax.tree.map(clear_slots, cache.values),
    )
    cleared = jax.tree.map(clear, state, _find_axes(state))
    return dataclasses.replace(cleared, cache=cache)


def _listen(
    model: Asr,
    config: StreamConfig,
    params: Params,
    streams: StreamState,
    audio: Frames,
) -> tuple[Heard, Frames, EncoderState, Int[Array, " B"]]:
    """Samples → phonemes, speech tokens, and what the encoder remembers."""

    def hear(asr: Asr):
        pieces = asr.extract_piece(audio)
        frames, encoder = asr.encode_chunk(pieces, streams.encoder, config.chunking)
        return frames, encoder, asr.score_phonemes(frames), asr.adapt(frames)

    made = cast(Any, model.apply({"params": params}, method=hear))
    frames, encoder, logits, speech = made
    ids, starts = ctc.greedy(logits, frames.mask, streams.last_id)
    heard = Heard(jax.nn.log_softmax(logits), frames.mask, ids, starts)
    return heard, speech, encoder, ids[:, -1]


def measure(
    config: AsrConfig, prompt: Prompt, stream: StreamConfig, *, packed: bool = False
) -> dict[str, int]:
    """Bytes of one stream's state by part; makes no array, so any size will do."""
    model = Asr(config, packed=packed)

    def make():
        llm, policy = config.llm, config.policy
        module = config.encoder.build(policy)
        slots = stream.slots(len(prompt.prefix))
        cache = kv_cache.init_cache(llm, 1, slots, policy.dtype, packed=model.packed)
        return module.init_state(1, stream.left * stream.chunk), cache

    encoder, cache = jax.eval_shape(make)

    def count(tree) -> int:
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))

    audio = 4 * stream.window
    return {
        "audio": audio,
        "encoder": count(encoder),
        "LLM cache": count((cache.keys, cache.values)),
        "text and counters": count((cache.mask, cache.length))
        + 4 * (stream.text_tokens + 4),
    }
