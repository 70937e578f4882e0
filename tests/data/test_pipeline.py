"""Batches as a training run sees them: shapes, contents, and laws 2 and 3."""

from collections import Counter
from dataclasses import replace

import grain
import numpy as np
import orbax.checkpoint as ocp
import pytest
from absl import flags
from hypothesis import given, settings
from hypothesis import strategies as st

from nim4_jax.data.audio import reading
from nim4_jax.data.pipeline import iterators, survey
from nim4_jax.data.pipeline.hints import HintData
from nim4_jax.data.pipeline.iterators import DataConfig
from nim4_jax.data.sources.skips import SkipReport
from nim4_jax.model_files.loading import find_tokenizer
from nim4_jax.text import phonemes

KEYS = {
    "audio": np.float32,
    "audio_mask": np.bool_,
    "phonemes": np.int32,
    "phonemes_mask": np.bool_,
    "tokens": np.int32,
    "tokens_mask": np.bool_,
    "index": np.int32,
    "valid": np.bool_,
}


@pytest.fixture(scope="module")
def config(corpus_path) -> DataConfig:
    """Two buckets, two odd batch sizes that four hosts can share."""
    return DataConfig(
        sources=(str(corpus_path),),
        batch_size=(8, 4),
        bucket_seconds=(1.1, 2.0),
        speed_perturb=(0.9, 1.0, 1.1),
        seed=3,
        threads=2,
        prefetch=2,
    )


def take(iterator, count: int) -> list[dict]:
    return [next(iterator) for _ in range(count)]


def assert_same(first: dict, second: dict) -> None:
    assert first.keys() == second.keys() == KEYS.keys()
    for key in first:
        np.testing.assert_array_equal(first[key], second[key], err_msg=key)


def join(parts: list[dict]) -> dict:
    """The rows of several hosts, one after the other."""
    return {key: np.concatenate([part[key] for part in parts]) for key in KEYS}


@pytest.fixture(scope="module")
def straight(config):
    """The first 12 global batches of an uninterrupted host: two epochs and more."""
    iterator = iterators.make_train_iterator(config)
    batches = take(iterator, 12)
    assert iterator.epoch >= 2
    iterator.close()
    return batches


def test_shapes_are_fixed_per_bucket(config, straight):
    for batch in straight:
        rows, size = batch["audio"].shape
        assert (rows, size) in {(8, 17600), (4, 32000)}
        width = {17600: 18, 32000: 32}[size]
        assert batch["phonemes"].shape == (rows, width)
        assert batch["tokens"].shape == (rows, 1) and not batch["tokens_mask"].any()
        assert batch["valid"].all() and batch["index"].shape == (rows,)
        for key, dtype in KEYS.items():
            assert batch[key].dtype == dtype
        for key in ("audio", "phonemes", "tokens"):
            assert batch[key].shape == batch[f"{key}_mask"].shape
            assert not batch[key][~batch[f"{key}_mask"]].any()


@pytest.mark.parametrize("hints", [None, HintData(wanted_tokens=8)])
def test_blanks_have_the_shapes_to_come(config, hints):
    """One of each, in order, of this epoch; before the run's end, if that is near."""
    made = replace(config, hints=hints, tokenizer=find_tokenizer("nano"))
    iterator = iterators.make_train_iterator(made, rank=1, hosts=2)

    def describe(arrays):
        return {key: (leaf.shape, leaf.dtype) for key, leaf in arrays.items()}

    blanks = [describe(blank) for blank in iterator.make_blanks(1_000)]
    assert len(blanks) == 2 and iterator.make_blanks(0) == []
    assert [describe(blank) for blank in iterator.make_blanks(1)] == blanks[:1]
    came = []
    for _ in range(iterator.plan.count_steps(1)):
        shapes = describe(next(iterator))
        came += [shapes] if shapes not in came else []
    iterator.close()
    assert came == blanks


