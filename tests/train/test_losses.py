"""Losses are sums that add up, over what they say they are sums of."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nim4_jax.models.asr import Asr
from nim4_jax.ops import ctc
from nim4_jax.ops.chunking import UNLIMITED, Chunking, DynamicChunks
from nim4_jax.text.confusions import Confusions
from nim4_jax.train.losses import CrCtc
from nim4_jax.train.text_loss import ReadPhonemes
from nim4_jax.types import Labels


@functools.cache
def make_evaluate(tiny, loss):
    """Jitted (parameters, batch, step) → Loss."""

    def run(params, batch, step):
        return nn.apply(lambda m, b: loss(m, b, step), Asr(tiny.CONFIG))(
            {"params": params}, batch, rngs={"augment": jax.random.key(0)}
        )

    return jax.jit(run)


def make_confusions(tiny):
    """Any phoneme may be taken for any other one."""
    count = tiny.CONFIG.num_phonemes
    table = np.ones((count, count)) - np.eye(count)
    table[0] = table[:, 0] = 0.0
    return (table / (count - 2)).astype(np.float32)


def evaluate(tiny, loss, batch, step=0):
    """The loss of a batch under fixed random parameters."""
    params = make_params(tiny, type(loss))
    return make_evaluate(tiny, loss)(params, batch, np.int32(step))


@functools.cache
def make_params(tiny, kind):
    """Parameters of what a kind of loss reaches."""
    losses = {
        CrCtc: tiny.PLAIN_CTC,
        ReadPhonemes: ReadPhonemes(tiny.PROMPT, make_confusions(tiny)),
    }
    loss = losses.get(kind, tiny.PLAIN_TRANSCRIBE)
    return tiny.make_params(tiny.make_recipe(loss))


def take(batch, rows):
    """Some rows of a batch."""
    return jax.tree.map(lambda leaf: leaf[rows], batch)


@pytest.mark.parametrize("name", ["PLAIN_CTC", "PLAIN_TRANSCRIBE"])
def test_micro_batches_add_up(tiny, name):
    """Totals, weights and metrics of two halves sum to those of the whole batch."""
    loss, batch = getattr(tiny, name), tiny.make_batch(3)
    whole = evaluate(tiny, loss, batch)
    halves = [evaluate(tiny, loss, take(batch, rows)) for rows in ([0, 1], [2, 3])]
    parts = jax.tree.map(lambda a, b: a + b, *halves)
    assert float(whole.weight) > 0
    for got, expected in (
        (parts.total, whole.total),
        (parts.weight, whole.weight),
        (parts.metrics, whole.metrics),
    ):
        expected = dict(expected) if isinstance(expected, dict) else expected
        if isinstance(expected, dict):
            # A count per batch: its denominator is 1 each time.
            for side in (got, expected):
                side.pop("ctc_infeasible", None)
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=2e-5), got, expected
        )


@pytest.mark.parametrize("name", ["PLAIN_CTC", "PLAIN_TRANSCRIBE"])
def test_rows_without_audio_weigh_nothing(tiny, name):
    """A masked row, as of an unreadable file, changes neither total nor weight."""
    loss, batch = getattr(tiny, name), tiny.make_batch(3)
    blank = jax.tree.map(np.copy, batch)
    blank.audio.mask[2:] = False
    blank.audio.values[2:] = np.nan
    got = evaluate(tiny, loss, blank)
    expected = evaluate(tiny, loss, take(batch, [0, 1]))
    np.testing.assert_allclose(got.total, expected.total, rtol=2e-5)
    assert float(got.weight) == float(expected.weight)


def test_impossible_labels_are_counted_and_left_out(tiny):
    """More repeated labels than frames: no weight, no loss, one on the metric."""
    batch = tiny.make_batch(3)
    long = np.ones((4, 60), np.int32)
    mask = np.zeros((4, 60), bool)
    long[:, : tiny.PHONEMES], mask[:, : tiny.PHONEMES] = (
        batch.phonemes.ids,
        batch.phonemes.mask,
    )
    mask[1] = True
    wide = dataclasses.replace(batch, phonemes=Labels(long * mask, mask))
    got = evaluate(tiny, tiny.PLAIN_CTC, wide)
    expected = evaluate(tiny, tiny.PLAIN_CTC, take(batch, [0, 2, 3]))
    np.testing.assert_allclose(got.total, expected.total, rtol=2e-5)
    assert float(got.weight) == float(expected.weight)
    assert float(got.metrics["ctc_infeasible"][0]) == 1.0


def test_two_equal_views_are_one(tiny):
    """Without augmentation CR-CTC is CTC, and its views agree."""
    batch = tiny.make_batch(3)
    single = evaluate(tiny, tiny.PLAIN_CTC, batch)
    double = evaluate(tiny, dataclasses.replace(tiny.PLAIN_CTC, views=2), batch, 10**6)
    np.testing.assert_allclose(double.total, single.total, rtol=2e-5)
    assert float(double.weight) == float(single.weight)
    np.testing.assert_allclose(double.metrics["consistency"][0], 0.0, atol=1e-4)


def test_dual_views_are_a_whole_one_and_one_in_chunks(tiny):
    """Their CTC is the mean of both modes alone; only where they differ they agree."""
    batch, late = tiny.make_batch(4), 10**6
    chunked = DynamicChunks(full_share=0.0, smallest=2, largest=2, unlimited_left=1.0)
    one = dataclasses.replace(tiny.PLAIN_CTC, chunks=chunked)
    dual = evaluate(
        tiny, dataclasses.replace(one, views=2, dual=True), batch, late
    ).metrics
    modes = [evaluate(tiny, loss, batch).metrics for loss in (tiny.PLAIN_CTC, one)]
    mean = sum(float(mode["ctc"][0]) for mode in modes) / 2
    assert float(modes[0]["ctc"][0]) != pytest.approx(float(modes[1]["ctc"][0]))
    np.testing.assert_allclose(dual["ctc"][0], mean, rtol=1e-5)
    np.testing.assert_allclose(dual["ctc"][1], modes[0]["ctc"][1])
    assert float(dual["consistency"][0]) > 1e-3
    whole = dataclasses.replace(tiny.PLAIN_CTC, views=2, dual=True)
    same = evaluate(tiny, whole, batch, late).metrics["consistency"][0]
    np.testing.assert_allclose(same, 0.0, atol=1e-4)


def test_a_row_without_phonemes_is_learnt_as_silence(tiny):
    """Every frame of it is blank; a row without audio is padding and counts nothing."""
    batch = tiny.make_batch(6, rows=3)
    mute, gone = batch.phonemes.mask.copy(), batch.audio.mask.copy()
    mute[0] = gone[0] = False
    silent = dataclasses.replace(batch, phonemes=Labels(batch.phonemes.ids, mute))
    loss, rest = tiny.PLAIN_CTC, take(batch, slice(1, None))
    got, others = evaluate(tiny, loss, silent), evaluate(tiny, loss, rest)
    model, params = Asr(tiny.CONFIG), {"params": make_params(tiny, CrCtc)}

    def score(asr, audio):
        frames = asr.encode(asr.extract(audio), Chunking.full())
        return jax.nn.log_softmax(asr.score_phonemes(frames)), frames.mask

    run = jax.jit(functools.partial(model.apply, method=score))
    log_probs, mask = run(params, batch.audio)
    blank = -float(jnp.sum(jnp.where(mask[0], log_probs[0, :, 0], 0.0)))
    np.testing.assert_allclose(got.total, float(others.total) + blank, rtol=1e-5)
    assert float(got.weight) == float(others.weight) + int(mask[0].sum())
    padded = dataclasses.replace(
        silent, audio=dataclasses.replace(batch.audio, mask=gone)
    )
    np.testing.assert_allclose(evaluate(tiny, loss, padded).total, others.total)


def test_consistency_rises_over_its_warmup(tiny):
    """total = CTC + α · min(step / warm-up, 1) · agreement."""
    batch = tiny.make_batch(3)
    loss = CrCtc(alpha=0.2, alpha_warmup=10)
    for step, share in ((0, 0.0), (5, 0.5), (30, 1.0)):
        got = evaluate(tiny, loss, batch, step)
        agreement = got.metrics["consistency"][0]
        assert float(agreement) > 0
        expected = got.metrics["ctc"][0] + 0.2 * share * agreement
        np.testing.assert_allclose(got.total, expected, rtol=1e-5)


def test_views_are_one_or_two():
    """The error says what each means."""
    with pytest.raises(
        ValueError, match=r"loss\.views=3 must be 1 .CTC. or 2 .CR-CTC."
    ):
        CrCtc(views=3)
    with pytest.raises(ValueError, match=r"loss\.dual needs loss\.views=2, got 1"):
        CrCtc(views=1, dual=True)


def test_chunks_are_drawn_between_their_bounds():
    chunks = DynamicChunks(full_share=0.0, smallest=3, largest=5)
    keys = jax.random.split(jax.random.key(0), 200)
    sizes = jax.vmap(lambda key: chunks.draw(key, 40).size)(keys)
    assert set(sizes.tolist()) == {3, 4, 5}
    with pytest.raises(ValueError, match=r"6 to 5 encoder frames.*1 ≤ smallest"):
        DynamicChunks(smallest=6, largest=5)


def test_dynamic_chunks_follow_wenet():
    """10,000 draws: half full, else 1 … 25 evenly, left chunks all or 0 … all."""
    chunks, length = DynamicChunks(), 100
    keys = jax.random.split(jax.random.key(0), 10_000)
    drawn = jax.jit(jax.vmap(lambda key: chunks.draw(key, length)))(keys)
    size, left = np.asarray(drawn.size), np.asarray(drawn.left)
    full = size == UNLIMITED
    assert abs(full.mean() - 0.5) < 0.02 and (left[full] == UNLIMITED).all()
    size, left = size[~full], left[~full]
    counts = np.bincount(size, minlength=26)
    assert counts[0] == 0 and len(counts) == 26
    assert abs(counts[1:] / len(size) - 1 / 25).max() < 0.012
    unlimited = left == UNLIMITED
    assert abs(unlimited.mean() - 0.5) < 0.02
    most = (length - 1) // size[~unlimited]
    left = left[~unlimited]
    assert (left >= 0).all() and (left <= most).all()
    assert abs(np.mean(left / np.maximum(most, 1)) - 0.5) < 0.03
    assert (left == 0).any() and (left == most).any()


def test_imitated_phonemes_read_as_they_are(tiny):
    """Without corruption the greedy path of the imitation is the phonemes again."""
    phonemes = tiny.make_batch(3, rows=16).phonemes
    mask = phonemes.mask & (np.arange(tiny.PHONEMES) < 2)
    # Half of the width stays free, so that slow speech fits on the grid.
    phonemes = Labels(jnp.asarray(phonemes.ids * mask), jnp.asarray(mask))
    loss = ReadPhonemes(tiny.PROMPT, make_confusions(tiny), corrupt=0.0, hesitate=0.0)
    classes = jax.jit(loss.imitate)(jax.random.key(0), phonemes)
    assert (classes.values >= 0).all()
    np.testing.assert_allclose(np.sum(classes.values, axis=-1), 1.0, rtol=1e-5)
    ids, starts = jax.jit(ctc.greedy)(classes.values, classes.mask)
    for row in range(16):
        heard = np.asarray(ids)[row][np.asarray(starts)[row]]
        assert heard.tolist() == phonemes.ids[row][mask[row]].tolist()


def make_errors(tiny, **changes):
    """A head that hears class 1 for everything and loses nothing."""
    count = tiny.CONFIG.num_phonemes
    first = np.eye(count, dtype=np.float32)[1]
    ones = np.ones(count, np.float32)
    return Confusions(
        **{
            "substitutes": np.broadcast_to(first, (count, count)),
            "proneness": ones,
            "dropped": 0.0 * ones,
            "inserted": first,
            "insertions": 0.0,
            **changes,
        }
    )


def hear(loss, phonemes):
    """What a greedy reader makes of the imitation, row by row."""
    classes = jax.jit(loss.imitate)(jax.random.key(1), phonemes)
    np.testing.assert_allclose(np.sum(classes.values, axis=-1), 1.0, rtol=1e-5)
    ids, starts = jax.jit(ctc.greedy)(classes.values, classes.mask)
    return [np.asarray(i)[np.asarray(s)].tolist() for i, s in zip(ids, starts)]


def test_rows_are_misheard_at_rates_of_their_own(tiny):
    """Between the two shares, as the measured head errs; insertions with them."""
    rows, count = 64, 12
    said = Labels(jnp.full((rows, count), 3, jnp.int32), jnp.ones((rows, count), bool))
    base = {"prompt": tiny.PROMPT, "confusions": make_confusions(tiny), "hesitate": 0.0}
    loss = ReadPhonemes(
        **base, corrupt=(0.0, 0.8), errors=make_errors(tiny), pace=(2.0, 2.5)
    )
    heard = hear(loss, said)
    wrong = np.array([row.count(1) / count for row in heard])
    assert {unit for row in heard for unit in row} == {1, 3}
    assert 0.25 < wrong.mean() < 0.55 and wrong.std() > 0.15
    lost = dataclasses.replace(
        loss, errors=make_errors(tiny, dropped=loss.errors.proneness)
    )
    assert {unit for row in hear(lost, said) for unit in row} == {3}
    inserting = dataclasses.replace(
        loss,
        corrupt=0.5,
        errors=make_errors(tiny, proneness=0.0 * loss.errors.proneness, insertions=1.0),
    )
    heard = hear(inserting, said)
    extra = sum(row.count(1) for row in heard) / (rows * count)
    assert 0.3 < extra < 0.6


@pytest.mark.parametrize("change", [{"corrupt": (0.4, 0.1)}, {"pace": (0.0, 1.0)}])
def test_shares_that_cannot_be_are_refused(tiny, change):
    with pytest.raises(ValueError, match=r"loss\.corrupt=.* and loss\.pace="):
        ReadPhonemes(tiny.PROMPT, make_confusions(tiny), **change)


def test_reading_is_learnt_from_text_alone(tiny):
    """The warm-up's loss weighs the answer's tokens and never looks at the audio."""
    batch = tiny.make_batch(3)
    loss = ReadPhonemes(tiny.PROMPT, make_confusions(tiny))
    got = evaluate(tiny, loss, batch)
    assert float(got.weight) == batch.tokens.mask.sum()
    silent = dataclasses.replace(
        batch,
        audio=dataclasses.replace(batch.audio, values=batch.audio.values * np.nan),
    )
    assert float(evaluate(tiny, loss, silent).total) == float(got.total)
    assert np.isfinite(float(got.total))


def test_the_imitation_fades(tiny):
    """Its weight falls linearly to zero; what is left is plain cross-entropy."""
    loss = dataclasses.replace(tiny.PLAIN_TRANSCRIBE, imitate=2.0, imitate_steps=10)
    params = tiny.make_params(tiny.make_recipe(loss))
    batch = tiny.make_batch(3)
    run = make_evaluate(tiny, loss)
    for step, share in ((0, 1.0), (5, 0.5), (10, 0.0), (20, 0.0)):
        got = run(params, batch, np.int32(step))
        entropy, _ = got.metrics["cross_entropy"]
        distance, _ = got.metrics["distance"]
        assert float(distance) > 0.0
        expected = float(entropy) + 2.0 * share * float(distance)
        np.testing.assert_allclose(float(got.total), expected, rtol=1e-5)
