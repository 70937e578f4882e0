"""The whole recogniser: a row means the same alone, in a batch and with NaN padding."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from nim4_jax.models.asr import Asr
from nim4_jax.ops.chunking import Chunking
from nim4_jax.types import Frames, Labels


@functools.cache
def make_hear(tiny):
    """Jitted (parameters, audio, answer) → (phoneme scores, answer's hidden states)."""
    model = Asr(tiny.CONFIG)

    def hear(asr, audio, answer):
        frames = asr.encode(asr.extract(audio), Chunking.full())
        hidden = asr.answer_states(asr.adapt(frames), tiny.PROMPT, answer)
        return Frames(asr.score_phonemes(frames), frames.mask), asr.unembed(hidden)

    return jax.jit(functools.partial(model.apply, method=hear))


@functools.cache
def make_params(tiny):
    """Random parameters of encoder, phoneme head, adaptor and LLM."""
    parts = [
        tiny.make_params(tiny.make_recipe(loss))
        for loss in (tiny.PLAIN_CTC, tiny.PLAIN_TRANSCRIBE)
    ]
    return {"params": {**parts[0], **parts[1]}}


def make_inputs(tiny, rows: slice = slice(None), extra: int = 0):
    """Audio with NaN behind the mask and `extra` more samples of it, and the answer."""
    batch = tiny.make_batch(0, rows=3)
    pad = ((0, 0), (0, extra))
    mask = np.pad(batch.audio.mask, pad)[rows]
    values = np.where(mask, np.pad(batch.audio.values, pad)[rows], np.nan)
    answer = Labels(batch.tokens.ids[rows], batch.tokens.mask[rows])
    return Frames(values.astype(np.float32), mask), answer


@pytest.mark.parametrize("row", [0, 2])
def test_alone_and_in_a_batch(tiny, row):
    """Phoneme scores and next-token logits, in wider padding and with neighbours."""
    hear, params = make_hear(tiny), make_params(tiny)
    scores, logits = hear(params, *make_inputs(tiny, extra=3_200))
    solo_scores, solo_logits = hear(params, *make_inputs(tiny, slice(row, row + 1)))
    count = int(solo_scores.lengths()[0])
    assert int(scores.lengths()[row]) == count
    np.testing.assert_allclose(
        scores.values[row, :count], solo_scores.values[0, :count], atol=1e-4
    )
    answer = make_inputs(tiny)[1]
    valid = answer.mask[row]
    np.testing.assert_allclose(
        logits[row][valid], solo_logits[0][valid], atol=1e-4, rtol=1e-4
    )
    assert np.isfinite(logits[row][valid]).all()


def test_the_answer_does_not_see_itself(tiny):
    """A changed token moves later predictions only."""
    hear, params = make_hear(tiny), make_params(tiny)
    audio, answer = make_inputs(tiny)
    answer = dataclasses.replace(answer, mask=np.ones_like(answer.mask))
    ids = answer.ids.copy()
    ids[:, 1] = (ids[:, 1] + 7) % tiny.CONFIG.llm.vocab_size
    before = np.asarray(hear(params, audio, answer)[1])
    after = np.asarray(hear(params, audio, dataclasses.replace(answer, ids=ids))[1])
    np.testing.assert_array_equal(before[:, :2], after[:, :2])
    assert (before[:, 2] != after[:, 2]).any()


def test_prompt_positions_skip_the_padding(tiny):
    """[prefix | speech | gap | suffix | answer]: positions count real tokens only."""
    model = Asr(tiny.CONFIG)
    width = tiny.CONFIG.llm.width
    mask = np.array([[True, True, True], [True, False, False]])
    speech = Frames(np.full((2, 3, width), np.nan, np.float32), mask)
    answer = Labels(np.array([[5, 6], [7, 0]], np.int32), mask[:, :2])

    def assemble(asr, speech, answer):
        return asr.assemble(speech, tiny.PROMPT, answer)

    apply = jax.jit(functools.partial(model.apply, method=assemble))
    got = apply(make_params(tiny), speech, answer)
    assert got.mask.astype(int).tolist() == [
        [1, 1, 1, 1, 1, 1, 1, 1],
        [1, 1, 1, 0, 0, 1, 1, 0],
    ]
    assert got.positions[0].tolist() == list(range(8))
    assert got.positions[1].tolist() == [0, 1, 2, 2, 2, 3, 4, 4]


def test_padding_behind_a_suffix_changes_nothing(tiny):
    """The last real token before the answer predicts its first one, as in decoding."""
    model, params = Asr(tiny.CONFIG), make_params(tiny)
    values = np.random.default_rng(0).normal(size=(1, 3, tiny.CONFIG.llm.width))
    speech = Frames(values.astype(np.float32), np.ones((1, 3), bool))
    answer = Labels(np.array([[5, 6]], np.int32), np.ones((1, 2), bool))

    def run(asr, speech, answer, suffix):
        return asr.answer_states(speech, tiny.PROMPT, answer, suffix)

    def predict(width):
        ids = np.zeros((1, width), np.int32)
        ids[0, :2] = 3, 4
        apply = jax.jit(functools.partial(model.apply, method=run))
        return apply(params, speech, answer, Labels(ids, ids > 0))

    np.testing.assert_allclose(predict(6), predict(2), atol=1e-5)
