"""A layer changes as a whole, or not at all."""

import concurrent.futures
import threading
import tracemalloc

import numpy as np
import pytest

from nim4_jax.retrieval import database, generations, hypothesis
from nim4_jax.retrieval.gate import LATTICE, NOWHERE, SCANN, Gate
from nim4_jax.retrieval.hotwords import NEAR, HotwordRetriever, StreamState
from nim4_jax.retrieval.layer import Layer
from nim4_jax.retrieval.names import Name
from nim4_jax.retrieval.pronunciation import pronounce
from nim4_jax.text.phonemes import INVENTORY

OPEN = Gate(min_phonemes=1, max_chance=float("inf"))


def write(folder, *texts, near=LATTICE):
    names = [Name(text) for text in texts]
    base = database.build(names, {name.text: pronounce(name) for name in names})
    database.save(database.add_index(base) if near == SCANN else base, str(folder))
    return database.load(str(folder), near)


def find_nearly(served, text):
    """Whether a layer finds a name of which one phoneme was taken for another."""
    spoken = np.frombuffer(pronounce(Name(text))[0], np.uint8)
    heard = spoken.copy()
    heard[2] = next(label for label in range(1, 99) if label not in spoken)
    ratios = np.full((len(spoken), len(INVENTORY)), 1e-5)
    ratios[range(len(spoken)), spoken] = 0.2
    ratios[range(len(spoken)), heard] = 1.0
    log_probs = np.log(ratios / ratios.sum(axis=1, keepdims=True))
    said = hypothesis.Hypothesis(heard, np.arange(len(heard)), log_probs)
    state, _ = HotwordRetriever([served]).scan(
        StreamState(), said.phonemes, said.log_probs, said.times
    )
    return text in {hit.text for hit in state.hits if hit.source == NEAR}


def find(served, text):
    """Whether a layer finds a name in its own phonemes."""
    heard = np.frombuffer(pronounce(Name(text))[0], np.uint8)
    found = set()
    for part, gone in (
        (served.served.base, served.served.removed),
        (served.served.added, frozenset()),
    ):
        _, matches = part.database.machine.scan(0, heard, allowed=part.allowed)
        found |= {n.text for k in matches.keys for n in part.database.names_of(int(k))}
        found -= gone
    return text in found


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_merge_keeps_what_is_served_and_empties_the_additions(tmp_path, elsewhere):
    layer = Layer(write(tmp_path, "Weilai", "Tesla", "上海"), OPEN)
    layer.add([Name("Nanjing", weight=2.0), Name("Tesla", tag="car")])
    layer.remove(["上海"])
    if elsewhere:
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            layer.merge(str(tmp_path), pool)
    else:
        layer.merge(str(tmp_path))
    assert layer.size == 0 and not layer.served.removed
    assert [find(layer, t) for t in ("Weilai", "Tesla", "Nanjing")] == [True] * 3
    assert not find(layer, "上海")
    base = database.load(str(tmp_path))
    names = {name.text: name for name in map(base.name, range(len(base)))}
    assert names["Tesla"].tag == "car" and names["Nanjing"].weight == 2.0


def test_what_changes_during_a_merge_stays_changed(tmp_path):
    layer = Layer(write(tmp_path, "Weilai", "Tesla"), OPEN)
    layer.add([Name("Nanjing"), Name("Toronto")])

    class Meanwhile:
        def submit(self, work):
            work()
            layer.remove(["Nanjing", "Tesla"])
            layer.add([Name("Toronto", weight=3.0), Name("Lisbon")])
            return concurrent.futures.Future()

    class Done(Meanwhile):
        def submit(self, work):
            future = super().submit(work)
            future.set_result(None)
            return future

    layer.merge(str(tmp_path), Done())
    assert [find(layer, t) for t in ("Weilai", "Toronto", "Lisbon")] == [True] * 3
    assert not find(layer, "Nanjing") and not find(layer, "Tesla")
    assert layer.size == 2
    layer.merge(str(tmp_path))
    assert layer.size == 0 and find(layer, "Lisbon") and not find(layer, "Nanjing")


