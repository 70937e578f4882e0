"""Companions in the one loop: what they decide is repeated by a run that was killed."""

import dataclasses

import jax
import numpy as np
import pytest

from nim4_jax.models.asr import Asr
from nim4_jax.train import callbacks as train_callbacks
from nim4_jax.train import loop
from nim4_jax.train.callbacks import Outcome
from nim4_jax.train.checkpoints import checkpoint
from nim4_jax.train.checkpoints.checkpoint import Checkpoints
from nim4_jax.train.drift_probe import DriftProbe
from nim4_jax.train.metrics import MetricWriter, read_metrics
from nim4_jax.train.releases import store
from nim4_jax.train.releases.divergence import Watcher
from nim4_jax.train.releases.encoder_probe import EncoderProbe, spread, take_parts
from nim4_jax.train.releases.publisher import Publisher
from nim4_jax.train.releases.subscriber import FollowConfig, Subscriber, swap
from nim4_jax.train.step import make_train_step

STEPS, EVERY = 12, 3
META = {"stage": "test"}
PUBLISHED = (("(encoder|ctc_head)/.*", 1.0), (".*", None))
FOLLOWED = (("(adaptor|llm)/.*", 1.0), (".*", None))


class Killed(Exception):
    """Stands for a signal."""


@pytest.fixture(scope="module")
def pretraining(tiny):
    """(recipe, jitted step) of stage 1."""
    return make_parts(tiny, tiny.PLAIN_CTC, PUBLISHED)


@pytest.fixture(scope="module")
def tuning(tiny):
    """(recipe, jitted step) of stage 3."""
    return make_parts(tiny, tiny.PLAIN_TRANSCRIBE, FOLLOWED)


@pytest.fixture(scope="module")
def probe(tiny):
    """Two batches of another length each."""
    batches = [tiny.make_batch(70, samples=size) for size in (3_200, 4_800)]
    return EncoderProbe(Asr(tiny.CONFIG), batches)


def make_parts(tiny, loss, rules):
    recipe = tiny.make_recipe(loss, rules, STEPS)
    tx, _ = tiny.make_state(recipe)
    return recipe, jax.jit(make_train_step(Asr(tiny.CONFIG), recipe, tx))


def run(tiny, parts, folder, callbacks=(), until=None, kill=None, at=None):
    """Train in a folder, from its checkpoint where there is one.

    kill: step after which the run dies; at: step → what happens after it.
    """
    recipe, step = parts
    _, state = tiny.make_state(recipe)
    data = tiny.make_data()
    checkpoints = Checkpoints(str(folder), EVERY)
    if checkpoints.latest_step() is not None:
        state = checkpoints.restore(state, data)
        train_callbacks.restore(callbacks, checkpoints.read_meta())
    writer = MetricWriter(str(folder), int(state.step))

    def check(number, values, arrays):
        (at or {}).get(number, lambda: None)()
        if number == kill:
            raise Killed

    config = loop.LoopConfig(STEPS, META, until, log_every=2)
    hooks = loop.Hooks(callbacks, check)
    try:
        return loop.train(state, step, data, checkpoints, writer, config, hooks)
    finally:
        checkpoints.close()
        writer.close()


def make_encoder(tiny, pretraining, value: float):
    """Stage 1's parameters, all of them moved a little."""
    params = take_parts(tiny.make_params(pretraining[0]))
    return jax.tree.map(lambda leaf: leaf * (1 + value), params)


def release(tiny, pretraining, folder, step, final=False):
    """Publish an encoder made of the step's number."""
    params = make_encoder(tiny, pretraining, step / 1000)
    facts = {"cka": None, "final": final, "meta": META}
    return store.publish(str(folder), params, step=step, **facts)


def make_subscriber(folder, sleep=None, **options):
    """Least steps 2, and 4 on the final encoder, unless told otherwise."""
    options = {"min_steps": 2, "last_steps": 4, "poll_seconds": 5.0, **options}
    config = FollowConfig(str(folder), limit_seconds=10.0, **options)
    return Subscriber(config, config.follower(STEPS, EVERY), sleep or fail)


def fail(seconds):
    raise AssertionError(f"waited {seconds} s")


def assert_equal(first, second):
    """Two states, to the bit."""
    jax.tree.map(np.testing.assert_array_equal, first, second)


def read_history(folder):
    """(step, step of the encoder) as the last checkpoint says."""
    step = checkpoint.latest_step(str(folder))
    meta = checkpoint.load_meta(str(folder), step)
    history = train_callbacks.read_states(meta)["follow"]["history"]
    return [(segment["step"], segment["release"]["step"]) for segment in history]


