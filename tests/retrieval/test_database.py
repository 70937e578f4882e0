"""A database gives back what was put in, from disk too, or says what is wrong."""

import concurrent.futures
import json
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nim4_jax.retrieval import database, generations, names
from nim4_jax.retrieval.chance import PhonemeBigrams
from nim4_jax.retrieval.names import Name
from nim4_jax.retrieval.pronunciation import pronounce

LIST = [
    Name("NIO"),
    Name("NIO House", tag="place"),
    Name("tomato", weight=2.0),
    Name("上海"),
    Name("伤害"),
    Name("商海"),
    Name("<|im_end|>", tag="trap"),
    Name("ET Seven 试驾", tag="car"),
]


class Expecting:
    bigrams = PhonemeBigrams.flat()

    def __init__(self, expect):
        self.expect = expect


def make(listed=LIST, background=None):
    readings = {name.text: pronounce(name) for name in listed}
    return database.build(listed, readings, background), readings


def find(base, reading):
    _, matches = base.machine.scan(0, np.frombuffer(reading, np.uint8))
    return {name.text for key in matches.keys for name in base.names_of(int(key))}


def test_every_reading_of_every_name_finds_it():
    base, readings = make()
    assert len(base) == len(LIST)
    for name in LIST:
        assert readings[name.text]
        for reading in readings[name.text]:
            assert name.text in find(base, reading)
    assert len(readings["tomato"]) == 2


@given(weight=st.floats(names.LIGHTEST, names.HEAVIEST))
def test_any_weight_is_kept_finite(weight):
    base, readings = make([Name("NIO", weight=weight), Name("Weilai")])
    assert base.weights.dtype == np.float32 and np.isfinite(base.weights).all()
    assert find(base, readings["NIO"][0]) == {"NIO"}


@pytest.mark.parametrize(
    "weight", [0.0, -1.0, 1e-9, 1e9, np.inf, np.nan, "2", None, 1e300]
)
def test_other_weights_are_no_weights(weight):
    with pytest.raises(
        ValueError, match=r"weight .* of 'NIO' .*(must be from|expected a number)"
    ):
        Name("NIO", weight=weight)


def test_of_many_names_of_one_sound_the_heaviest_come_first():
    listed = [
        Name(text, pronunciation="N IY OW", weight=weight)
        for text, weight in (("期中", 1.0), ("期终", 3.0), ("其中", 2.0))
    ]
    base, _ = make([*listed, Name("Weilai")])
    (key,) = [k for k in range(2) if len(base.names_of(k)) == 3]
    found = [name.text for name in base.names_of(key)]
    assert found == ["期终", "其中", "期中"]
    assert [n.text for n in base.names_of(key, 1)] == ["期终"]
    assert [n.text for n in base.names_of(key, 1, {"期终"})] == ["其中"]
    assert base.has(key, "其中") and not base.has(key, "其") and not base.has(key, "")


def test_homophones_share_a_key():
    base, readings = make([Name("期中"), Name("期终"), Name("起重")])
    assert readings["期中"] == readings["期终"] != readings["起重"]
    assert find(base, readings["期中"][0]) == {"期中", "期终"}
    assert len(base.machine.lengths) == 2


def test_saved_and_loaded_is_the_same(tmp_path):
    base, readings = make(background=Expecting(lambda keys: np.arange(len(keys)) / 7))
    database.save(base, str(tmp_path / "db"))
    again = database.load(str(tmp_path / "db"))
    for name, array in database._arrays(base).items():
        np.testing.assert_array_equal(database._arrays(again)[name], array)
    assert again.tag_names == base.tag_names
    assert {t: set(r) for t, r in again.read_readings().items()} == {
        t: set(r) for t, r in readings.items()
    }
    numbers = {again.name(i).text: again.name(i) for i in range(len(again))}
    assert numbers["tomato"].weight == 2.0 and numbers["NIO House"].tag == "place"


def test_a_new_generation_takes_the_place_of_the_old_which_stays_usable(tmp_path):
    folder = str(tmp_path / "db")
    first, readings = make()
    database.save(first, folder)
    old = database.load(folder)
    database.save(make([Name("Weilai")])[0], folder)
    new = database.load(folder)
    assert len(new) == 1
    assert "上海" in find(old, readings["上海"][0])
    # The generation before is kept, older ones are not.
    for _ in range(3):
        database.save(make([Name("Weilai")])[0], folder)
    kept = sorted(path.name for path in (tmp_path / "db").glob("*/"))
    assert kept == ["4", "5"]
    files = list((tmp_path / "db").glob("*/*.npy"))
    assert len(files) == 2 * len(database._arrays(new))


