"""GRPO as a loss: one hearing, exact first steps, and what is rewarded grows."""

import dataclasses
import functools

import jax
import numpy as np
import optax
import pytest

from nim4_jax.decode.programs import Budget
from nim4_jax.models.conformer import Conformer
from nim4_jax.ops.chunking import DynamicChunks
from nim4_jax.rl import alarm
from nim4_jax.rl.grpo import GrpoConfig
from nim4_jax.rl.objective import Grpo
from nim4_jax.rl.worker import RolloutWorker, outline
from nim4_jax.train import optim
from nim4_jax.train import state as train_state
from nim4_jax.train.optim import OptimizerConfig
from nim4_jax.train.recipes import Recipe
from nim4_jax.train.step import evaluate_loss, make_train_step

SAMPLES = 4
WANTED = 7


class Letters:
    """A decoder whose text is one character a token."""

    end_id = 1

    def decode(self, ids):
        return "".join(chr(ord("a") + i % 26) for i in ids)


@dataclasses.dataclass(frozen=True, eq=False)
class Count:
    """Rewards the share of one token."""

    decoder: Letters = Letters()

    def __call__(self, ids, mask, said, said_mask):
        hits = np.sum((np.asarray(ids) == WANTED) & np.asarray(mask), axis=1)
        return hits.reshape(len(said), -1).astype(np.float32)


def make_recipe(tiny, judge=None, beta=0.04, rate=3e-3, micro_batches=1, **settings):
    loss = Grpo(
        tiny.PROMPT,
        judge or Count(),
        steps=100,
        objective=GrpoConfig(beta=beta),
        samples=SAMPLES,
        budget=Budget(first=3, per_second=4.0, most=6),
        **{"chunks": tiny.FULL, **settings},
    )
    rules = (("(reference|cmvn|ctc_head)/.*", None), (".*", 1.0))
    optimizer = OptimizerConfig(peak_rate=rate, warmup_steps=1, weight_decay=0.0)
    return Recipe(
        loss,
        rules,
        optimizer,
        steps=100,
        reference=beta > 0,
        micro_batches=micro_batches,
    )


def start(tiny, recipe, config=None):
    model = tiny.Asr(config or tiny.CONFIG)
    params = train_state.init_params(model, recipe, tiny.make_batch(0), 0)
    params = train_state.add_reference(params, recipe)
    tx = optim.make_optimizer(recipe.optimizer, recipe.rules, recipe.steps)
    state = train_state.init_state(params, recipe, tx)
    learn = jax.jit(make_train_step(model, recipe, tx))
    worker = RolloutWorker(model, recipe)

    def step(state, batch):
        return learn(state, worker.prepare(state, batch))

    return state, step


def test_the_first_step_has_ratio_one_and_clips_nothing(tiny):
    """Policy and reference are one, also for an encoder that has dropout elsewhere."""
    encoder = dataclasses.replace(tiny.CONFIG.encoder, dropout=0.3)
    config = dataclasses.replace(tiny.CONFIG, encoder=encoder)
    state, step = start(tiny, make_recipe(tiny), config)
    _, metrics = step(state, tiny.make_batch(0))
    assert float(metrics["ratio"]) == 1.0 and float(metrics["clip_fraction"]) == 0.0
    assert float(metrics["kl"]) < 1e-12
    assert float(metrics["drift"]) < 1e-4
    assert float(metrics["temperature"]) == pytest.approx(1.0)


def test_each_utterance_is_heard_once_however_many_samples(tiny, monkeypatch):
    """By who writes, by who learns, and by the frozen policy with its own encoder."""
    rows = []
    heard = Conformer.__call__

    def count(self, features, *rest):
        rows.append(features.mask.shape[0])
        return heard(self, features, *rest)

    monkeypatch.setattr(Conformer, "__call__", count)
    model, batch = tiny.Asr(tiny.CONFIG), tiny.make_batch(0)
    for beta, passes in ((0.0, 1), (0.04, 2)):
        recipe = make_recipe(tiny, beta=beta)
        params = train_state.add_reference(tiny.make_params(recipe), recipe)
        rows.clear()
        made = outline(model, recipe, params, batch)
        assert rows == [len(batch.audio.mask)]
        rows.clear()
        numbers = np.arange(len(batch.audio.mask))
        learn = functools.partial(evaluate_loss, model, recipe)
        jax.eval_shape(learn, params, made, np.int32(0), numbers)
        assert rows == [len(batch.audio.mask)] * passes