def list_files(folder):
    """Name → content."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class Idle:
    """Does nothing, at every step."""

    name = "idle"

    def __init__(self):
        self.steps = []

    def is_due(self, step, last):
        return True

    def after_step(self, state, step, last):
        self.steps.append((step, last))
        return Outcome(state)

    def get_state(self):
        return {"steps": len(self.steps)}

    def set_state(self, saved):
        self.steps = [None] * saved["steps"]


def test_a_run_alone_is_as_ever(tiny, tuning, tmp_path):
    """An idle callback changes no bit and no row; alone, nothing is kept for it."""
    alone = run(tiny, tuning, tmp_path / "alone")
    idle = Idle()
    assert_equal(run(tiny, tuning, tmp_path / "idle", [idle]), alone)
    assert idle.steps == [(s, s == STEPS) for s in range(STEPS + 1)]
    metas = []
    for name in ("alone", "idle"):
        folder = tmp_path / name
        kept = {path.name for path in (folder / "checkpoints").iterdir()}
        assert kept == {"9", "12"}
        metas.append(checkpoint.load_meta(str(folder), STEPS))
    assert metas == [META, {**META, "companions": {"idle": {"steps": STEPS + 1}}}]
    rows = [read_metrics(str(tmp_path / name)) for name in ("alone", "idle")]
    trained = [[row for row in some if "train/loss" in row] for some in rows]
    assert trained[0] == trained[1] and len(rows[0]) == len(rows[1])


def test_a_run_by_turns_is_one_run(tiny, tuning, tmp_path):
    """Stopped where no checkpoint is due, and gone on."""
    whole = run(tiny, tuning, tmp_path / "whole")
    for until in (4, 4, 7, None):
        state = run(tiny, tuning, tmp_path / "parts", until=until)
        assert int(state.step) == (until or STEPS)
    assert_equal(state, whole)


def follow_and_publish(tiny, pretraining, tuning, tmp_path, kill=None):
    """A run that 20 is published to while it trains, and 30, the last, later."""
    folder, workdir = tmp_path / "releases", tmp_path / "run"
    release(tiny, pretraining, folder, 10)
    at = {
        4: lambda: release(tiny, pretraining, folder, 20),
        7: lambda: release(tiny, pretraining, folder, 30, final=True),
    }
    state = None
    try:
        state = run(tiny, tuning, workdir, [make_subscriber(folder)], kill=kill, at=at)
    except Killed:
        for action in at.values():  # stage 1 has gone on meanwhile
            action()
    if kill is not None:
        state = run(tiny, tuning, workdir, [make_subscriber(folder)])
    return state, read_history(workdir)


@pytest.mark.parametrize("kill", [1, 5, 8, 11])
def test_a_killed_follower_repeats_its_swaps(tiny, pretraining, tuning, tmp_path, kill):
    """Law 2; the final one is taken at 8, where the last four steps begin."""
    expected, history = follow_and_publish(tiny, pretraining, tuning, tmp_path / "a")
    assert history == [(0, 10), (6, 20), (8, 30)]
    got = follow_and_publish(tiny, pretraining, tuning, tmp_path / "b", kill)
    if kill == 1:  # it had decided nothing about 20 yet: now it is there
        assert got[1] == [(0, 10), (3, 20), (6, 30)]
        return
    assert got[1] == history
    assert_equal(got[0], expected)


def test_a_swap_exchanges_the_encoder_and_nothing_else(
    tiny, pretraining, tuning, tmp_path
):
    """Same step, same optimizer slots; what is trained goes on from where it was."""
    release(tiny, pretraining, tmp_path, 10)
    _, state = tiny.make_state(tuning[0])
    outcome = make_subscriber(tmp_path).after_step(state, 0, False)
    assert outcome.binding and outcome.metrics == {"releases/encoder_step": 10.0}
    wanted = make_encoder(tiny, pretraining, 0.01)
    for name, part in outcome.state.params.items():
        assert_equal(part, wanted[name] if name in wanted else state.params[name])
    assert_equal(outcome.state.opt_state, state.opt_state)
    shardings = [leaf.sharding for leaf in jax.tree.leaves(outcome.state.params)]
    assert shardings == [leaf.sharding for leaf in jax.tree.leaves(state.params)]


def test_a_release_of_another_model_is_named(tiny, pretraining, tuning):
    """Missing or of another shape, by path."""
    _, state = tiny.make_state(tuning[0])
    given = make_encoder(tiny, pretraining, 0.0)
    given["cmvn"] = {"mean": np.zeros(3, np.float32)}
    with pytest.raises(ValueError, match=r"cmvn/mean: \(3,\), expected \(16,\); cmvn"):
        swap(state.params, given, "encoder-7")


def test_waiting_for_releases_ends_with_an_error(
    tiny, pretraining, tuning, tmp_path, log
):
    """Neither a first nor a final one; the run that waited can be resumed."""
    folder, workdir, pauses = tmp_path / "releases", tmp_path / "run", []
    with pytest.raises(TimeoutError, match=r"no encoder release in .* after 10 s"):
        make_subscriber(folder, pauses.append).first_encoder()
    assert pauses == [5.0, 5.0]
    assert any(line.endswith("yet: waited 5 s") for line in log)
    release(tiny, pretraining, folder, 10)
    patient = make_subscriber(folder, pauses.append)
    with pytest.raises(TimeoutError, match=r"no final encoder release in .* after 10"):
        run(tiny, tuning, workdir, [patient])
    assert read_history(workdir) == [(0, 10)]
    release(tiny, pretraining, folder, 20, final=True)
    state = run(tiny, tuning, workdir, [make_subscriber(folder)])
    assert (int(state.step), read_history(workdir)) == (STEPS, [(0, 10), (8, 20)])


@pytest.mark.parametrize("harm", ["deleted", "corrupt"])
def test_a_lost_release_does_not_stop_the_run(
    tiny, pretraining, tuning, tmp_path, log, harm
):
    """It goes on with the old encoder and says so."""
    folder = tmp_path / "releases"
    release(tiny, pretraining, folder, 10)
    lost = folder / release(tiny, pretraining, folder, 20, final=True).name
    if harm == "deleted":
        lost.unlink()
    else:
        lost.write_bytes(lost.read_bytes()[:-9])
    run(tiny, tuning, tmp_path / "run", [make_subscriber(folder)])
    assert read_history(tmp_path / "run") == [(0, 10)]
    said = "\n".join(log)
    assert harm in said and "step 8 goes on with encoder release" in said


def make_publisher(folder, probe):
    """Compares at 2, 4, 6 …; any change at all is published."""
    watcher = Watcher(from_step=2, every=2, threshold=1.0)
    return Publisher(str(folder), watcher, probe, META)


@pytest.mark.parametrize("kill", [5, 11])
def test_stage1_killed_and_resumed_publishes_the_same(
    tiny, pretraining, probe, tmp_path, kill
):
    """Index and files to the byte, and the same comparisons."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(tiny, pretraining, whole / "run", [make_publisher(whole / "out", probe)])
    with pytest.raises(Killed):
        publisher = make_publisher(parts / "out", probe)
        run(tiny, pretraining, parts / "run", [publisher], kill=kill)
    run(tiny, pretraining, parts / "run", [make_publisher(parts / "out", probe)])
    assert list_files(parts / "out") == list_files(whole / "out")
    listed = store.read_index(str(whole / "out"))
    assert [entry.step for entry in listed] == [4, 6, 8, 10, 12]
    assert [entry.final for entry in listed] == [False] * 4 + [True]
    measured = [
        [(row["step"], row["releases/cka"]) for row in rows if "releases/cka" in row]
        for rows in (read_metrics(str(place / "run")) for place in (whole, parts))
    ]
    assert measured[0] == measured[1] == [(e.step, e.cka) for e in listed]


