"""An index gives nearly what comparing everything gives, saved and changed too."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nim4_jax.eval.measures import hypotheses
from nim4_jax.retrieval import phonetic_index
from nim4_jax.retrieval.phonetic_index import NEIGHBOURS, PhoneticIndex
from nim4_jax.retrieval.verification import Acoustics
from nim4_jax.retrieval.windows import WIDTH
from nim4_jax.text.phonemes import INVENTORY

pytest.importorskip("scann")

CLASSES = len(INVENTORY)


def draw_windows(count, seed=0):
    """Distinct random windows, in no order."""
    rng = np.random.default_rng(seed)
    drawn = rng.integers(1, CLASSES, (2 * count + 10, WIDTH)).astype(np.uint8)
    return rng.permutation(np.unique(drawn, axis=0))[:count]


def hear(windows, seed=0):
    """Embeddings of windows, each heard once with one phoneme of four wrong."""
    rng = np.random.default_rng(seed)
    log_ratios = -rng.gamma(3.0, 4.0, (len(windows), WIDTH, CLASSES))
    np.put_along_axis(log_ratios, windows[:, :, None].astype(int), 0.0, axis=2)
    every, wrong = np.arange(len(windows)), rng.integers(0, WIDTH, len(windows))
    taken = rng.integers(1, CLASSES, len(windows))
    log_ratios[every, wrong, windows[every, wrong]] = -rng.exponential(3.2, len(every))
    log_ratios[every, wrong, taken] = 0.0
    return np.concatenate([phonetic_index.embed_heard(one) for one in log_ratios])


def compare_all(windows, heard, most):
    exact = phonetic_index.Exact(phonetic_index.embed(windows))
    return exact.search_batched(heard, most)[0]


def recall(index, heard, most=10):
    """Share of the nearest that an index gives as its first."""
    expected = compare_all(index.windows, heard, most)
    found = index.search(heard)[:, :most]
    return np.mean([len(set(a) & set(b)) / most for a, b in zip(found, expected)])


def as_set(windows):
    return {window.tobytes() for window in windows}


@pytest.fixture(scope="module")
def large():
    """An index with a tree."""
    windows = draw_windows(8000)
    assert len(windows) > phonetic_index._SMALL
    return PhoneticIndex.build(windows)


def test_a_large_index_recalls_what_is_nearest(large):
    heard = hear(large.windows[::20])
    assert large.search(heard).shape == (len(heard), NEIGHBOURS)
    assert recall(large, heard) >= 0.9


@pytest.mark.parametrize("count", [1, 7, 300])
def test_a_small_index_finds_exactly_the_nearest(count):
    windows = draw_windows(count)
    heard, most = hear(draw_windows(60, seed=1)), min(count, NEIGHBOURS)
    rows = PhoneticIndex.build(windows).search(heard)
    expected = compare_all(windows, heard, most)
    assert rows.shape == expected.shape == (len(heard), most)
    scores = heard @ phonetic_index.embed(windows).T
    found, wanted = (
        np.take_along_axis(scores, r.astype(int), 1) for r in (rows, expected)
    )
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert (np.diff(found, axis=1) <= 1e-5).all()
    assert all(len(set(row)) == most for row in rows.tolist())


def test_saved_and_loaded_finds_the_same(large, tmp_path):
    heard, folder = hear(large.windows[:50]), str(tmp_path / "index")
    for index in (large, PhoneticIndex.build(large.windows[:200])):
        index.save(folder)
        again = PhoneticIndex.load(folder)
        np.testing.assert_array_equal(again.windows, index.windows)
        np.testing.assert_array_equal(again.search(heard), index.search(heard))
    with pytest.raises(ValueError, match=r"no phonetic index in .*nowhere"):
        PhoneticIndex.load(str(tmp_path / "nowhere"))


@pytest.mark.parametrize(("size", "kept", "added"), [(8000, 7000, 500), (300, 150, 90)])
def test_an_updated_index_finds_what_was_added_and_not_what_was_removed(
    size, kept, added, tmp_path
):
    before, folder = draw_windows(size), str(tmp_path / "index")
    PhoneticIndex.build(before).save(folder)
    old = as_set(before)
    others = draw_windows(added, seed=2)
    fresh = np.array([one for one in others if one.tobytes() not in old])
    wanted = np.random.default_rng(3).permutation([*before[-kept:], *fresh])
    after = PhoneticIndex.load(folder).updated(wanted)
    assert len(after) == len(wanted) and as_set(after.windows) == as_set(wanted)
    own = after.search(phonetic_index.embed(after.windows))
    np.testing.assert_array_equal(own[:, 0], np.arange(len(wanted)))
    gone = before[:-kept]
    rows = after.search(phonetic_index.embed(gone))
    assert rows.max() < len(after)
    assert not as_set(after.windows[rows[:, 0]]) & as_set(gone)
    assert recall(after, hear(wanted[::10])) >= 0.9
    again = PhoneticIndex.load(folder)
    np.testing.assert_array_equal(again.windows, before)


def test_an_index_may_be_updated_again_and_to_what_it_was(tmp_path):
    windows, folder = draw_windows(400), str(tmp_path / "index")
    first = PhoneticIndex.build(windows[:300])
    first.save(folder)
    first.updated(windows[100:]).save(folder)
    again = PhoneticIndex.load(folder).updated(windows[:300])
    heard = hear(windows[:50])
    expected = first.windows[first.search(heard)]
    np.testing.assert_array_equal(again.windows[again.search(heard)], expected)


def test_rows_are_numbered_as_ascending_windows(large):
    ascending = np.array(sorted(map(tuple, large.windows)), np.uint8)
    numbers = large.number(ascending)
    np.testing.assert_array_equal(ascending[numbers], large.windows)
    for other in (ascending[1:], ascending[::-1], draw_windows(8000, seed=1)):
        with pytest.raises(ValueError, match="not the same ones"):
            large.number(other)


def test_a_window_heard_without_doubt_is_nearest_to_itself(large):
    sure = np.full((len(large), WIDTH, CLASSES), -20.0)
    np.put_along_axis(sure, large.windows[:, :, None].astype(int), 0.0, axis=2)
    heard = np.concatenate([phonetic_index.embed_heard(one) for one in sure[::4]])
    nearest = compare_all(large.windows, heard, 1)[:, 0]
    np.testing.assert_array_equal(nearest, np.arange(len(large))[::4])


@given(count=st.integers(0, 9), seed=st.integers(0, 2**32 - 1))
def test_runs_of_what_was_heard_are_unit_vectors_each_by_itself(count, seed):
    log_ratios = -np.random.default_rng(seed).gamma(2.0, 4.0, (count, CLASSES))
    log_ratios[range(count), range(1, count + 1)] = 0.0
    heard = phonetic_index.embed_heard(log_ratios)
    assert heard.shape == (max(count - WIDTH + 1, 0), WIDTH * phonetic_index.SIZE)
    np.testing.assert_allclose(np.linalg.norm(heard, axis=1), 1.0, rtol=1e-4)
    for start, vector in enumerate(heard):
        (alone,) = phonetic_index.embed_heard(log_ratios[start : start + WIDTH])
        np.testing.assert_allclose(vector, alone, atol=1e-6)


def test_queries_in_one_call_are_as_one_by_one(large):
    heard = hear(large.windows[:40])
    single = [large.search(vector[None])[0] for vector in heard]
    np.testing.assert_array_equal(large.search(heard), single)


def test_what_a_stream_says_is_found_where_it_says_it(large):
    spoken = np.concatenate(large.windows[:5]).tolist()
    heard = hypotheses.simulate(spoken, 0.0, np.random.default_rng(0))
    acoustics = Acoustics.empty(CLASSES).extend(
        heard.log_probs, heard.frames, heard.phonemes
    )
    rows, starts = large.find(acoustics, len(spoken))
    assert starts.tolist() == list(range(acoustics.position, len(spoken) - WIDTH + 1))
    for start, own in zip(starts, rows):
        if start % WIDTH == 0:
            assert start // WIDTH in own[:3]
    for fresh in (1, 6):
        few, places = large.find(acoustics, fresh)
        np.testing.assert_array_equal(places, starts[-fresh:])
        np.testing.assert_array_equal(few, rows[-fresh:])
    assert not len(large.find(acoustics, 0)[1])


def test_an_index_without_windows_finds_nothing(large, tmp_path):
    folder, heard = str(tmp_path / "index"), hear(large.windows[:3])
    PhoneticIndex.build(np.zeros((0, WIDTH), np.uint8)).save(folder)
    empty = PhoneticIndex.load(folder)
    assert empty.search(heard).shape == (3, 0)
    grown = empty.updated(large.windows[:5])
    assert grown.search(heard).shape == (3, 5)
    assert not len(grown.updated(large.windows[:0]))


@pytest.mark.parametrize("count", [5, 300])
def test_without_scann_an_index_of_its_own_finds_the_same(count, monkeypatch, tmp_path):
    """Saved with the package and opened without it, and the other way round."""
    windows, folder = draw_windows(count), str(tmp_path / "index")
    heard = hear(draw_windows(30, seed=1))
    made = PhoneticIndex.build(windows)
    made.save(folder)
    with monkeypatch.context() as patch:
        patch.setattr(phonetic_index, "has_scann", lambda: False)
        alone = PhoneticIndex.load(folder)
        assert isinstance(alone._searcher, phonetic_index.Exact)
        alone.updated(windows[:-1]).updated(windows).save(folder)
    again = PhoneticIndex.load(folder)
    for index in (alone, again):
        np.testing.assert_array_equal(index.windows, windows)
        np.testing.assert_array_equal(index.search(heard), made.search(heard))


def test_what_scann_cannot_read_is_named(tmp_path, large):
    folder = tmp_path / "index"
    large.save(str(folder))
    (folder / "scann_config.pb").write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"index is no index .*build it again"):
        PhoneticIndex.load(str(folder))
