"""Tempo, rooms, gains, telephone lines in training: their laws, their absence."""

from dataclasses import replace

import numpy as np
import pytest
from absl import flags
from hypothesis import given, settings
from hypothesis import strategies as st

from nim4_jax.data.audio import reading
from nim4_jax.data.noise import channel, mixing, noise_draws, rooms, telephone, tempo
from nim4_jax.data.noise.channel import Distribution
from nim4_jax.data.pipeline import iterators
from nim4_jax.data.pipeline.buckets import Bucket, Lengths, Perturbations, TrainPlan
from nim4_jax.data.pipeline.iterators import DataConfig

STEPS = 12
COUNT = 10_000
SHAPES = (Bucket(2.0, 4, 20, 30), Bucket(4.0, 3, 40, 60), Bucket(8.0, 2, 80, 120))
ON = {
    "room_share": 0.6,
    "gain_share": 0.5,
    "telephone_share": 0.4,
    "tempo_share": 0.5,
}
shares = st.floats(0, 1)


@pytest.fixture(scope="module")
def config(corpus_path) -> DataConfig:
    """Half of the speech noisy, a third of the examples silent, all channels."""
    return DataConfig(
        sources=(str(corpus_path),),
        batch_size=(8, 4),
        bucket_seconds=(1.1, 2.0),
        speed_perturb=(0.9, 1.0, 1.1),
        noise_share=0.5,
        nonspeech_share=1 / 3,
        **ON,
        seed=3,
        threads=2,
        prefetch=2,
    )


def take(iterator, count: int) -> list[dict]:
    batches = [next(iterator) for _ in range(count)]
    iterator.close()
    return batches


def assert_same(first: dict, second: dict) -> None:
    assert first.keys() == second.keys()
    for key in first:
        np.testing.assert_array_equal(first[key], second[key], err_msg=key)


@pytest.fixture(scope="module")
def straight(config):
    """The first 12 global batches of an uninterrupted host."""
    return take(iterators.make_train_iterator(config), STEPS)


def make_plan(noise=None, channels=None) -> TrainPlan:
    seconds = np.linspace(0.6, 7.5, 40)
    labels = np.floor(seconds * 5).astype(np.int64) + 1
    return TrainPlan(
        [np.arange(30), np.arange(30, 40)],
        [1.0, 1.5],
        Lengths(seconds, labels, np.zeros_like(labels), labels),
        SHAPES,
        Perturbations((0.9, 1.0, 1.1), noise, channels),
        num_speech=35,
    )


def draw(speech: np.ndarray, seed: int = 0, **options) -> channel.Draws:
    return channel.draw(np.random.default_rng(seed), speech, Distribution(**options))


# What is drawn.


@settings(max_examples=30, deadline=None)
@given(shares, shares, shares)
def test_shares_are_met_and_independent(room, gain, line):
    speech = np.arange(COUNT) % 4 > 0
    draws = draw(speech, room_share=room, gain_share=gain, telephone_share=line)
    in_room, gained, called = draws.rooms >= 0, draws.gains != 0, draws.laws >= 0
    assert not in_room[~speech].any()
    for found, share in (
        (in_room[speech], room),
        (gained, gain),
        (gained[~speech], gain),
        (called, line),
        (called & gained, line * gain),
        ((in_room & gained)[speech], room * gain),
    ):
        spread = np.sqrt(share * (1 - share) / len(found))
        assert abs(found.mean() - share) <= 5 * spread + 1e-9


@settings(max_examples=30, deadline=None)
@given(shares, shares, shares, st.integers(0, 99))
def test_an_example_keeps_its_draw_whatever_the_shares_are(room, gain, line, seed):
    speech = np.ones(200, bool)
    some = draw(speech, seed, room_share=room, gain_share=gain, telephone_share=line)
    every = draw(speech, seed, **dict.fromkeys(ON, 1.0))
    for row in range(200):
        assert some[row].room in (None, every[row].room)
        assert some[row].gain in (0.0, every[row].gain)
        assert some[row].law in (None, every[row].law)
        assert every[row].tempo and every[row].room is not None
    rows = np.arange(5, 15)
    assert [every.take(rows)[n] for n in range(10)] == [every[n] for n in range(5, 15)]


