"""What stops a run of reinforcement learning, and what it says."""

import math

import numpy as np
import pytest

from nim4_jax.layers import Policy
from nim4_jax.rl import alarm
from nim4_jax.rl.alarm import Alarm
from nim4_jax.rl.objective import Grpo
from nim4_jax.train import loop

GOOD = {
    "loss": 0.5,
    "gradient_norm": 1.0,
    "drift": 0.1,
    "broken_row": -1.0,
    "flat_groups": 0.5,
}
ARRAYS = {"index": np.array([40, 41, 42])}


def test_good_steps_pass():
    """Drift up to the limit is none."""
    Alarm(0.1).check(1, GOOD, ARRAYS)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"drift": 0.2}, ValueError, r"step 7 .* is 0\.2 nats .* at most 0\.1: give"),
        ({"drift": math.nan}, ValueError, "is nan nats"),
        ({"loss": math.nan}, FloatingPointError, r"^loss of step 7 .*\[40, 41, 42\]"),
        ({"gradient_norm": math.inf}, FloatingPointError, "gradient_norm of step 7"),
        (
            {"broken_row": 1.0, "loss": math.nan, "drift": math.nan},
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
    lost = {"loss": math.nan, "drift": math.nan, "broken_row": 1.0}
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
        check = alarm.choose_check(loss, Policy(compute=compute))
        check(1, {**GOOD, "drift": expected}, ARRAYS)
        with pytest.raises(ValueError, match=f"at most {expected:g}"):
            check(1, {**GOOD, "drift": 1.01 * expected}, ARRAYS)
    check = alarm.choose_check(tiny.PLAIN_CTC, Policy(), 7)
    assert check.func is loop.check_finite and check.keywords == {"limit": 7}
