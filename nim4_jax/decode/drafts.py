"""Greedy decoding that starts from a draft, as in speculative decoding.

    LLM, one pass:  [cached] speech | instruction, hotwords | text: kept tokens, draft

Each prediction of that pass stands where the token before it was read, so the pass
tells for each token of the draft whether the LLM would have written it there. What
agrees stays, the first that does not is replaced, and greedy decoding goes on from
there. The text equals plain greedy decoding behind the kept text; each token of the
draft that stays saves a pass.

Source: verification as in speculative decoding (arXiv 2211.17192), greedily.
"""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from nim4_jax import struct
from nim4_jax.decode.programs import Written
from nim4_jax.models import kv_cache
from nim4_jax.models.asr import Asr
from nim4_jax.models.kv_cache import KVCache
from nim4_jax.models.qwen3 import Qwen3
from nim4_jax.ops import rotary, sampling
from nim4_jax.types import Frames, Labels, Params

_BLOCK = 16  # predictions whose logits exist at once


@struct.dataclass
class Page:
    """Input of one pass behind the cache: speech, prompt suffix, old text, and limits.

    Attributes:
        speech: Frames [B, S, D], tokens that stay in the cache.
        suffix: Labels [B, W], instruction and hotwords.
        text: Labels [B, L], the old text.
        kept: Int[Array, "B"], tokens of it that stay whatever the LLM thinks; those
            behind them are the draft.
        limits: Int[Array, "B"], tokens of the new text; 0 leaves the old one.
    """

    speech: Frames
    suffix: Labels
    text: Labels
    kept: Int[Array, " B"]
    limits: Int[Array, " B"]


@struct.dataclass
class _Loop:
    """State of the token loop."""

    written: Written
    cache: KVCache
    last: Int[Array, " B"]
    position: Int[Array, " B"]
    active: Bool[Array, " B"]


def write(
    model: Asr,
    end_id: int,
    sizes: tuple[int, int, int],
    params: Params,
    cache: KVCache,
    page: Page,
) -> tuple[Written, KVCache]:
    """One pass over the page, then token by token.

    Args:
        model: the whole recogniser.
        end_id: token that ends a text.
        sizes: tokens of suffix and old text together that the pass has room for, how
            many of the draft it verifies at most, and how many are written behind
            those at most.
        params: parameters.
        cache: what stands before the page.
        page: see there.

    Returns:
        The text, and the cache with the page's speech.
    """
    llm = Qwen3(model.config.llm, model.config.policy, packed=model.packed)
    variables = {"params": params["llm"]}
    begun, spoken = cache.length, page.speech.mask.shape[1]
    count = jnp.sum(cache.mask, axis=1, dtype=jnp.int32)
    hidden, cache = _read(llm, variables, sizes[:2], cache, page)
    predicted, scores = _predict(llm, variables, hidden)
    written = _verify(page, predicted, scores)
    stays, asked = written.length, page.suffix.lengths()
    limits = jnp.minimum(page.limits, stays + sizes[2])
    loop = _Loop(
        written=written,
        cache=kv_cache.rewind(cache, begun + spoken + asked + stays),
        last=jnp.zeros_like(stays),
        position=count + page.speech.lengths() + asked + stays,
        active=(page.limits > 0) & (stays < limits),
    )

    def pick(array):
        return jnp.take_along_axis(array, written.accepted[:, None], axis=1)[:, 0]

    loop = _record(loop, pick(predicted), pick(scores), end_id, limits)
    loop = _write_on(llm, variables, loop, end_id, limits)
    return loop.written, kv_cache.rewind(loop.cache, begun + spoken)


def _read(
    llm: Qwen3, variables, sizes: tuple[int, int], cache: KVCache, page: Page
) -> tuple[Float[Array, "B L D"], KVCache]:
    """The pass: states that predict the tokens behind the kept ones, and the cache."""
    width, window = sizes
    speech, suffix, text = page.speech, page.suffix, page.text
    spoken, asked = speech.mask.shape[1], suffix.lengths()
    drafted = jnp.minimum(text.lengths(), page.kept + window)
    behind = llm.apply(variables, _join(suffix, text, width), method="embed")
    embeddings = [speech.masked().values, cast(Any, behind)]
    mask = [speech.mask, up_to(asked + drafted, width)]
    mask = jnp.concatenate(mask, axis=1)
    count = jnp.sum(cache.mask, axis=1, dtype=jnp.int32)
    made = llm.apply(
        variables,
        jnp.concatenate([llm.policy.cast(e) for e in embeddings], axis=1),
        rotary.count_positions(mask, count),
        mask,
        cache,
    )
    hidden, cache = cast(Any, made)
    # The prediction of a token stands where the token before it was read.
    place = page.kept[:, None] + jnp.arange(window + 1, dtype=jnp.int32)[None]
    column = jnp.minimum(spoken + asked[:, None] + place - 1, hidden.shape[1] - 1)
    return jnp.take_along_axis(hidden, column[:, :, None], axis=1), cache