def test_samples_come_before_the_step(tiny):
    """A batch without them is told what is missing."""
    recipe = make_recipe(tiny)
    params = train_state.add_reference(tiny.make_params(recipe), recipe)
    with pytest.raises(TypeError, match=r"got AsrBatch: .*RolloutWorker"):
        evaluate_loss(
            tiny.Asr(tiny.CONFIG),
            recipe,
            params,
            tiny.make_batch(0),
            np.int32(0),
            np.arange(4),
        )


def test_what_is_rewarded_grows_and_the_reference_stays(tiny):
    state, step = start(tiny, make_recipe(tiny))
    before = jax.device_get(state.params)
    earned = []
    for number in range(60):
        state, metrics = step(state, tiny.make_batch(number % 4))
        earned.append(float(metrics["reward"]))
    assert np.mean(earned[-10:]) > np.mean(earned[:10]) + 0.5
    assert float(metrics["kl"]) > 0.0
    after = jax.device_get(state.params)
    for name in ("reference", "cmvn"):
        jax.tree.map(np.testing.assert_array_equal, before[name], after[name])


def test_a_step_is_the_same_whenever_it_is_done(tiny):
    state, step = start(tiny, make_recipe(tiny))
    one, _ = step(state, tiny.make_batch(0))
    two, _ = step(state, tiny.make_batch(0))
    jax.tree.map(np.testing.assert_array_equal, one.params, two.params)


def test_a_group_of_one_is_refused(tiny):
    with pytest.raises(ValueError, match=r"loss\.samples=1"):
        Grpo(tiny.PROMPT, Count(), steps=1, samples=1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"oversample": 0}, r"loss\.oversample=0 must be ≥ 1"),
        ({"drift_limit": -1.0}, r"loss\.drift_limit=-1.0"),
        ({"drift_limit": float("nan")}, r"loss\.drift_limit=nan"),
    ],
)
def test_settings_that_make_no_sense_are_refused(tiny, settings, message):
    with pytest.raises(ValueError, match=message):
        Grpo(tiny.PROMPT, Count(), steps=1, **settings)


def test_micro_batches_are_the_whole_batch(tiny):
    """The same samples, the same gradient and metrics, with dynamic chunks drawn."""
    seen = []

    class Spy(Count):
        def __call__(self, ids, mask, *said):
            seen.append(np.asarray(ids))
            return super().__call__(ids, mask, *said)

    got = {}
    for parts in (1, 2):
        chunks = DynamicChunks(full_share=0.0)
        recipe = make_recipe(tiny, Spy(), micro_batches=parts, chunks=chunks)
        _, state = tiny.make_state(recipe)
        params = train_state.add_reference(state.params, recipe)
        tx = optax.sgd(0.1)
        state = train_state.init_state(params, recipe, tx)
        model = tiny.Asr(tiny.CONFIG)
        seen.clear()
        batch = RolloutWorker(model, recipe).prepare(state, tiny.make_batch(0))
        (drawn,) = seen
        state, metrics = jax.jit(make_train_step(model, recipe, tx))(state, batch)
        got[parts] = jax.device_get((state.params, metrics, drawn))
    assert got[1][1]["broken_row"] == -1.0 and got[1][1]["gradient_norm"] > 0
    np.testing.assert_array_equal(got[1][2], got[2][2])
    close = functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=1e-6)
    jax.tree.map(close, got[2][:2], got[1][:2])


def test_an_utterance_that_is_not_finite_is_named_by_its_row(tiny):
    """Row 2 of the whole batch, though it is the second of its part."""
    recipe = make_recipe(tiny, micro_batches=2)
    state, step = start(tiny, recipe)
    batch = jax.tree.map(np.copy, tiny.make_batch(0))
    batch.audio.values[2] = np.nan
    _, metrics = step(state, batch)
    assert float(metrics["broken_row"]) == 2.0
    check = alarm.choose_check(recipe.loss, tiny.CONFIG.policy, skip_limit=1)
    values = {name: float(value) for name, value in metrics.items()}
    with pytest.raises(FloatingPointError, match=r"utterance 72 \(row 2 of"):
        check(1, values, {"index": np.arange(70, 74)})
