"""Noise in the batches of a training run: its laws, its limits, and its absence."""

import hashlib
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import soundfile
from absl import flags

from nim4_jax.data.audio import reading
from nim4_jax.data.noise import mixing, noise_draws
from nim4_jax.data.noise.augment import Augmenter
from nim4_jax.data.pipeline import iterators
from nim4_jax.data.pipeline.buckets import Bucket, Lengths, Perturbations, TrainPlan
from nim4_jax.data.pipeline.iterators import DataConfig, SkipReport
from nim4_jax.data.pipeline.survey import survey
from nim4_jax.data.sources import nonspeech
from nim4_jax.text import tokenizer

STEPS = 18
SHAPES = (Bucket(2.0, 4, 20, 30), Bucket(4.0, 3, 40, 60), Bucket(8.0, 2, 80, 120))


@pytest.fixture(scope="module")
def config(corpus_path, tmp_path_factory) -> DataConfig:
    """Half of the speech noisy, a third of the examples without speech."""
    model = tokenizer.train(["hi", "好", "hello there"], 400)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    model.save(path)
    return DataConfig(
        sources=(str(corpus_path),),
        batch_size=(8, 4),
        bucket_seconds=(1.1, 2.0),
        speed_perturb=(0.9, 1.0, 1.1),
        noise_share=0.5,
        nonspeech_share=1 / 3,
        tokenizer=str(path),
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
    """The first 18 global batches of an uninterrupted host: two epochs and more."""
    iterator = iterators.make_train_iterator(config)
    batches = [next(iterator) for _ in range(STEPS)]
    assert iterator.epoch >= 2 and not iterator.report.counts
    iterator.close()
    return batches


# Without noise nothing changes.


def test_off_is_the_plan_that_there_was_before_noise():
    """Golden: what the commit before this feature planned, and its fingerprint."""
    seconds = np.linspace(0.6, 7.5, 40)
    labels = np.floor(seconds * 5).astype(np.int64) + 1
    plan = TrainPlan(
        [np.arange(30), np.arange(30, 40)],
        [1.0, 1.5],
        Lengths(seconds, labels, np.zeros_like(labels), labels),
        SHAPES,
        Perturbations((0.9, 1.0, 1.1)),
        seed=5,
    )
    digest = hashlib.sha256()
    for batch in (batch for epoch in range(3) for batch in plan.epoch(epoch)):
        assert batch.draws is None
        rows = (batch.indices.tolist(), batch.speeds.tolist(), batch.repeated)
        digest.update(repr((batch.epoch, batch.bucket, *rows)).encode())
    assert digest.hexdigest()[:16] == "a0d42746e8758bae"
    assert iterators._hash_plan(plan) == "cb195e711d79717a"


def test_noise_of_share_zero_is_no_noise(config):
    off = replace(config, noise_share=0.0, nonspeech_share=0.0)
    plain = DataConfig(
        sources=off.sources,
        batch_size=off.batch_size,
        bucket_seconds=off.bucket_seconds,
        speed_perturb=off.speed_perturb,
        tokenizer=off.tokenizer,
        seed=off.seed,
    )
    other = replace(off, noise_snr=(0.0, 1.0), noise_sources=("/nowhere",))
    first, second = map(iterators.make_train_iterator, (plain, other))
    assert first.get_state() == second.get_state()
    for one, two in zip(take(first, 6), take(second, 6)):
        assert_same(one, two)


def test_evaluation_hears_neither_noise_nor_silence(config):
    batches = list(iterators.iterate_eval(replace(config, noise_share=1.0)))
    index = np.concatenate([batch["index"] for batch in batches])
    assert sorted(index[index >= 0].tolist()) == list(range(22))
    corpus = iterators.open_corpus(config)
    for batch in batches:
        for row in np.flatnonzero(batch["valid"]):
            samples = batch["audio"][row][batch["audio_mask"][row]]
            record = corpus[int(batch["index"][row])]
            np.testing.assert_array_equal(samples, reading.decode(record["audio"]))


# The laws.


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_law_3_hosts_hear_the_same_noise(config, straight, hosts):
    shares = [
        take(iterators.make_train_iterator(config, rank=rank, hosts=hosts), STEPS)
        for rank in range(hosts)
    ]
    for step, batch in enumerate(straight):
        parts = [share[step] for share in shares]
        assert_same(
            {key: np.concatenate([part[key] for part in parts]) for key in batch}, batch
        )


@pytest.mark.parametrize("threads, cache", [(0, 0.0), (3, 9.0), (1, 0.1)])
def test_law_3_threads_and_cache_change_nothing(config, straight, threads, cache):
    other = replace(config, threads=threads, cache_mb=cache)
    for first, second in zip(
        take(iterators.make_train_iterator(other), STEPS), straight
    ):
        assert_same(first, second)


def test_law_3_worker_processes_change_nothing(config, straight):
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    other = replace(config, workers=2, threads=1)
    for first, second in zip(take(iterators.make_train_iterator(other), 5), straight):
        assert_same(first, second)


@pytest.mark.parametrize("step", [1, 4, 9])
def test_law_2_noise_is_the_same_after_a_restart(config, straight, step):
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
    [{"noise_share": 0.4}, {"noise_snr": (9.0, 5.0)}, {"nonspeech_share": 0.2}],
)
def test_a_state_of_other_noise_is_refused(config, change):
    state = iterators.make_train_iterator(config).get_state()
    other = iterators.make_train_iterator(replace(config, **change))
    with pytest.raises(ValueError, match=r"speeds, noise, hints, seed"):
        other.set_state(state)


