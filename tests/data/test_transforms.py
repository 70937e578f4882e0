"""Labels, padding and the sample cache."""

import itertools
import pickle

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from nim4_jax.data.audio import reading
from nim4_jax.data.pipeline import iterators, transforms
from nim4_jax.data.pipeline.iterators import DataConfig
from nim4_jax.data.sources import sample_cache
from nim4_jax.text import tokenizer

rows_of_ids = st.lists(st.lists(st.integers(0, 3), max_size=6), max_size=6)


@given(rows_of_ids)
def test_ragged_rows_are_the_rows(rows):
    ragged = transforms.Ragged(rows)
    assert [ragged[index].tolist() for index in range(len(ragged))] == rows
    assert ragged.lengths.tolist() == [len(row) for row in rows]
    repeats = [sum(a == b for a, b in itertools.pairwise(row)) for row in rows]
    assert ragged.count_repeats().tolist() == repeats


@given(rows_of_ids, rows_of_ids)
def test_ragged_rows_are_joined(first, second):
    joined = transforms.Ragged(first).join(transforms.Ragged(second))
    whole = transforms.Ragged(first + second)
    assert [joined[i].tolist() for i in range(len(joined))] == first + second
    assert joined.lengths.tolist() == whole.lengths.tolist()
    assert joined.count_repeats().tolist() == whole.count_repeats().tolist()


@given(rows_of_ids.filter(bool), st.integers(0, 4))
def test_padding_keeps_the_rows_and_masks_the_rest(rows, extra):
    width = max(map(len, rows)) + extra
    arrays = [np.array(row, np.int32) for row in rows]
    values, mask = transforms.pad_rows(arrays, width, np.int32)
    assert values.shape == mask.shape == (len(rows), width)
    assert [v[m].tolist() for v, m in zip(values, mask)] == rows
    assert not values[~mask].any()


def test_the_cache_is_bounded_and_travels_empty():
    cache = sample_cache.SampleCache(0.001)  # 1,000 bytes
    samples = np.arange(300, dtype=np.int16)
    cache.put(0, samples)
    cache.put(1, samples)
    cache.put(0, samples)
    assert cache.get(0) is samples and cache.get(1) is None
    assert cache.megabytes_used == 0.0006
    copy = pickle.loads(pickle.dumps(cache))
    assert copy.get(0) is None
    copy.put(5, np.arange(500, dtype=np.int16))
    assert copy.get(5) is not None


def test_tokens_end_with_the_end_of_turn(corpus_path, tmp_path):
    model = tokenizer.train(["hi", "好", "hello there"], 400)
    path = tmp_path / "tokenizer.json"
    model.save(path)
    config = DataConfig(
        sources=(str(corpus_path),),
        batch_size=4,
        bucket_seconds=(2.0,),
        needs=("tokens",),
        tokenizer=str(path),
        threads=0,
    )
    corpus = iterators.open_corpus(config)
    batch = next(iterators.make_train_iterator(config))
    assert batch["phonemes"].shape == (4, 1) and not batch["phonemes_mask"].any()
    for row, index in enumerate(batch["index"]):
        tokens = batch["tokens"][row][batch["tokens_mask"][row]].tolist()
        assert tokens[-1] == model.end_id
        assert model.decode(tokens[:-1]) == corpus[int(index)]["text"]


def test_nothing_said_is_not_a_missing_transcript(tmp_path):
    model = tokenizer.train(["hi", "好", "hello there"], 400)
    path = str(tmp_path / "tokenizer.json")
    model.save(path)
    texts = ["hi", "", "  ", None]
    spoken, written = transforms.encode_text(texts, ("phonemes", "tokens"), path)
    assert [len(spoken[row]) > 0 for row in range(4)] == [True, False, False, False]
    assert written[0][-1] == model.end_id and len(written[0]) > 1
    assert [written[row].tolist() for row in (1, 2, 3)] == [[], [], [model.end_id]]
    _, written = transforms.encode_text([None], ("phonemes",), path)
    assert not len(written[0])


def test_what_the_cache_holds_is_no_longer_than_the_bucket(tmp_path, make_tone):
    soundfile.write(tmp_path / "a.wav", make_tone(1.5), 16000)
    record = {"audio": str(tmp_path / "a.wav"), "origin": "m.jsonl:1"}
    kept = None
    for _ in range(2):  # the second time from the cache
        for speed, limit in ((1.0, 1.0), (1.4, 1.0), (0.9, 1.5)):
            with pytest.raises(reading.AudioError, match="too long"):
                transforms.load_samples(
                    record, speed=speed, max_seconds=limit, cached=kept
                )
        samples, kept = transforms.load_samples(
            record, speed=1.0, max_seconds=1.5, cached=kept
        )
        assert len(samples) == len(kept) == 24_000