def test_an_epoch_delivers_every_example(config):
    iterator = iterators.make_train_iterator(replace(config, epochs=2))
    counts = Counter(np.concatenate([batch["index"] for batch in iterator]).tolist())
    assert set(counts) == set(range(22))
    assert sum(counts.values()) == 2 * 22 + iterator.report.repeated
    assert iterator.report.repeated < 2 * 4 and not iterator.report.counts
    iterator.close()


def test_rows_hold_what_their_index_says(config, corpus_path):
    plain = replace(config, speed_perturb=(1.0,))
    corpus = iterators.open_corpus(plain)
    iterator = iterators.make_train_iterator(plain)
    for batch in take(iterator, 3):
        for row, index in enumerate(batch["index"]):
            record = corpus[int(index)]
            samples = batch["audio"][row][batch["audio_mask"][row]]
            np.testing.assert_array_equal(samples, reading.decode(record["audio"]))
            labels = batch["phonemes"][row][batch["phonemes_mask"][row]]
            assert labels.tolist() == phonemes.encode_phonemes(record["text"])
    iterator.close()


def test_speed_perturbation_changes_the_lengths(straight):
    ratios = set()
    for batch in straight:
        seconds = 0.5 + 0.05 * batch["index"]
        delivered = batch["audio_mask"].sum(1) / 16000
        ratios |= set(np.round(delivered / seconds, 2).tolist())
    assert ratios == {round(1 / 0.9, 2), 1.0, round(1 / 1.1, 2)}


@pytest.mark.parametrize("hosts", [2, 4])
def test_law_3_hosts_share_the_same_global_batches(config, straight, hosts):
    shares = []
    for rank in range(hosts):
        iterator = iterators.make_train_iterator(config, rank=rank, hosts=hosts)
        shares.append(take(iterator, len(straight)))
        iterator.close()
    for step, batch in enumerate(straight):
        assert_same(join([share[step] for share in shares]), batch)


@settings(max_examples=6, deadline=None)
@given(
    threads=st.integers(0, 3), prefetch=st.integers(1, 5), cache=st.sampled_from([0, 9])
)
def test_law_3_threads_and_cache_change_nothing(
    config, straight, threads, prefetch, cache
):
    other = replace(config, threads=threads, prefetch=prefetch, cache_mb=cache)
    iterator = iterators.make_train_iterator(other)
    for batch in straight:
        assert_same(next(iterator), batch)
    iterator.close()


def test_law_3_worker_processes_change_nothing(config, straight):
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    iterator = iterators.make_train_iterator(replace(config, workers=2, threads=1))
    for batch in straight[:5]:
        assert_same(next(iterator), batch)
    state = iterator.get_state()
    iterator.close()
    alone = iterators.make_train_iterator(config)
    alone.set_state(state)
    assert_same(next(alone), straight[5])
    alone.close()


@settings(max_examples=12, deadline=None)
@given(st.lists(st.integers(0, 11), min_size=1, max_size=4))
def test_law_2_any_saved_step_is_restored(config, straight, steps):
    iterator = iterators.make_train_iterator(config)
    for step in steps:
        fresh = iterators.make_train_iterator(config)
        take(fresh, step)
        state = fresh.get_state()
        fresh.close()
        # The iterator that is restored may stand anywhere, with batches made ahead.
        iterator.set_state(state)
        assert_same(next(iterator), straight[step])
    iterator.close()


def test_law_2_through_orbax(config, straight, tmp_path):
    iterator = iterators.make_train_iterator(config)
    take(iterator, 5)
    with ocp.CheckpointManager(tmp_path) as manager:
        manager.save(
            5, args=ocp.args.Composite(data=grain.checkpoint.CheckpointSave(iterator))
        )
        manager.wait_until_finished()
        fresh = iterators.make_train_iterator(replace(config, threads=0))
        restore = grain.checkpoint.CheckpointRestore(fresh)
        manager.restore(5, args=ocp.args.Composite(data=restore))
    for batch in straight[5:]:
        assert_same(next(fresh), batch)
    iterator.close()
    fresh.close()


