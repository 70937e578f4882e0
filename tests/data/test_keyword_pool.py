"""The pool of names: bounded, the same everywhere, and silent about nothing."""

import tracemalloc

import pytest

from nim4_jax.data.pipeline import keyword_pool
from nim4_jax.data.pipeline.keyword_pool import KeywordPool
from nim4_jax.data.sources import examples, opening


class Calls:
    """A source as long as one likes, of which nothing is kept."""

    def __init__(self, size: int, keyed: bool = True):
        self.size, self.has_keywords = size, keyed

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        name = f"anna {index % 7919}"
        named = (name, "not said") if self.has_keywords else ()
        return {"text": f"call {name}", "keywords": named, "origin": f"calls:{index}"}


def measure(size: int) -> tuple[KeywordPool, float]:
    corpus = examples.Corpus([Calls(size)])
    tracemalloc.start()
    pool = KeywordPool.open(corpus, (), 300, 0)
    peak = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    return pool, peak


def test_memory_does_not_grow_with_the_corpus():
    """30 million texts, 50,000 hours, as 3,000."""
    measure(10)  # imports, caches
    _, few = measure(3_000)
    pool, many = measure(30_000_000)
    assert many < few + 1.0
    assert len(pool.names) == 300 == len(set(pool.names)) and not pool.found


def test_keywords_are_read_with_their_example_and_only_said_ones():
    pool = KeywordPool.open(examples.Corpus([Calls(30_000_000)]), (), 20, 0)
    assert pool.read(12_345_678) == ("call anna 7876", ("anna 7876",))
    again = KeywordPool.open(examples.Corpus([Calls(30_000_000)]), (), 20, 0)
    other = KeywordPool.open(examples.Corpus([Calls(30_000_000)]), (), 20, 1)
    assert pool.names == again.names != other.names
    with pytest.raises(ValueError, match="pool=0"):
        KeywordPool.open(examples.Corpus([Calls(3)]), (), 0, 0)


def test_small_sources_without_keywords_are_looked_through_beside_large_ones():
    corpus = examples.Corpus([Calls(100_000), Calls(60, keyed=False)])
    pool = KeywordPool.open(corpus, ["anna 7"], 50, 0)
    assert pool.read(100_007) == ("call anna 7", ("anna 7",))
    assert set(pool.found) <= set(range(100_000, 100_060))


def test_many_texts_without_keywords_name_the_command(monkeypatch):
    monkeypatch.setattr(keyword_pool, "MOST_SEARCHED", 50)
    corpus = examples.Corpus(
        [Calls(10**9), Calls(30, keyed=False), Calls(21, keyed=False)]
    )
    with pytest.raises(ValueError, match=r"51 texts .*calls; calls.*nim4 keywords"):
        KeywordPool.open(corpus, (), 10, 0)


def test_who_carries_keywords(tmp_path):
    for keywords, carries in (("", False), (', "keywords": []', True)):
        path = tmp_path / "m.jsonl"
        # An escape is cleaned, and must not leave a key behind.
        path.write_text(f'{{"audio": "a", "text": "\\u5317\\u4eac"{keywords}}}')
        assert examples.carries_keywords(opening.open_source(str(path))) == carries
    for name, carries in (("commands", True), ("names", True), ("prompts", False)):
        source = opening.open_source(f"bundled:{name}:test")
        assert examples.carries_keywords(source) == carries