# What a batch holds.


def test_rows_hold_what_was_drawn(config, straight):
    plan = iterators.make_train_iterator(config).plan
    corpus = iterators.open_corpus(config)
    seen = Counter()
    for step, batch in enumerate(straight):
        planned = plan[step]
        for row, index in enumerate(batch["index"].tolist()):
            samples = batch["audio"][row][batch["audio_mask"][row]]
            draw = planned.draws[row]
            if index >= 22:
                assert draw is None
                continue
            clean = reading.to_float32(
                reading.to_int16(reading.decode(corpus[index]["audio"]))
            )
            clean = reading.change_speed(clean, planned.speeds[row])
            if draw is None:
                np.testing.assert_array_equal(samples, clean)
                continue
            seen[draw.kind] += 1
            size = batch["audio"].shape[1]
            padded = mixing.pad_silence(clean, draw.lead, draw.tail, size)
            assert len(samples) == len(padded)
            # The noise covers the silences; where nothing clips, what is left is it.
            assert samples[:50].any() and samples[-50:].any()
            if np.abs(samples).max() < 0.999:
                active = mixing.find_active(padded)
                left = mixing.measure_power((samples - padded)[active])
                ratio = mixing.measure_power(padded[active]) / left
                assert 10 * np.log10(ratio) == pytest.approx(draw.snr, abs=0.01)
    assert set(seen) == {"babble", "vehicle", "music"}


def test_the_plan_draws_a_fifth_and_leaves_room():
    count = 10_000
    seconds = np.random.default_rng(0).uniform(0.6, 8.0, count)
    ones = np.ones(count, np.int64)
    plan = TrainPlan(
        [np.arange(count)],
        [1.0],
        Lengths(seconds, ones, ones * 0, ones),
        SHAPES,
        Perturbations((0.9, 1.0, 1.1), noise_draws.Distribution()),
        num_speech=count - 1000,
    )
    kinds, buckets = Counter(), Counter()
    for batch in plan.epoch(0):
        rows = slice(0, len(batch.indices) - batch.repeated)
        draws, indices = batch.draws, batch.indices
        whole = seconds[indices] / batch.speeds + draws.lead + draws.tail
        assert (whole <= SHAPES[batch.bucket].seconds + 1e-9).all()
        speech = indices[rows] < count - 1000
        assert (draws.kinds[rows][~speech] < 0).all()
        kinds.update(draws.kinds[rows][speech].tolist())
        buckets[batch.bucket] += len(draws.kinds)
    noisy = 9000 - kinds[-1]
    assert abs(noisy - 1800) < 4 * np.sqrt(9000 * 0.2 * 0.8)
    for code in range(3):
        assert abs(kinds[code] - noisy / 3) < 4 * np.sqrt(noisy * 2 / 9)
    again = [batch.draws.seeds.tolist() for batch in plan.epoch(1)]
    assert again != [batch.draws.seeds.tolist() for batch in plan.epoch(0)]


