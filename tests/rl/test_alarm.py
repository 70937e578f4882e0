"""What stops a run of reinforcement learning, and what it says."""

import math

import jax
import numpy as np
import pytest

from nim4_jax.layers import Policy
from nim4_jax.rl import alarm, grpo
from nim4_jax.rl.alarm import LARGEST_SHARE, Alarm
from nim4_jax.rl.objective import DRIFT_LIMITS, Grpo
from nim4_jax.train import loop

GOOD = {
    "loss": 0.5,
    "gradient_norm": 1.0,
    "drift": 0.02,
    "drift_largest": 3.0,
    "drifted_tokens": 0.002,
    "broken_row": -1.0,
    "flat_groups": 0.5,
}
ARRAYS = {"index": np.array([40, 41, 42])}


def test_good_steps_pass():
    """Few tokens beyond the limit are none."""
    Alarm(0.1).check(1, GOOD, ARRAYS)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (
            {"drifted_tokens": 0.02},
            ValueError,
            r"step 7 .* of 2\.00% of the tokens is more than 0\.1 nats .* most 0\.5%",
        ),
        ({"drifted_tokens": math.nan}, ValueError, "of nan% of"),
        ({"loss": math.nan}, FloatingPointError, r"^loss of step 7 .*\[40, 41, 42\]"),
        ({"gradient_norm": math.inf}, FloatingPointError, "gradient_norm of step 7"),
        (
            {"broken_row": 1.0, "loss": math.nan, "drifted_tokens": math.nan},
            FloatingPointError,
            r"^utterance 41 \(row 1 of the batch\): .*loss of step 7 not finite",
        ),
        (
            {"broken_row": 5.0, "loss": math.nan},
            FloatingPointError,
            "^row 5 of the batch: ",
        ),
    ],
)
def test_what_is_wrong_stops_the_run(wrong, error, message):
    """The utterance first: what else is lost follows from it."""
    values = {**GOOD, **wrong, "skipped_steps": 4.0, "skipped_in_row": 3.0}
    with pytest.raises(error, match=message):
        Alarm(0.1, skip_limit=3).check(7, values, ARRAYS)


def test_lost_steps_are_told_before_they_are_too_many(monkeypatch):
    """Nothing else in them can be trusted, so nothing else stops the run."""
    told = []
    monkeypatch.setattr(
        alarm.logging, "warning", lambda text, *args: told.append(text % args)
    )
    lost = {"loss": math.nan, "drifted_tokens": math.nan, "broken_row": 1.0}
    values = {**GOOD, **lost, "skipped_steps": 4.0, "skipped_in_row": 2.0}
    Alarm(0.1, skip_limit=3).check(7, values, ARRAYS)
    assert len(told) == 1 and told[0].startswith("utterance 41 (row 1 of the batch)")
    assert "skipped so far: 4, in a row: 2 of at most 2" in told[0]


def test_steps_that_teach_nothing_are_counted(monkeypatch):
    """And told ever more rarely: at the 1st, 2nd, 4th and 8th of ten."""
    told = []
    monkeypatch.setattr(
        alarm.logging, "warning", lambda text, *args: told.append(text % args)
    )
    made = Alarm(0.1)
    for step in range(1, 11):
        made.check(step, {**GOOD, "flat_groups": 1.0}, ARRAYS)
        made.check(step, GOOD, ARRAYS)
    assert made.flat_steps == 10 and len(told) == 4
    assert told[2].startswith("step 4: all samples") and "(4 such steps" in told[2]


def test_the_limit_is_the_configs_or_that_of_the_dtype(tiny):
    """Rounding in bfloat16 is no drift; other losses need no alarm."""
    for limit, compute, expected in (
        (0.0, "float32", 0.01),
        (0.0, "bfloat16", 0.5),
        (0.3, "bfloat16", 0.3),
    ):
        loss = Grpo(tiny.PROMPT, lambda *_: None, steps=1, drift_limit=limit)
        assert loss.find_drift_limit(Policy(compute=compute)) == expected
        check = alarm.choose_check(loss, Policy(compute=compute))
        with pytest.raises(ValueError, match=f"more than {expected:g} nats"):
            check(1, {**GOOD, "drifted_tokens": 0.006}, ARRAYS)
    check = alarm.choose_check(tiny.PLAIN_CTC, Policy(), 7)
    assert check.func is loop.check_finite and check.keywords == {"limit": 7}


def measure_drift(sampler: np.ndarray, trainer: np.ndarray) -> dict[str, float]:
    """Metrics of a step whose tokens have these log-probabilities."""
    limit = DRIFT_LIMITS["bfloat16"]
    found = grpo.drift(sampler, trainer, np.ones(sampler.shape, bool), limit)
    return {
        **GOOD,
        "drift": float(found.total / found.count),
        "drift_largest": float(found.largest),
        "drifted_tokens": float(found.beyond / found.count),
    }


@pytest.mark.parametrize("seed", range(3))
def test_rounding_has_a_tail_and_a_mistake_does_not_hide_in_it(seed):
    """15,360 tokens in bfloat16: some differ by more than the limit, which is no fault.

    The hidden states and the logits of sampler and trainer are rounded apart; as in
    real batches, a few states are many times larger than the rest.
    """
    rng = np.random.default_rng(seed)
    rows, length, vocabulary = 64, 240, 32
    size = np.exp(rng.normal(size=(rows, length, 1)))
    logits = 2.0 * size * rng.normal(size=(rows, length, vocabulary))
    tokens = np.argmax(logits + rng.gumbel(size=logits.shape), axis=-1)[..., None]

    def score(logits):
        scores = jax.nn.log_softmax(np.float32(logits))
        return np.take_along_axis(np.asarray(scores), tokens, axis=-1)[..., 0]

    def compute(logits):
        """As if of sums that were rounded in another order."""
        noisy = logits * (1 + 2.0**-8 * rng.normal(size=logits.shape))
        return score(noisy.astype(jax.numpy.bfloat16))

    check = Alarm(DRIFT_LIMITS["bfloat16"]).check
    sampler, trainer = compute(logits), compute(logits)
    values = measure_drift(sampler, trainer)
    assert values["drift_largest"] > DRIFT_LIMITS["bfloat16"]
    assert values["drifted_tokens"] < LARGEST_SHARE / 10
    check(1, values, ARRAYS)
    colder = compute(logits / 0.7)
    shifted = np.where(np.arange(rows)[:, None] == 5, np.roll(trainer, 1, 1), trainer)
    for wrong in (colder, shifted):
        with pytest.raises(ValueError, match="sampler's log-probability"):
            check(1, measure_drift(sampler, wrong), ARRAYS)