def test_a_state_of_other_data_is_refused(config):
    state = iterators.make_train_iterator(config).get_state()
    other = iterators.make_train_iterator(replace(config, seed=4))
    with pytest.raises(ValueError, match=r"--force_config.*--workdir=NEW --config\.in"):
        other.set_state(state)


def test_a_sample_is_of_so_many_hours(config):
    """The same one again; with few recordings, or none wanted, it is all of them."""
    examples = survey.survey(config, SkipReport(), training=False)
    seconds = examples.lengths.seconds
    hours = 0.3 * seconds.sum() / 3600
    chosen = survey.sample(config, hours)
    assert chosen == survey.sample(config, hours)
    assert chosen != survey.sample(replace(config, seed=4), hours)
    drawn = seconds[sorted(chosen)].sum() / 3600
    assert hours <= drawn < hours + seconds.max() / 3600
    assert survey.sample(config, 0.0) is None and survey.sample(config, 9.0) is None


def test_an_epoch_says_what_it_holds(config):
    """Hours of audio, as it is heard, without padding."""
    iterator = iterators.make_train_iterator(replace(config, threads=0))
    hours, steps = iterator.measure_epoch()
    assert steps == iterator.plan.count_steps(1)
    heard = sum(next(iterator)["audio_mask"].sum() for _ in range(steps))
    assert heard / 16_000 / 3600 == pytest.approx(hours, rel=0.01)


def test_other_data_can_begin_a_new_epoch(config):
    """The one after the step that was saved, from its first batch; then law 2 holds."""
    other = iterators.make_train_iterator(replace(config, batch_size=2))
    first = other.plan.count_steps(1)
    for step, epoch in ((0, 1), (first - 1, 1), (first, 2)):
        other.begin_epoch({"step": step, "plan": "another"})
        assert other.epoch == epoch
        assert other.step == other.plan.count_steps(epoch)
    other.set_state(other.get_state())
    assert other.epoch == 2
    next(other)
    other.close()


def test_grain_need_not_print_the_data_set(config):
    """It puts the name of what it maps together anew whenever reading begins."""
    assert len(repr(iterators.make_train_iterator(config)._load)) < 200


def test_a_closed_iterator_says_so(config):
    iterator = iterators.make_train_iterator(config)
    next(iterator)
    iterator.close()
    with pytest.raises(ValueError, match="closed"):
        next(iterator)


@pytest.mark.parametrize("hosts", [1, 2])
def test_evaluation_visits_every_example_once(config, hosts):
    plain = replace(config, batch_size=4)
    shares = [
        list(iterators.iterate_eval(plain, rank=rank, hosts=hosts))
        for rank in range(hosts)
    ]
    batches = [join(list(parts)) for parts in zip(*shares)]
    index = np.concatenate([batch["index"] for batch in batches])
    valid = np.concatenate([batch["valid"] for batch in batches])
    # These examples grow with their index, so that by length is by index.
    assert index[valid].tolist() == list(range(22))
    assert (index[~valid] == -1).all()
    for batch in batches:
        assert batch["audio"].shape in {(4, 17600), (4, 32000)}
        assert (batch["audio_mask"].any(1) == batch["valid"]).all()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"bucket_seconds": ()}, "bucket_seconds"),
        ({"bucket_seconds": (2.0, 1.0)}, "growing"),
        ({"batch_size": (8, 4, 2)}, "2 numbers"),
        ({"batch_size": 0}, "batch_size"),
        ({"max_phonemes": (9, 8)}, "not shrinking"),
        ({"needs": ("words",)}, "choose from phonemes, tokens"),
        ({"speed_perturb": (1.0, 0.0)}, "speed_perturb"),
        ({"epochs": 0}, "epochs"),
    ],
)
def test_bad_configurations(config, change, message):
    with pytest.raises(ValueError, match=message):
        iterators.make_train_iterator(replace(config, **change))


@pytest.mark.parametrize("rank, hosts", [(0, 3), (2, 2)])
def test_bad_host_numbers(config, rank, hosts):
    with pytest.raises(ValueError, match="multiple of hosts"):
        iterators.make_train_iterator(config, rank=rank, hosts=hosts)