def test_an_example_that_fills_the_largest_bucket_gets_no_silence(
    tmp_path, make_tone, write_manifest
):
    soundfile.write(tmp_path / "long.wav", make_tone(1.995), 16000)
    row = {"audio": "long.wav", "text": "hi"}
    config = DataConfig(
        sources=(str(write_manifest(tmp_path / "m.jsonl", [row] * 8)),),
        batch_size=8,
        bucket_seconds=(2.0,),
        noise_share=1.0,
    )
    batch = take(iterators.make_train_iterator(config), 1)[0]
    sizes = batch["audio_mask"].sum(1)
    assert (sizes >= 31_920).all() and (sizes <= 32_000).all() and batch["valid"].all()


def test_the_cache_holds_clean_samples(config):
    iterator = iterators.make_train_iterator(
        replace(config, noise_share=1.0, cache_mb=9.0, threads=0)
    )
    for _ in range(6):
        next(iterator)
    corpus, cache = iterators.open_corpus(config), iterator._load.loader.cache
    kept = {index for index in range(60) if cache.get(index) is not None}
    assert len(kept) > 15 and max(kept) < 22
    for index in kept:
        clean = reading.to_int16(reading.decode(corpus[index]["audio"]))
        np.testing.assert_array_equal(cache.get(index), clean)


# Babble.


def test_babble_never_uses_the_example_itself(config, corpus_path):
    """Not even under another number: here every recording is there twice or thrice."""
    doubled = (str(corpus_path), str(corpus_path), f"{corpus_path}?lang=zh")
    examples = survey(replace(config, sources=doubled), SkipReport(), training=True)
    augmenter = Augmenter(examples, None, 0)
    assert len(augmenter.voices) == 22
    corpus, sizes, chosen = examples.corpus, Counter(), Counter()
    for index in range(examples.num_speech):
        own = corpus[index]["audio"]
        for seed in range(40):
            voices = augmenter.choose_voices(np.random.default_rng(seed), index)
            heard = [corpus[int(voice)]["audio"] for voice in voices]
            assert own not in heard and len(set(heard)) == len(heard)
            sizes[len(heard)] += 1
            chosen.update(heard)
    assert set(sizes) == {3, 4, 5, 6, 7} and len(chosen) == 22


def test_babble_reads_what_was_chosen(config):
    examples = survey(config, SkipReport(), training=True)
    augmenter = Augmenter(examples, None, 0)
    speech, asked = np.full(8000, 0.1, np.float32), []
    draw = noise_draws.Draw("babble", 10.0, 0.1, 0.1, seed=5)

    def read_voice(index: int) -> np.ndarray:
        asked.append(index)
        if len(asked) == 1:
            raise reading.AudioError("truncated", "a.wav", "it breaks off")
        return np.random.default_rng(index).normal(size=5000).astype(np.float32)

    mixed = augmenter.add_noise(speech, 7, draw, 20_000, read_voice)
    expected = augmenter.choose_voices(np.random.default_rng(5), 7)
    assert asked == expected.tolist() and 7 not in asked
    assert len(mixed) == 8000 + 2 * 1600

    def fail(index: int) -> np.ndarray:
        raise reading.AudioError("missing file", f"{index}.wav", "gone")

    with pytest.raises(reading.AudioError, match="gone"):
        augmenter.add_noise(speech, 7, draw, 20_000, fail)


def test_one_recording_makes_no_babble(tmp_path, make_tone, write_manifest):
    soundfile.write(tmp_path / "a.wav", make_tone(1.0), 16000)
    rows = [{"audio": "a.wav", "text": text} for text in ("hi", "hello")]
    config = DataConfig(
        sources=(str(write_manifest(tmp_path / "m.jsonl", rows)),),
        batch_size=2,
        bucket_seconds=(3.0,),
        noise_share=1.0,
    )
    iterator = iterators.make_train_iterator(config)
    assert iterator.plan.distribution.kinds == ("vehicle", "music")
    assert not take(iterator, 3)[0]["valid"].sum() < 2


# Without speech.