def test_near_matches_are_found_wherever_a_folder_keeps_its_index(tmp_path, near):
    """Mapped, added to, taken from, merged, swapped, and opened by another reader."""
    folder = str(tmp_path)
    layer = Layer(write(tmp_path, "Weilai", "Nanjing", "Toronto", near=near), near=near)
    before = Layer(database.load(folder, near), near=near)
    layer.add([Name("Guadalajara")])
    layer.remove(["Nanjing"])
    for merged in (False, True):
        if merged:
            layer.merge(folder)
        assert layer.size == 1 - merged
        assert find_nearly(layer, "Weilai") and find_nearly(layer, "Guadalajara")
        assert not find_nearly(layer, "Nanjing")
    assert find_nearly(before, "Nanjing") and not find_nearly(before, "Guadalajara")
    layer.swap(database.load(folder))  # without its index: it is built
    other = Layer(database.load(folder, near), near=near)
    for one in (layer, other):
        assert find_nearly(one, "Guadalajara") and not find_nearly(one, "Nanjing")
    assert not find_nearly(Layer(database.load(folder), near=NOWHERE), "Weilai")
    kept = (SCANN,) if near == SCANN else ()
    assert generations.find_attached(folder) == kept


def test_an_empty_layer_and_folder_find_nothing_nearly(tmp_path, near):
    base = write(tmp_path, near=near)
    for layer in (Layer(near=near), Layer(base, near=near)):
        assert not find_nearly(layer, "Weilai")
        layer.add([Name("Weilai")])
        assert find_nearly(layer, "Weilai")


def test_a_folder_without_an_index_names_the_command_that_adds_it(tmp_path):
    write(tmp_path, "Weilai", "Tesla")
    command = rf"nim4 build_hotwords --out={tmp_path} --near=scann"
    with pytest.raises(ValueError, match=command):
        database.load(str(tmp_path), SCANN)
    database.index_folder(str(tmp_path))
    layer = Layer(database.load(str(tmp_path), SCANN), near=SCANN)
    assert find_nearly(layer, "Weilai")
    for call in (database.load, lambda folder, near: Layer(near=near)):
        with pytest.raises(ValueError, match="near='ann': use one of lattice, scann"):
            call(str(tmp_path), "ann")


def test_a_changed_index_is_found(tmp_path):
    write(tmp_path, "Weilai", near=SCANN)
    (file,) = tmp_path.glob("*/scann/windows.npy")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"scann/windows.npy was changed"):
        database.load(str(tmp_path), SCANN)
    assert len(database.load(str(tmp_path))) == 1  # who does not need it goes on


def test_a_corrupt_database_leaves_the_old_one_in_use(tmp_path):
    layer = Layer(write(tmp_path, "Weilai", "Tesla"), OPEN)
    layer.add([Name("Nanjing")])
    (symbols,) = tmp_path.glob("*/machine.symbol.npy")
    content = bytearray(symbols.read_bytes())
    symbols.unlink()  # the mapped one stays as it is
    content[-1] ^= 1
    symbols.write_bytes(content)
    with pytest.raises(ValueError, match="was changed: checksum"):
        layer.merge(str(tmp_path))
    with pytest.raises(ValueError, match="was changed: checksum"):
        layer.swap(database.load(str(tmp_path)))
    assert [find(layer, t) for t in ("Weilai", "Tesla", "Nanjing")] == [True] * 3
    assert layer.size == 1


def test_a_namesake_without_sound_hides_nobody():
    said = Name("😀", pronunciation="N IY OW")
    base = database.build([said], {said.text: pronounce(said)})
    layer = Layer(base, OPEN)
    assert layer.add([Name("😀")]) == [Name("😀")]
    assert not layer.served.removed and layer.size == 0
    other = Layer(gate=OPEN)
    assert other.add([said, Name("😀")]) == [Name("😀")]
    assert other.size == 1


def test_a_layer_of_one_name_is_small():
    """What a tenant's or a request's own names cost beside the names."""
    Layer(gate=OPEN).add([Name("Weilai")])  # what all layers share
    tracemalloc.start()
    layers = [Layer(gate=OPEN) for _ in range(10)]
    for layer in layers:
        layer.add([Name("Weilai")])
        part = layer.served.added
        assert len(part.database.windows.pairs) == 0
        assert len(part.database.windows.origins) == 256
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size < 10 * 16_384


def test_threads_that_add_lose_nothing():
    layer = Layer(gate=OPEN)
    words = [f"{a}{b}" for a in ("bar", "ten", "sol") for b in ("ka", "lo", "mi", "nu")]
    threads = [threading.Thread(target=layer.add, args=([Name(w)],)) for w in words]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(find(layer, word) for word in words)