def test_gains_are_even_between_their_ends():
    gains = draw(np.ones(COUNT, bool), gain_share=1.0, gain_db=(-30.0, 10.0)).gains
    assert gains.min() >= -30 and gains.max() <= 10
    assert abs(gains.mean() + 10) < 0.5 and abs(gains.std() - 40 / np.sqrt(12)) < 0.3
    tempos = draw(np.arange(COUNT) % 2 > 0, tempo_share=0.4).tempos
    assert not tempos[::2].any() and abs(tempos[1::2].mean() - 0.4) < 0.04
    laws = draw(np.ones(COUNT, bool), telephone_share=1.0).laws
    assert abs((laws == 0).mean() - 0.5) < 0.02


@pytest.mark.parametrize(
    "change, message",
    [
        ({"room_share": 1.1}, r"room_share 1.1; expected 0 \(off\) to 1 \(all\)"),
        ({"gain_share": -0.1}, "gain_share -0.1"),
        ({"telephone_share": float("nan")}, "telephone_share nan"),
        ({"tempo_share": 2.0}, "tempo_share 2.0"),
        ({"gain_db": (10.0, -30.0)}, "gain_db.*the least and the most, dB"),
        ({"gain_db": (float("-inf"), 0.0)}, "gain_db"),
    ],
)
def test_bad_configurations(config, change, message):
    with pytest.raises(ValueError, match=message):
        iterators.make_train_iterator(replace(config, **change))


# Off is off.


def test_shares_of_zero_change_neither_plan_nor_fingerprint(config):
    zero = dict.fromkeys(ON, 0.0)
    off = replace(config, **zero, gain_db=(-6.0, 6.0))
    plain = DataConfig(
        **{
            name: getattr(config, name)
            for name in config.__dataclass_fields__
            if name not in ON
        }
    )
    first, second = map(iterators.make_train_iterator, (off, plain))
    assert first.get_state() == second.get_state() and first.plan.channels is None
    for one, two in zip(take(first, 6), take(second, 6)):
        assert_same(one, two)


def test_the_fingerprint_is_that_of_before():
    """Golden: the fingerprint of this plan in the commit before this feature."""
    assert iterators._hash_plan(make_plan()) == "6a60085d64de851c"


def test_channels_move_nothing_else_of_a_plan():
    noisy = noise_draws.Distribution(0.5)
    without = make_plan(noisy)
    beside = make_plan(noisy, Distribution(0.5, 0.5))
    for epoch in range(2):
        for one, two in zip(without.epoch(epoch), beside.epoch(epoch)):
            np.testing.assert_array_equal(one.indices, two.indices)
            np.testing.assert_array_equal(one.speeds, two.speeds)
            np.testing.assert_array_equal(one.draws.seeds, two.draws.seeds)
            assert one.bucket == two.bucket and one.channels is None
            assert (two.channels.rooms[two.indices >= 35] < 0).all()
    first, second = ([b.channels.gains for b in beside.epoch(e)] for e in range(2))
    assert not np.array_equal(np.concatenate(first), np.concatenate(second))


def test_evaluation_hears_no_channel(config):
    corpus = iterators.open_corpus(config)
    for batch in iterators.iterate_eval(config):
        for row in np.flatnonzero(batch["valid"]):
            samples = batch["audio"][row][batch["audio_mask"][row]]
            record = corpus[int(batch["index"][row])]
            np.testing.assert_array_equal(samples, reading.decode(record["audio"]))


# The laws.


@pytest.mark.parametrize("hosts", [2, 4])
def test_law_3_hosts_hear_the_same(config, straight, hosts):
    parts = [
        take(iterators.make_train_iterator(config, rank=rank, hosts=hosts), STEPS)
        for rank in range(hosts)
    ]
    for step, batch in enumerate(straight):
        joined = {
            key: np.concatenate([part[step][key] for part in parts]) for key in batch
        }
        assert_same(joined, batch)


@pytest.mark.parametrize("threads, cache", [(0, 0.0), (3, 9.0)])
def test_law_3_threads_and_cache_change_nothing(config, straight, threads, cache):
    other = replace(config, threads=threads, cache_mb=cache)
    batches = take(iterators.make_train_iterator(other), STEPS)
    for first, second in zip(batches, straight):
        assert_same(first, second)


def test_law_3_worker_processes_change_nothing(config, straight):
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    other = replace(config, workers=2, threads=1)
    for first, second in zip(take(iterators.make_train_iterator(other), 4), straight):
        assert_same(first, second)


@pytest.mark.parametrize("step", [1, 7])
def test_law_2_a_restart_hears_the_same(config, straight, step):
    first = iterators.make_train_iterator(config)
    for _ in range(step):
        next(first)
    state = first.get_state()
    first.close()
    second = iterators.make_train_iterator(config)
    second.set_state(state)
    for batch, expected in zip(take(second, STEPS - step), straight[step:]):
        assert_same(batch, expected)