def test_examples_without_speech_are_valid_and_end_at_once(config, straight):
    end = tokenizer.Tokenizer.from_file(config.tokenizer).end_id
    corpus = iterators.open_corpus(config)
    assert len(corpus) == 33
    lengths, heard = set(), {}
    for batch in straight:
        silent = batch["index"] >= 22
        assert batch["valid"].all()
        assert not batch["phonemes_mask"][silent].any()
        assert (batch["tokens_mask"][silent].sum(1) == 1).all()
        assert (batch["tokens"][silent, 0] == end).all()
        assert (batch["tokens_mask"][~silent].sum(1) > 1).all()
        for row in np.flatnonzero(silent):
            samples = batch["audio"][row][batch["audio_mask"][row]]
            assert len(samples) > 400 and np.abs(samples).max() < 1
            lengths.add(len(samples))
            index = int(batch["index"][row])
            assert corpus[index]["text"] == ""
            heard.setdefault(index, []).append(samples)
    assert len(lengths) > 5 and set(heard) == set(range(22, 33))
    # Another epoch, another sound; the rows that fill a batch are copies.
    different = [len({part.tobytes() for part in parts}) for parts in heard.values()]
    assert max(different) >= 2


def test_the_share_without_speech_is_exact_in_every_bucket(tmp_path, write_manifest):
    seconds = np.random.default_rng(0).choice([0.8, 1.5, 3.0, 6.0], 9500)
    rows = [{"audio": "a.wav", "text": "hi", "duration": s} for s in seconds.tolist()]
    config = DataConfig(
        sources=(str(write_manifest(tmp_path / "m.jsonl", rows)),),
        batch_size=10,
        bucket_seconds=(1.0, 2.0, 4.0, 8.0),
        nonspeech_share=0.05,
        needs=("tokens",),
    )
    plan = iterators.make_train_iterator(config).plan
    all_of_them, silent = Counter(), Counter()
    for batch in plan.epoch(1):
        for index in batch.indices[: len(batch.indices) - batch.repeated]:
            all_of_them[batch.bucket] += 1
            silent[batch.bucket] += index >= 9500
    assert silent.total() == 500 and all_of_them.total() == 10_000
    for bucket in range(4):
        share = silent[bucket] / all_of_them[bucket]
        assert abs(share - 0.05) < 4 * np.sqrt(0.05 * 0.95 / all_of_them[bucket])


def test_sound_without_speech_hangs_on_seed_epoch_and_index(config):
    def make(seed=3, epoch=0, index=25) -> np.ndarray:
        examples = survey(config, SkipReport(), training=True)
        return Augmenter(examples, None, seed).make_nonspeech(epoch, index, 4000)

    np.testing.assert_array_equal(make(), make())
    sounds = [make(), make(seed=4), make(epoch=1), make(index=26)]
    assert len({sound.tobytes() for sound in sounds}) >= 3  # two may be mute


def test_unusable_speech_is_not_counted_for_the_share(tmp_path, write_manifest):
    rows = [{"audio": "a.wav", "text": "hi", "duration": 1.0}] * 60
    rows += [{"audio": "a.wav", "text": "hi", "duration": 99.0}] * 40
    config = DataConfig(
        sources=(str(write_manifest(tmp_path / "m.jsonl", rows)),),
        nonspeech_share=0.25,
        needs=("tokens",),
    )
    examples = survey(config, SkipReport(), training=True)
    assert examples.usable[:100].sum() == 60 and examples.usable[100:].sum() == 20
    assert len(examples.corpus) == len(iterators.open_corpus(config)) == 133
    assert (examples.lengths.seconds[100:] == 1.0).all()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"noise_share": 1.1}, "noise share 1.1"),
        ({"noise_snr": (10.0, -5.0)}, "noise SNR"),
        ({"nonspeech_share": 1.0}, "nonspeech_share 1.0; expected 0"),
        ({"nonspeech_share": -0.1}, "nonspeech_share"),
    ],
)
def test_bad_configurations(config, change, message):
    with pytest.raises(ValueError, match=message):
        iterators.make_train_iterator(replace(config, **change))


def test_sound_without_speech_comes_from_the_files():
    def read_noise(rng, size):
        return np.full(size, 0.5, np.float32)

    sounds = [
        nonspeech.make(np.random.default_rng(seed), 50, read_noise)
        for seed in range(60)
    ]
    recorded = sum(sound.any() and (sound == sound[0]).all() for sound in sounds)
    assert 30 < recorded < 50
