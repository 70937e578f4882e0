"""Dynamic sampling: what is rolled out again, what is left out, and what is counted."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nim4_jax.decode.programs import Budget, Generation
from nim4_jax.rl import rollout
from nim4_jax.rl.grpo import GrpoConfig
from nim4_jax.rl.objective import Grpo
from nim4_jax.rl.rollout import Rollout
from nim4_jax.rl.worker import RolloutWorker
from nim4_jax.train import state as train_state
from nim4_jax.train.optim import OptimizerConfig
from nim4_jax.train.recipes import Recipe
from nim4_jax.train.step import make_train_step

SAMPLES = 3


def make_attempt(flat_for):
    """Row b is flat for its first `flat_for[b]` attempts; −1: nothing to hear."""

    def attempt(number, chosen):
        silent = np.array(flat_for) < 0
        flat = (number < np.array(flat_for)) | ~chosen | silent
        rewards = np.where(flat[:, None], 1.0, np.arange(2.0)[None])
        written = np.broadcast_to(
            (chosen & ~silent)[:, None, None], (*chosen.shape, 2, 1)
        )
        tokens = np.where(written, number + 1, 0)
        return Rollout.of(Generation(tokens, written, -1.0 * tokens), rewards)

    return attempt


@pytest.mark.parametrize(
    ("most", "attempts", "flat"),
    [
        (1, [1, 1, 1, 1], [False, True, True, False]),
        (2, [1, 2, 2, 1], [False, False, True, False]),
        (9, [1, 2, 4, 1], [False, False, False, False]),
    ],
)
def test_flat_groups_are_rolled_out_again(most, attempts, flat):
    """Groups that need 1, 2 and 4 attempts, and silence that never gets another."""
    made = make_attempt([0, 1, 3, -1])
    got = rollout.roll_again(made, 4, most)
    assert got.attempts.tolist() == attempts
    assert got.flat().tolist() == flat
    assert got.heard().tolist() == [True, True, True, False]
    assert got.tokens[:, 0, 0].tolist() == [*attempts[:3], 0]
    assert got.log_probs[:, 1, 0].tolist() == [*(-a for a in attempts[:3]), 0]


class Same:
    """The rows of the first `flat` utterances all earn the same, the others do not.

    Asked again, they differ too.
    """

    class decoder:
        end_id = 1

    def __init__(self, flat, lasting=True):
        self.flat, self.lasting, self.calls = flat, lasting, 0

    def __call__(self, ids, mask, said, said_mask):
        self.calls += 1
        earned = np.tile(np.arange(SAMPLES, dtype=np.float32), (len(said), 1))
        if self.lasting or self.calls == 1:
            earned[: self.flat] = 0.7
        return earned


def learn(tiny, judge, beta=0.0, **settings):
    """(gradient step's change of the parameters, metrics) of one step, jitted anew."""
    loss = Grpo(
        tiny.PROMPT,
        judge,
        steps=10,
        objective=GrpoConfig(beta=beta),
        samples=SAMPLES,
        budget=Budget(first=3, per_second=4.0, most=5),
        chunks=tiny.FULL,
        **settings,
    )
    rules = (("(reference|cmvn)/.*", None), (".*", 1.0))
    recipe = Recipe(loss, rules, OptimizerConfig(1e-2, 1), 10, reference=beta > 0)
    tx = optax.sgd(1.0)
    params = jax.tree.map(jnp.asarray, tiny.make_params(recipe))
    state = train_state.init_state(
        train_state.add_reference(params, recipe), recipe, tx
    )
    model = tiny.Asr(tiny.CONFIG)
    batch = RolloutWorker(model, recipe).prepare(state, tiny.make_batch(0))
    after, metrics = jax.jit(make_train_step(model, recipe, tx))(state, batch)
    change = jax.tree.map(lambda a, b: np.asarray(a - b), after.params, state.params)
    return change, {name: float(value) for name, value in metrics.items()}


def test_equal_rewards_move_nothing(tiny):
    """No NaN; at the first step the policy is the reference, so KL pulls nowhere."""
    for drop in (False, True):
        change, metrics = learn(tiny, Same(4), beta=0.04, drop_flat=drop)
        assert metrics["flat_groups"] == 1.0 and metrics["broken_row"] == -1.0
        assert all(np.isfinite(value) for value in metrics.values())
        assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(change)) < 1e-6
        assert metrics["loss"] == pytest.approx(0.0, abs=1e-6)


def test_dropped_groups_leave_numerator_and_denominator(tiny):
    """Three of four groups are flat: the update is the same, times what is left."""
    kept, counted = learn(tiny, Same(3))
    dropped, metrics = learn(tiny, Same(3), drop_flat=True)
    assert metrics["dropped_groups"] == counted["flat_groups"] == 0.75
    assert metrics["reward"] == pytest.approx(counted["reward"])
    assert metrics["length"] == counted["length"]
    # The mean over all tokens becomes the mean over those of the last group.
    ratio = metrics["gradient_norm"] / counted["gradient_norm"]
    assert ratio > 1.5
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, ratio * b, rtol=1e-3, atol=1e-6),
        dropped,
        kept,
    )


def test_rolling_out_again_helps_and_is_counted(tiny):
    """Two groups that were flat once are drawn anew, by one more call of the judge."""
    judge = Same(2, lasting=False)
    change, metrics = learn(tiny, judge, oversample=3)
    assert metrics["resampled_groups"] == 0.5 and metrics["flat_groups"] == 0.0
    assert judge.calls == 2 and metrics["drift"] < 1e-4
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(change)) > 0.0
    stubborn = Same(2)
    _, metrics = learn(tiny, stubborn, oversample=3)
    assert stubborn.calls == 3 and metrics["flat_groups"] == 0.5


def test_a_rollout_may_be_cut(tiny):
    """Every leaf has a row for each utterance."""
    made = make_attempt([0, 1])(0, np.ones(2, bool))
    sizes = {f.name: getattr(made, f.name).shape[0] for f in dataclasses.fields(made)}
    assert set(sizes.values()) == {2}
    assert made.answers().ids.shape == (4, 1)