def _verify(
    page: Page, predicted: Int[Array, "B L"], scores: Float[Array, "B L"]
) -> Written:
    """The text as far as the draft stays."""
    text, kept, window = page.text, page.kept, predicted.shape[1] - 1
    drafted = jnp.minimum(text.lengths(), kept + window)
    number = jnp.arange(window + 1, dtype=jnp.int32)[None]
    place, last = kept[:, None] + number, text.ids.shape[1] - 1
    old = jnp.take_along_axis(text.ids, jnp.minimum(place, last), axis=1)
    agree = (predicted == old) & (place < drafted[:, None])
    accepted = jnp.sum(jnp.cumprod(agree, axis=1), axis=1, dtype=jnp.int32)
    accepted = jnp.clip(accepted, 0, jnp.maximum(page.limits - kept, 0))
    stays = jnp.where(page.limits > 0, kept + accepted, text.lengths())
    verified = number < accepted[:, None]
    return Written(
        tokens=jnp.where(up_to(stays, last + 1), text.ids, 0),
        length=stays,
        stable=kept,
        log_prob=jnp.sum(jnp.where(verified, scores, 0.0), axis=1),
        finished=jnp.zeros(kept.shape, bool),
        accepted=accepted,
        passes=jnp.ones((), jnp.int32),
    )


def _join(suffix: Labels, text: Labels, width: int) -> Int[Array, "B L"]:
    """The old text right behind each row's suffix, in so many columns."""
    column = jnp.arange(width, dtype=jnp.int32)[None]
    behind = column - suffix.lengths()[:, None]

    def pick(ids, place):
        place = jnp.clip(place, 0, ids.shape[1] - 1)
        place = jnp.broadcast_to(place, behind.shape)
        return jnp.take_along_axis(ids, place, axis=1)

    return jnp.where(behind < 0, pick(suffix.ids, column), pick(text.ids, behind))


def _write_on(llm: Qwen3, variables, loop: _Loop, end_id: int, limits) -> _Loop:
    """Token by token, until every row has ended."""

    def advance(loop: _Loop) -> _Loop:
        embedded = llm.apply(variables, loop.last[:, None], method="embed")
        hidden, cache = llm.apply(
            variables,
            embedded,
            loop.position[:, None],
            loop.active[:, None],
            loop.cache,
        )
        logits: Any = llm.apply(variables, hidden, method="unembed")
        written = dataclasses.replace(loop.written, passes=loop.written.passes + 1)
        loop = dataclasses.replace(
            loop, written=written, cache=cache, position=loop.position + 1
        )
        return _record(loop, *sampling.sample(logits[:, 0]), end_id, limits)

    return jax.lax.while_loop(lambda loop: jnp.any(loop.active), advance, loop)


def _record(loop: _Loop, tokens, scores, end_id: int, limits) -> _Loop:
    """Put down the next token of each active row, and see who goes on."""
    written, ended = loop.written, tokens == end_id
    adds = loop.active & ~ended
    slots = jnp.arange(written.tokens.shape[1], dtype=jnp.int32)[None]
    here = adds[:, None] & (slots == written.length[:, None])
    length = written.length + adds.astype(jnp.int32)
    written = dataclasses.replace(
        written,
        tokens=jnp.where(here, tokens[:, None], written.tokens),
        length=length,
        log_prob=written.log_prob + jnp.where(loop.active, scores, 0.0),
        finished=written.finished | (loop.active & ended),
    )
    return dataclasses.replace(
        loop, written=written, last=tokens, active=adds & (length < limits)
    )


def _predict(
    llm: Qwen3, variables, hidden: Float[Array, "B L D"]
) -> tuple[Int[Array, "B L"], Float[Array, "B L"]]:
    """Best next token and its log-probability; few positions' logits at a time."""

    def best(piece):
        logits: Any = llm.apply(variables, piece, method="unembed")
        batch, length, vocabulary = logits.shape
        tokens, scores = sampling.sample(logits.reshape(-1, vocabulary))
        return tokens.reshape(batch, length), scores.reshape(batch, length)

    batch, length, size = hidden.shape
    if length <= _BLOCK:
        return best(hidden)
    blocks = -(-length // _BLOCK)
    hidden = jnp.pad(hidden, ((0, 0), (0, blocks * _BLOCK - length), (0, 0)))
    pieces = jnp.swapaxes(hidden.reshape(batch, blocks, _BLOCK, size), 0, 1)
    joined = jax.tree.map(
        lambda found: jnp.swapaxes(found, 0, 1).reshape(batch, -1)[:, :length],
        jax.lax.map(best, pieces),
    )
    return joined


def up_to(lengths: Int[Array, " B"], size: int) -> Bool[Array, "B L"]:
    """True in the first `lengths` of so many places."""
    return jnp.arange(size, dtype=jnp.int32)[None] < lengths[:, None]
