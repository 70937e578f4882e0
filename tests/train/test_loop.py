"""The one loop: where it begins, when it saves, and how it stops."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from nim4_jax.models.asr import Asr
from nim4_jax.process.errors import Interrupted
from nim4_jax.train import loop
from nim4_jax.train.checkpoints import checkpoint
from nim4_jax.train.checkpoints.checkpoint import Checkpoints
from nim4_jax.train.metrics import MetricWriter, read_metrics
from nim4_jax.train.step import make_train_step

HEAD = (("ctc_head/.*", 1.0), (".*", None))
STAGE1 = (("(encoder|ctc_head)/.*", 1.0), (".*", None))


def compile_parts(tiny, config, rules=HEAD):
    """(config, recipe, jitted step)."""
    recipe = tiny.make_recipe(tiny.PLAIN_CTC, rules, 8)
    tx, _ = tiny.make_state(recipe, config)
    return config, recipe, jax.jit(make_train_step(Asr(config), recipe, tx))


@pytest.fixture(scope="module")
def parts(tiny):
    """One compilation for all tests here but one."""
    return compile_parts(tiny, tiny.CONFIG)


def run(tiny, parts, folder, steps, data=None, every=3, **options):
    """Train in a folder up to `steps`, from its checkpoint where there is one."""
    config_options = {name: options.pop(name) for name in ("until",) if name in options}
    config, recipe, step = parts
    _, state = tiny.make_state(recipe, config)
    data = data or tiny.make_data()
    checkpoints = Checkpoints(str(folder), every)
    if checkpoints.latest_step() is not None:
        state = checkpoints.restore(state, data)
    writer = MetricWriter(str(folder), int(state.step))
    try:
        return loop.train(
            state,
            step,
            data,
            checkpoints,
            writer,
            loop.LoopConfig(steps, log_every=2, **config_options),
            loop.Hooks(**options),
        )
    finally:
        checkpoints.close()
        writer.close()


@pytest.mark.parametrize("encoder", ["conformer", "whisper"])
def test_stopping_anywhere_changes_nothing(tiny, parts, encoder, tmp_path):
    """Law 2 inside one process: 5 steps and then 3 more are 8 steps."""
    if encoder != "conformer":  # that one alone is compiled already
        parts = compile_parts(tiny, tiny.CONFIGS[encoder], STAGE1)
    whole = run(tiny, parts, tmp_path / "whole", 8)
    run(tiny, parts, tmp_path / "parts", 5)
    resumed = run(tiny, parts, tmp_path / "parts", 8)
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)
    assert int(whole.step) == 8
    steps = [row["step"] for row in read_metrics(str(tmp_path / "whole"))]
    assert sorted(set(steps)) == [1, 2, 4, 6, 8]


def test_a_finished_run_stays_as_it_is(tiny, parts, tmp_path):
    """The same command after the last step trains nothing and reads no data."""
    whole = run(tiny, parts, tmp_path, 4)
    again = run(tiny, parts, tmp_path, 4, data=tiny.make_data())
    jax.tree.map(np.testing.assert_array_equal, again, whole)


class Waiting:
    """A callback that waits after step 4, and is told to give up."""

    name = "waiting"

    def __init__(self):
        self.asked = []

    def is_due(self, step, last):
        return step == 4

    def after_step(self, state, step, last):
        self.asked.append(step)
        raise Interrupted("SIGTERM was received")

    def get_state(self):
        return {"asked": len(self.asked)}

    def set_state(self, saved):
        self.asked = [4] * saved["asked"]


def test_a_run_that_is_asked_to_end_saves_its_step(tiny, parts, tmp_path):
    """After step 4, by who stops runs or while a callback waits; then 8 are 8."""
    whole = run(tiny, parts, tmp_path / "whole", 8)
    answers = iter([False] * 4 + [True])  # asked before the first step, too
    waiting = Waiting()
    for name, how, message in (
        ("stopped", {"stop": lambda: next(answers)}, "step 4 of 8 is saved"),
        ("waiting", {"callbacks": [waiting]}, "SIGTERM was received"),
    ):
        with pytest.raises(Interrupted, match=message):
            run(tiny, parts, tmp_path / name, 8, **how)
        assert checkpoint.latest_step(str(tmp_path / name)) == 4
        meta = checkpoint.load_meta(str(tmp_path / name), 4)
        resumed = run(tiny, parts, tmp_path / name, 8)
        jax.tree.map(np.testing.assert_array_equal, resumed, whole)
    assert waiting.asked == [4]
    # What it had decided before it was asked is what is kept: it is asked again.
    assert meta == {"companions": {"waiting": {"asked": 0}}}


def test_the_loop_says_what_it_begins(tiny, parts, tmp_path):
    """For who watches that it goes on; at step 3 there is a checkpoint."""
    marks = []
    run(tiny, parts, tmp_path, 3, mark=lambda step, phase: marks.append((step, phase)))
    steps = [
        (s, phase) for s in (1, 2, 3) for phase in ("waiting for data", "computing")
    ]
    assert marks == [*steps, (3, "saving")]


def test_a_lost_step_changes_nothing_and_is_told(tiny, parts, tmp_path, monkeypatch):
    """The fifth batch is broken: the state of step 4, counters apart, is step 5's."""
    told = []
    monkeypatch.setattr(
        loop.logging, "warning", lambda text, *args: told.append(text % args)
    )
    before = jax.device_get(run(tiny, parts, tmp_path / "4", 4))
    after = run(tiny, parts, tmp_path / "5", 5, tiny.make_data(broken=(4,)))
    for part in ("params", "opt_state"):
        same = np.testing.assert_array_equal
        jax.tree.map(same, getattr(after, part), getattr(before, part))
    assert int(after.step) == 5
    assert int(after.skips.total) == int(after.skips.in_row) == 1
    assert len(told) == 1 and "step 5 not finite (examples [400, 401, 402" in told[0]
    whole = run(tiny, parts, tmp_path / "5", 8, tiny.make_data(broken=(4,)))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(whole))
    assert int(whole.skips.total) == 1 and int(whole.skips.in_row) == 0
    rows = [r for r in read_metrics(str(tmp_path / "5")) if "train/loss" in r]
    assert [(r["step"], r["train/skipped_steps"]) for r in rows] == [
        (1, 0.0),
        (2, 0.0),
        (4, 0.0),
        (6, 1.0),
        (8, 1.0),
    ]