@pytest.mark.parametrize(
    "change",
    [
        {"room_share": 0.5},
        {"gain_share": 0.0},
        {"gain_db": (-20.0, 10.0)},
        {"telephone_share": 0.1},
        {"tempo_share": 0.4},
    ],
)
def test_a_state_of_other_channels_is_refused(config, change):
    state = iterators.make_train_iterator(config).get_state()
    other = iterators.make_train_iterator(replace(config, **change))
    with pytest.raises(ValueError, match=r"rooms, gains, telephone lines"):
        other.set_state(state)


# What a batch holds.


def read_rows(config, steps: int):
    """(index, samples, speed, noise draw, channel draw, bucket's samples) of rows."""
    iterator = iterators.make_train_iterator(config)
    for step, batch in enumerate(take(iterator, steps)):
        planned = iterator.plan[step]
        for row, index in enumerate(batch["index"].tolist()):
            samples = batch["audio"][row][batch["audio_mask"][row]]
            draws = planned.draws[row] if planned.draws else None
            path = planned.channels[row]
            size = batch["audio"].shape[1]
            yield index, samples, planned.speeds[row], draws, path, size


def read_clean(config, index: int, speed: float, path: channel.Draw) -> np.ndarray:
    record = iterators.open_corpus(config)[index]
    clean = reading.to_float32(reading.to_int16(reading.decode(record["audio"])))
    change = tempo.change_tempo if path.tempo else reading.change_speed
    return change(clean, speed)


def test_rows_hold_what_was_drawn(config):
    quiet = replace(config, noise_share=0.0, nonspeech_share=0.0)
    seen = set()
    for index, samples, speed, _, path, _ in read_rows(quiet, 24):
        expected = read_clean(quiet, index, speed, path)
        if path.room is not None:
            rng = np.random.default_rng(path.room)
            response = rooms.make_response(rng, rooms.draw_room(rng))
            expected = rooms.reverberate(expected, response, len(expected))
        if path.gain:
            expected = expected * np.float32(10 ** (path.gain / 20))
            expected = np.clip(np.rint(expected * 32768), -32768, 32767) / 32768
        if path.law:
            expected = telephone.transmit(expected.astype(np.float32), path.law)
        np.testing.assert_allclose(samples, expected, atol=4e-5)
        seen.add((path.room is None, path.gain == 0, path.law))
    assert len(seen) == 12


def test_noise_lies_over_the_room_and_under_gain_and_telephone(config):
    """The room is heard in the silence behind the speech; lengths are as without it."""
    alone = replace(config, noise_share=1.0, nonspeech_share=0.0, telephone_share=0.0)
    alone = replace(alone, gain_share=0.0, room_share=1.0, noise_snr=(60.0, 0.0))
    heard = 0
    for index, samples, speed, draws, path, size in read_rows(alone, 6):
        clean = read_clean(alone, index, speed, path)
        padded = mixing.pad_silence(clean, draws.lead, draws.tail, size)
        assert abs(len(samples) - len(padded)) <= 1  # whole samples of both silences
        assert len(samples) <= size
        tail = int(draws.tail * 16_000)
        if tail > 1600:
            behind = samples[len(samples) - tail :][:800]
            heard += mixing.measure_power(behind) > 1e-5 * mixing.measure_power(clean)
    assert heard > 5


def test_examples_without_speech_get_gains_and_lines_but_no_room(config):
    plan = iterators.make_train_iterator(config).plan
    draws = [
        batch.channels[row]
        for batch in plan.epoch(0)
        for row in np.flatnonzero(batch.indices >= 22)
    ]
    assert draws and all(path.room is None for path in draws)
    assert any(path.gain for path in draws) and any(path.law for path in draws)


@settings(max_examples=50, deadline=None)
@given(st.floats(-60, 40), st.integers(0, 99))
def test_a_gain_clips_and_rounds_as_16_bits_do(gain, seed):
    rng = np.random.default_rng(seed)
    samples = (0.2 * rng.standard_normal(500)).astype(np.float32)
    changed = channel.amplify(samples, gain)
    wanted = np.clip(samples * 10 ** (gain / 20), -1, 32767 / 32768)
    assert changed.dtype == np.float32
    np.testing.assert_allclose(changed, wanted, atol=0.51 / 32768)
    np.testing.assert_array_equal(changed * 32768, np.rint(changed * 32768))
