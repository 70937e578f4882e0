"""Labels, padding and the sample cache."""

import itertools
import pickle

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from nim4_jax.data import pipeline, transforms
from nim4_jax.data.pipeline import DataConfig
from nim4_jax.text import tokenizer

rows_of_ids = st.lists(st.lists(st.integers(0, 3), max_size=6), max_size=6)


@given(rows_of_ids)
def test_ragged_rows_are_the_rows(rows):
    ragged = transforms.Ragged(rows)
    assert [ragged[index].tolist() for index in range(len(ragged))] == rows
    assert ragged.lengths.tolist() == [len(row) for row in rows]
    repeats = [sum(a == b for a, b in itertools.pairwise(row)) for row in rows]
    assert ragged.count_repeats().tolist() == repeats


@given(rows_of_ids.filter(bool), st.integers(0, 4))
def test_padding_keeps_the_rows_and_masks_the_rest(rows, extra):
    width = max(map(len, rows)) + extra
    arrays = [np.array(row, np.int32) for row in rows]
    values, mask = transforms.pad_rows(arrays, width, np.int32)
    assert values.shape == mask.shape == (len(rows), width)
    assert [v[m].tolist() for v, m in zip(values, mask)] == rows
    assert not values[~mask].any()


def test_the_cache_is_bounded_and_travels_empty():
    cache = transforms.SampleCache(0.001)  # 1,000 bytes
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
    corpus = pipeline.open_corpus(config)
    batch = next(pipeline.make_train_iterator(config))
    assert batch["phonemes"].shape == (4, 1) and not batch["phonemes_mask"].any()
    for row, index in enumerate(batch["index"]):
        tokens = batch["tokens"][row][batch["tokens_mask"][row]].tolist()
        assert tokens[-1] == model.end_id
        assert model.decode(tokens[:-1]) == corpus[int(index)]["text"]