def test_drift_of_an_encoder_that_stays_is_none(
    tiny, pretraining, tuning, probe, tmp_path
):
    """CKA 1 and one phoneme error throughout; a moved encoder has another CKA."""
    params = tiny.make_params(pretraining[0])
    drift = DriftProbe(probe, take_parts(params), every=5)
    _, state = tiny.make_state(tuning[0])
    moving = dataclasses.replace(state, params={**state.params, **take_parts(params)})
    expected = probe.phoneme_error(params)
    for step in (0, 5):
        assert drift.is_due(step, False)
        metrics = drift.after_step(moving, step, False).metrics
        np.testing.assert_allclose(metrics["probe/cka"], 1.0, rtol=1e-6)
        assert metrics["probe/phoneme_error"] == expected > 0
        assert not drift.is_due(step, True)
    assert drift.is_due(6, True) and not drift.is_due(6, False)
    encoder = jax.tree.map(lambda leaf: leaf * 1.5, moving.params["encoder"])
    moved = dataclasses.replace(moving, params={**moving.params, "encoder": encoder})
    assert drift.after_step(moved, 10, False).metrics["probe/cka"] < 0.999
    again = DriftProbe(probe, take_parts(params), every=5)
    again.set_state(drift.get_state())
    assert not again.is_due(10, True)


def test_an_evaluation_set_is_cut_evenly():
    """Short and long ones, whatever its size."""
    for size in range(1, 40):
        chosen = spread(range(1, size + 1), 4)
        assert len(chosen) == min(size, 4) and sorted(set(chosen)) == list(chosen)
        assert chosen[0] == 1 and chosen[-1] >= 0.7 * size
    with pytest.raises(ValueError, match="empty"):
        spread([], 4)