def test_a_writer_that_is_killed_leaves_what_was_there(tmp_path, monkeypatch):
    folder = str(tmp_path)
    database.save(make()[0], folder)

    def fill(*_):
        raise OSError("no room")

    with monkeypatch.context() as broken:
        broken.setattr(generations.whole_file, "write_text", fill)
        with pytest.raises(OSError, match="no room"):
            database.save(make([Name("Weilai")])[0], folder)
    assert len(database.load(folder)) == len(LIST)
    (tmp_path / "2").mkdir()  # as a killed one would leave it
    database.save(make([Name("Weilai")])[0], folder)
    assert len(database.load(folder)) == 1
    assert not (tmp_path / "2").exists()


def test_writers_and_readers_in_processes_see_whole_generations(tmp_path):
    """Two processes merge one name after the other while this one reads."""
    folder, texts = str(tmp_path), (("Weilai", "Tesla"), ("Nanjing", "Toronto"))
    database.save(make()[0], folder)
    code = """
        import sys
        from nim4_jax.retrieval import database
        from nim4_jax.retrieval.names import Name
        from nim4_jax.retrieval.pronunciation import pronounce
        for text in sys.argv[2:]:
            name = Name(text)
            database.rebuild(sys.argv[1], [name], {text: pronounce(name)}, set())
    """
    command = [sys.executable, "-c", textwrap.dedent(code), folder]
    writers = [subprocess.Popen([*command, *own]) for own in texts]
    sizes = []
    while any(writer.poll() is None for writer in writers):
        sizes.append(len(database.load(folder)))
    assert [writer.returncode for writer in writers] == [0, 0]
    sizes.append(len(database.load(folder)))
    assert sizes == sorted(sizes) and sizes[-1] == len(LIST) + 4


def test_a_reader_that_is_overtaken_reads_again(tmp_path, monkeypatch):
    folder = str(tmp_path)
    database.save(make()[0], folder)
    checked, writes = generations._verify, []

    def overtake(place, facts):
        if len(writes) < 2:
            writes.append(database.save(make([Name("Weilai")])[0], folder))
        return checked(place, facts)

    monkeypatch.setattr(generations, "_verify", overtake)
    assert len(database.load(folder)) == 1


def test_threads_that_rebuild_lose_no_name(tmp_path):
    database.save(make([])[0], str(tmp_path))
    texts = ["Weilai", "Tesla", "Nanjing", "Toronto", "Lisbon", "Osaka"]

    def merge(text):
        name = Name(text)
        database.rebuild(str(tmp_path), [name], {text: pronounce(name)}, set())

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        list(pool.map(merge, texts))
    base = database.load(str(tmp_path))
    assert {base.name(number).text for number in range(len(base))} == set(texts)


@given(data=st.data())
def test_any_changed_or_missing_byte_is_found(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("db")
    database.save(make()[0], str(folder))
    file = data.draw(st.sampled_from(sorted(folder.glob("*/*.npy"))))
    content = bytearray(file.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content[place] ^= data.draw(st.integers(1, 255))
        message = "was changed"
    else:
        content = content[:place]
        message = "bytes long"
    file.write_bytes(bytes(content))
    with pytest.raises(ValueError, match=rf"{file.name} (is|was).*{message}|{message}"):
        database.load(str(folder))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("format", 99, "format 99, this version reads 3"),
        ("phonemes", "0" * 64, "inventory 000000000000, this package"),
    ],
)
def test_another_format_or_inventory_is_refused(tmp_path, key, value, message):
    database.save(make()[0], str(tmp_path))
    path = tmp_path / database.MANIFEST
    manifest = json.loads(path.read_text(encoding="utf8"))
    path.write_text(json.dumps({**manifest, key: value}), encoding="utf8")
    with pytest.raises(ValueError, match=message):
        database.load(str(tmp_path))