def test_too_many_lost_steps_in_a_row_end_the_run(tiny, parts, tmp_path):
    """Also where the run is resumed between them: the count is part of the state."""
    broken = tiny.make_data(broken=(2, 3, 4))
    check = functools.partial(loop.check_finite, limit=3)
    message = r"step 5 not finite.*\[400, 401.* 3 steps in a row.*config\.skip_limit"
    for _ in range(2):  # the checkpoint of step 3 holds one lost step
        with pytest.raises(FloatingPointError, match=message):
            run(tiny, parts, tmp_path, 8, data=broken, check=check)
        assert checkpoint.latest_step(str(tmp_path)) == 3
    more = functools.partial(loop.check_finite, limit=4)
    data = tiny.make_data(broken=(2, 3, 4))
    assert int(run(tiny, parts, tmp_path, 8, data, check=more).skips.total) == 3


def test_checkpoints_of_before_steps_were_counted_can_be_resumed(tiny, parts, tmp_path):
    """They have no counters: they begin at 0, and the rest is bit for bit the same."""
    _, _, step = parts
    _, state = tiny.make_state(parts[1])
    data, checkpoints = tiny.make_data(), Checkpoints(str(tmp_path), 1)
    state, _ = step(state, loop.to_batch(next(data)))
    checkpoints.save(dataclasses.replace(state, skips=None), data, {})
    checkpoints.close()
    resumed = run(tiny, parts, tmp_path, 2)
    whole = run(tiny, parts, tmp_path / "whole", 2)
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)


def test_metrics_are_those_of_the_steps_kept(tmp_path):
    """A resumed run drops the rows that it will write again; a torn line is ignored."""
    writer = MetricWriter(str(tmp_path))
    for step in (1, 2, 3):
        writer.write(step, {"train/loss": 1.0 / step, "nan": float("nan")})
    writer.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "train/lo')
    assert [row["step"] for row in read_metrics(str(tmp_path))] == [1, 2, 3]
    writer = MetricWriter(str(tmp_path), first_step=2)
    writer.write(3, {"train/loss": 9.0})
    writer.close()
    rows = read_metrics(str(tmp_path))
    assert [row["train/loss"] for row in rows] == [1.0, 0.5, 9.0]
