"""Text-only batches: laws 2 and 3, and what does not fit is counted."""

import json

import numpy as np
import pytest

from nim4_jax.data import grammar, text_pipeline
from nim4_jax.data.text_pipeline import TextConfig
from nim4_jax.launch.assembly import find_tokenizer
from nim4_jax.text.tokenizer import Tokenizer

TOKENIZER = find_tokenizer("nano")


def make_config(**changes):
    values = {
        "sources": ("grammar:commands",),
        "tokenizer": TOKENIZER,
        "batch_size": 8,
        "window": 3,
    }
    return TextConfig(**{**values, **changes})


def take(count, config, **place):
    data = text_pipeline.make_text_iterator(config, **place)
    return [next(data) for _ in range(count)]


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name, array in one.items():
        np.testing.assert_array_equal(array, other[name], err_msg=name)


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_divide_the_same_global_batches(hosts):
    config = make_config()
    whole = take(5, config)
    parts = [take(5, config, rank=rank, hosts=hosts) for rank in range(hosts)]
    for step, batch in enumerate(whole):
        rows = [part[step] for part in parts]
        joined = {name: np.concatenate([row[name] for row in rows]) for name in batch}
        assert_equal(batch, joined)


def test_a_restored_iterator_goes_on_as_if_undisturbed():
    config = make_config()
    whole = take(7, config)
    first = text_pipeline.make_text_iterator(config)
    for _ in range(4):
        next(first)
    second = text_pipeline.make_text_iterator(config)
    second.set_state(json.loads(json.dumps(first.get_state())))
    for step in range(4, 7):
        assert_equal(whole[step], next(second))


def test_texts_are_training_texts_and_each_index_comes_once():
    config = make_config()
    tokenizer = Tokenizer.from_file(TOKENIZER)
    seen = []
    for batch in take(6, config):
        seen.extend(batch["index"].tolist())
        for ids, mask in zip(batch["tokens"], batch["tokens_mask"]):
            kept = ids[mask].tolist()
            assert kept[-1] == tokenizer.end_id
            assert not grammar.is_held_out(tokenizer.decode(kept[:-1]))
    assert sorted(seen) == list(range(48))


def test_texts_that_do_not_fit_are_counted_and_replaced(tmp_path):
    path = tmp_path / "texts.jsonl"
    texts = ["call anna", "open the window " * 30, "?!"]
    lines = [{"audio": "a.wav", "text": text, "lang": "en"} for text in texts]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = text_pipeline.make_text_iterator(make_config(sources=(str(path),)))
    batch = next(data)
    assert (batch["tokens_mask"].sum(1) == batch["tokens_mask"].sum(1)[0]).all()
    assert set(data.report.counts) == {"too many labels", "no phoneme"}


def test_only_texts_that_do_not_fit_is_an_error(tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text(json.dumps({"audio": "a.wav", "text": "?!", "lang": "en"}) + "\n")
    data = text_pipeline.make_text_iterator(make_config(sources=(str(path),)))
    with pytest.raises(ValueError, match="texts in a row do not fit"):
        next(data)