@pytest.mark.parametrize(
    "harm",
    [
        lambda files: files[next(iter(files))].pop("crc32"),
        lambda files: files[next(iter(files))].update(bytes="1"),
        lambda files: files.update({next(iter(files)): []}),
        lambda files: files.pop("machine.symbol"),
        lambda files: files.update({"bigrams.x": files["machine.symbol"]}),
        lambda files: files.clear(),
        # Names that no file system takes.
        lambda files: files[next(iter(files))].update(file="1/\ud83d"),
        lambda files: files[next(iter(files))].update(file="1/\0"),
        lambda files: files[next(iter(files))].update(file="x" * 5_000),
    ],
)
def test_a_manifest_that_lacks_facts_is_named(tmp_path, harm):
    database.save(make()[0], str(tmp_path))
    path = tmp_path / database.MANIFEST
    facts = json.loads(path.read_text())
    harm(facts["files"])
    path.write_text(json.dumps(facts))
    with pytest.raises(ValueError, match=r"copy or build the database again") as error:
        database.load(str(tmp_path))
    assert str(tmp_path) in str(error.value)


def test_headers_are_parsed_by_one_thread(tmp_path, monkeypatch):
    """Several that parse at once sometimes end in CPython 3.11's SystemError."""
    database.save(make()[0], str(tmp_path))
    load, parsing = np.load, set()

    def watch(*arguments, **options):
        parsing.add(threading.get_ident())
        return load(*arguments, **options)

    monkeypatch.setattr(np, "load", watch)
    database.load(str(tmp_path))
    assert parsing == {threading.get_ident()}


def test_no_database_names_the_command(tmp_path):
    with pytest.raises(ValueError, match="build_hotwords"):
        database.load(str(tmp_path / "nothing"))


def test_an_empty_list_is_a_database_that_finds_nothing(tmp_path):
    database.save(make([])[0], str(tmp_path))
    base = database.load(str(tmp_path))
    assert len(base) == 0 and find(base, b"\x01\x02") == set()


def test_the_gate_holds_short_and_common_keys_back():
    base, _ = make(
        background=Expecting(lambda keys: np.where(np.arange(len(keys)) % 2, 5.0, 0.1))
    )
    allowed = base.allow(database.Gate(min_phonemes=5, max_chance=1.0))
    assert (allowed == ((base.machine.lengths >= 5) & (base.chance < 1))).all()
    assert allowed.any() and not allowed.all()


@given(text=st.text(max_size=40))
def test_any_text_is_a_name_or_is_not_pronounceable(text):
    cleaned = names.clean(text)
    if cleaned:
        readings = pronounce(Name(cleaned))
        assert all(0 < len(reading) <= 96 for reading in readings)


def test_a_name_of_ten_thousand_characters_is_not_pronounced():
    assert pronounce(Name("a b " * 2500)) == ()
    assert pronounce(Name("😀")) == ()


@pytest.mark.parametrize(
    ("suffix", "content"),
    [
        (".txt", "NIO\n\n 上海 \nA\x00B\n"),
        (".tsv", "NIO\tN IY OW\t2\tcar\tacme\n上海\nA\x00B\t\t\tx\n"),
        (".jsonl", '{"text": "NIO", "weight": 2}\n{"text": "上海"}\n{"text": "A B"}\n'),
    ],
)
def test_lists_are_read(tmp_path, suffix, content):
    path = tmp_path / f"list{suffix}"
    path.write_text(content, encoding="utf8")
    assert [name.text for name in names.read_names(str(path))] == ["NIO", "上海", "A B"]


@pytest.mark.parametrize(
    ("suffix", "content", "message"),
    [
        (".tsv", "NIO\tN IY XX\n", r"list.tsv:1: 'XX'"),
        (".tsv", "a\nNIO\t\tmany\n", r"list.tsv:2: .*many"),
        (".tsv", "a\tb\tc\td\te\tf\n", r"list.tsv:1: 6 columns"),
        (".jsonl", '{"text": "NIO"}\n{"text": 3}\n', r"list.jsonl:2: expected"),
        (".jsonl", '{"text": "NIO", "wieght": 3}\n', r"unknown keys \['wieght'\]"),
        (".jsonl", '{"text": "NIO", "weight": -1}\n', r"weight -1"),
    ],
)
def test_a_bad_line_is_named(tmp_path, suffix, content, message):
    path = tmp_path / f"list{suffix}"
    path.write_text(content, encoding="utf8")
    with pytest.raises(ValueError, match=message):
        list(names.read_names(str(path)))
